"""Figures of models on the same rows -> what metrics.json holds of them, and the table of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.evaluation_baskets import basket_table
from behavegpt.evaluation_files import labels_of
from behavegpt.metrics.prediction import PredictionMetrics

CONSTANT = 0.95  # share of one label among the targets from which the constant predictor is named


def summary(
    scored: dict[str, PredictionMetrics], store: EventStore, split: str, protocol: dict[str, Any]
) -> dict[str, Any]:
    """What metrics.json holds of models scored on the same rows; the remarks are on those of the
    first one."""
    first = next(iter(scored.values()))
    rows, unseen = len(target_rows(store, SPLITS[split])), count_unseen(store, SPLITS[split])

    return {
        "models": {name: _figures(metrics, store, unseen) for name, metrics in scored.items()},
        "rows": rows,
        "unseen": {"targets": unseen, "share": unseen / (rows + unseen)},
        "remarks": remarks(first, store, unseen),
        "protocol": protocol,
    }


def _figures(metrics: PredictionMetrics, store: EventStore, unseen: int) -> dict[str, Any]:
    """A model's figures, and under `with_unseen` the same with the unseen labels as misses of one
    more class."""
    # no training events: the unseen class counts as rare
    counts = np.asarray(store.behaviors.counts)

    return metrics.compute(counts) | {
        "with_unseen": metrics.with_unseen(unseen).compute(np.append(counts, 0))
    }


def remarks(metrics: PredictionMetrics, store: EventStore, unseen: int) -> list[str]:
    """What a reader of the figures must know of their targets: labels left out, and what needs no
    model."""
    # of the targets, not of training: what is told is about these figures
    support = metrics.support.numpy()  # (K,) targets of each class
    rows, most = int(support.sum()), int(support.argmax())
    label, share = labels_of(store)[most], support[most] / support.sum()

    notes = []
    if unseen:
        notes.append(
            f"{unseen:,} of {rows + unseen:,} targets ({unseen / (rows + unseen):.1%}) have a "
            "behavior that training never saw, or none; they are left out, and are misses in the "
            "figures 'with unseen'."
        )

    # exactly: with any other target a model could be told from the constant
    if share == 1:
        notes.append(
            f"all {rows:,} targets are {label!r}: a constant predictor is enough, and no figure "
            "tells models apart."
        )
    elif share >= CONSTANT:
        notes.append(
            f"{share:.1%} of the targets are {label!r}: a constant predictor has that weighted "
            "recall."
        )

    # no more classes than places in the ranking: every class is among them
    sure = [k for k in metrics.ks if 1 < store.behaviors.classes <= k]
    if sure:
        names = " and ".join(f"HR@{k}" for k in sure)
        notes.append(f"with {store.behaviors.classes} behaviors {names} is 1 whatever the model.")
    return notes


def metrics_table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]], str]:
    """Columns, rows (best weighted recall first) and title of a result's table.

    Where targets were left out, each model has a second row that counts them as misses. Baskets
    have a table of their own.
    """
    of_baskets = basket_table(result)
    if of_baskets is not None:
        return of_baskets
    names = (
        "rec_w", "rec_m", "prec_w", "prec_m", "f1_w", "f1_m", "ndcg@3", "hr@3",
        "head", "mid", "tail",
    )  # fmt: skip
    unseen = result["unseen"]["targets"]

    def line(title: str, figures: dict[str, Any]) -> list[str]:
        shown = ("-" if figures[name] is None else f"{figures[name]:.4f}" for name in names)
        return [title, *shown]

    rows: list[list[str]] = []

    for model, figures in sorted(result["models"].items(), key=lambda item: -item[1]["rec_w"]):
        rows.append(line(model, figures))
        if unseen:
            rows.append(line("  with unseen", figures["with_unseen"]))

    protocol = result["protocol"]
    title = f"{result['rows']:,} rows, {protocol['classes']} behaviors"
    if protocol.get("given", "nothing") != "nothing":
        title += f"; given: {protocol['given']}"
    if unseen:
        title += f"; with unseen: {unseen:,} more targets, all misses"

    return ("model", *names), rows, title
