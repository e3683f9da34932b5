"""How well a model knows new events before it learns them, and how they differ from earlier ones.

Shapes: E events, N targets, K behaviors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.baselines import counts
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import SPLITS, TEST, TRAIN, EventStore
from behavegpt.data.times import DAY, zone
from behavegpt.data.vocabulary import FIRST, UNKNOWN
from behavegpt.metrics.bootstrap import TargetRanks, user_intervals
from behavegpt.metrics.calibration import Calibration
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.evaluate import ScoredBatch, evaluate

COUNTS = "user_recent"  # decayed counts of the user's own past, see baselines/counts.py

CUT = 3  # of NDCG
UNNAMED = 1 << 40  # rank of a behavior that a model does not know


class Scored(NamedTuple):
    """A model on the targets of a split whose behavior is in the vocabulary."""

    figures: dict[str, Any]
    ranks: TargetRanks


def with_split(store: EventStore, split: np.ndarray) -> EventStore:
    """The same events under other splits (E,)."""
    sizes = np.bincount(split, minlength=len(SPLITS)).tolist()
    manifest = store.manifest.model_copy(update={"split": {"rule": "update", "events": sizes}})
    return replace(store, manifest=manifest, columns={**store.columns, "split": split})


def score_model(model: BehaveGPTForBehaviorPrediction, store: EventStore) -> Scored:
    """A model on the test split, in its own ids; unknown behaviors count as misses."""
    calibration, ranks = Calibration(), TargetRanks(target_rows(store, TEST))

    def take_up(part: ScoredBatch) -> None:
        calibration.update(part.logits, part.target)
        ranks.update(part.logits, part.target, part.row)

    metrics, cross_entropy = evaluate(model, store, TEST, on_batch=take_up)
    number, probability, came = calibration.sums.sum(1).tolist()
    sure = {
        "cross_entropy": cross_entropy,
        "calibration_error": calibration.compute()["ece"],
        "mean_probability": probability / max(number, 1),
        "came_true": came / max(number, 1),
    }
    return Scored(_figures(metrics, count_unseen(store, TEST)) | sure, ranks)


def score_counts(store: EventStore) -> Scored:
    """Decayed counts of each user's own past on the same targets; what all users do is counted on
    the training split."""
    rows = target_rows(store, TEST)
    behavior, model = store.column("behavior"), counts.fit(store)[COUNTS]
    metrics, ranks = PredictionMetrics(store.behaviors.classes), TargetRanks(rows)
    for part, scores in counts.scores(model, store, rows):
        target = torch.from_numpy(behavior[part].astype(np.int64) - FIRST)
        metrics.update(torch.from_numpy(scores), target)
        ranks.update(torch.from_numpy(scores), target, part)
    return Scored(_figures(metrics, count_unseen(store, TEST)), ranks)


def _figures(metrics: PredictionMetrics, unseen: int) -> dict[str, Any]:
    """Recall and NDCG@3, targets with an unknown behavior being misses."""
    # a model that knows fewer labels must not look better for skipping their targets
    computed = metrics.with_unseen(unseen).compute()
    return {
        "targets": metrics.rows + unseen,
        "recall": computed["rec_w"],
        "macro_recall": computed["rec_m"],
        "ndcg@3": computed["ndcg@3"],
    }


def compare_at(
    before: Scored, after: Scored, store: EventStore, asked: np.ndarray
) -> dict[str, Any]:
    """NDCG@3 of two models at the rows `asked` (n,) of a store in the ids of the second; what a
    model could not name is a miss. `difference`: after less before, `interval`: of 95 %, the users
    drawn again."""
    ranks = {"before": _ranks_at(before, asked), "after": _ranks_at(after, asked)}
    gain = {name: np.where(r < CUT, 1 / np.log2(2.0 + r), 0.0) for name, r in ranks.items()}
    figures: dict[str, Any] = {"targets": len(asked)}
    figures |= {name: float(gain[name].mean()) if len(asked) else 0.0 for name in ranks}
    figures["difference"] = figures["after"] - figures["before"]
    if len(asked):
        user = np.searchsorted(store.offsets, asked, side="right") - 1
        target = np.asarray(store.column("behavior"))[asked].astype(np.int64)
        drawn = user_intervals(ranks, target, user, "after")["differences"]["before"]["ndcg@3"]
        figures["interval"] = [drawn["low"], drawn["high"]]
    return figures


def _ranks_at(scored: Scored, asked: np.ndarray) -> np.ndarray:
    """Ranks (n,) of the truth at rows `asked` (n,), ascending; far behind where it has no name."""
    # finite, so that the gain of a rank is computed alike for all
    ranks = np.full(len(asked), UNNAMED)
    named, rows = scored.ranks.rows, np.searchsorted(asked, scored.ranks.rows)
    is_asked = np.isin(named, asked)
    ranks[rows[is_asked]] = scored.ranks.ranks[is_asked]
    return ranks


def asked_rows(store: EventStore, wanted: np.ndarray) -> np.ndarray:
    """Flat indices of the events `wanted` (E,) bool that have an earlier one of their user, whether
    or not their behavior is known."""
    wanted = wanted.copy()
    # nobody predicts a first event: there is no past to predict it from
    wanted[store.offsets[:-1][np.diff(store.offsets) > 0]] = False
    return np.flatnonzero(wanted)


def drift(store: EventStore, scored: dict[str, Scored]) -> dict[str, Any]:
    """How the test split, in a model's ids, differs from the training split: the share of unknown
    labels by field, how far the shares of behaviors moved (total variation, 0 to 1), and the recall
    of models by day."""
    split = np.asarray(store.columns["split"])
    before, new = split == TRAIN, split == TEST
    unknown = {}
    for field in (*store.schema.label_columns, *store.schema.features):
        if field in store.vocabulary:
            is_unknown = np.asarray(store.columns[field]) <= UNKNOWN
            unknown[field] = {
                "before": _share(is_unknown, before),
                "new": _share(is_unknown, new),
            }
    behavior = np.asarray(store.column("behavior"))
    size = len(store.behaviors)
    # unknown behaviors count too: labels that come up are the plainest drift
    shares = [np.bincount(behavior[part], minlength=size) / part.sum() for part in (before, new)]
    return {
        "unknown": unknown,
        "behavior_shift": float(np.abs(shares[0] - shares[1]).sum() / 2),
        "by_day": _by_day(store, asked_rows(store, new), scored),
    }


def _share(flags: np.ndarray, part: np.ndarray) -> float:
    return round(float(flags[part].mean()), 6)


def _by_day(
    store: EventStore, asked: np.ndarray, scored: dict[str, Scored]
) -> list[dict[str, Any]]:
    """Targets and recall of each model on each day of the schema's zone; `asked` (n,) rows, of
    which the models name those with a known behavior."""
    seconds = np.asarray(store.columns["time"])[asked].astype(np.int64)

    # days as the users live them, not UTC's
    days = zone(store.schema.tz).wall(seconds + store.manifest.time_origin) // DAY  # (n,)
    found, place = np.unique(days, return_inverse=True)
    table: dict[str, Sequence[Any]] = {"targets": np.bincount(place).tolist()}
    for name, of_model in scored.items():
        hits = np.isin(asked, of_model.ranks.rows[of_model.ranks.ranks == 0])
        table[name] = np.round(np.bincount(place, hits) / table["targets"], 6).tolist()
    names = found.astype("datetime64[D]").astype(str)
    return [
        {"day": str(name), **{key: values[i] for key, values in table.items()}}
        for i, name in enumerate(names)
    ]
