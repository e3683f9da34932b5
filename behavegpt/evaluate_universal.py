"""The universal model on a prepared folder that it was not trained on, beside the count
baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import functional as F

from behavegpt.console import progress
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import check_schema, describe
from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.evaluation import refuse_no_targets, score_baselines, uncertainty
from behavegpt.evaluation_groups import group_figures
from behavegpt.evaluation_summary import summary
from behavegpt.io import write_json
from behavegpt.metrics.bootstrap import TargetRanks
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.shipped import UNIVERSAL
from behavegpt.universal.model import UniversalModel
from behavegpt.universal.reader import MemoryReader, store_reader


def evaluate_universal(
    model: UniversalModel,
    store: EventStore,
    out: Path,
    *,
    split: str = "test",
    baselines: bool = True,
    given: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Evaluate on a split of a prepared folder, whose training split gives tables and labels, and
    write metrics.json.

    Rows, metrics and protocol are those of `compare`. `given`: what the model and the baselines
    know of the event that they predict (`time`, `location`). Raises ConfigError for the place in a
    log without places, DataError when the split is empty.
    """
    refuse_baskets(store.schema, "the universal model")
    refuse_no_targets(store, split)
    rows = target_rows(store, SPLITS[split])
    check_schema(given, store.schema)
    # as a log that is asked about: only the training split is counted
    reader = store_reader(store, given=given)

    metrics, ours, cross_entropy = _score(model, reader, rows, store.behaviors.classes)

    # the first one is the one that the remarks are about
    scored, ranks = {UNIVERSAL: metrics}, {UNIVERSAL: ours}
    if baselines:
        for name, counted, counted_ranks in score_baselines(store, split, given):
            scored[name], ranks[name] = counted, counted_ranks

    result = summary(scored, store, split, _protocol(store, split, given))
    result["models"][UNIVERSAL]["cross_entropy"] = cross_entropy
    result["uncertainty"] = uncertainty(store, ranks, UNIVERSAL)
    result["groups"] = group_figures(store, ranks)
    write_json(out, result)
    return result


def _score(
    model: UniversalModel, reader: MemoryReader, rows: np.ndarray, classes: int
) -> tuple[PredictionMetrics, TargetRanks, float]:
    """Metrics, ranks and mean cross-entropy (nats) of the targets at `rows` (n,)."""
    metrics, ranks, nats = PredictionMetrics(classes), TargetRanks(rows), 0.0
    with progress(f"evaluate {UNIVERSAL}", len(rows)) as show:
        # a target is asked for at the event before it
        for position, logits in model.score(reader, rows - 1):
            target = reader.target(position)
            metrics.update(logits, target)
            ranks.update(logits, target, position + 1)
            nats += F.cross_entropy(logits, target, reduction="sum").item()
            show(metrics.rows, "")
    return metrics, ranks, nats / len(rows)


def _protocol(store: EventStore, split: str, given: tuple[str, ...]) -> dict[str, Any]:
    """How the figures were made, for whoever compares them with others."""
    return {
        "task": describe(given),
        "given": " and ".join(given) or "nothing",
        "training": "none on this log; tables and labels are those of its training split",
        "split": split,
        "split_rule": store.manifest.split["rule"],
        "classes": store.behaviors.classes,
        "content_hash": store.manifest.content_hash,
    }
