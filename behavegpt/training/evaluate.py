"""Score a model on a split: streamed, each target once, the same on one rank and several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch.nn import functional as F

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.data.loader import ALL, Share, evaluation_batches, row_length_for
from behavegpt.data.pack import target_rows
from behavegpt.data.store import EventStore
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.precision import autocast

LOGITS = 50_000_000  # held at once
CONFUSION_CLASSES = 2048  # more would make the table of confusions larger than the model


class Collector(Protocol):
    """What takes up scores beside the metrics."""

    sums: torch.Tensor  # add up over processes

    def update(self, scores: torch.Tensor, target: torch.Tensor, row: torch.Tensor) -> None:
        """Take up scores (N, K), targets (N,) and their flat indices (N,)."""


class ScoredBatch(NamedTuple):
    """The scored positions of one batch."""

    logits: torch.Tensor  # (N, K) float32
    target: torch.Tensor  # (N,)
    row: torch.Tensor  # (N,) the targets' flat indices


@torch.no_grad()
def score(
    model: BehaveGPTForBehaviorPrediction,
    store: EventStore,
    split: int,
    *,
    positions_per_batch: int = 16384,
    precision: str = "auto",
    share: Share = ALL,
) -> Iterator[ScoredBatch]:
    """Float32 logits of a share of a split's targets, in evaluation mode; the mode is restored
    after."""
    device = next(model.parameters()).device
    config = model.config
    positions = min(positions_per_batch, LOGITS // store.behaviors.classes)
    batches = evaluation_batches(
        store,
        split,
        max_length=config.max_length,
        rows_per_batch=max(1, positions // row_length_for(config.max_length)),
        fields=config.columns,
        counts=model.counts,
        given=tuple(config.given or ()),
        share=share,
    )
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            moved = batch.to(device)
            wanted = moved.target != IGNORED
            with autocast(device, precision):
                output = model(**moved.arguments, select=wanted)
            yield ScoredBatch(output.logits.float(), moved.target[wanted], moved.row[wanted])
    finally:
        model.train(was_training)


@torch.no_grad()
def hidden_states(
    model: Any, batches: Iterable[PackedBatch]
) -> Iterator[tuple[PackedBatch, torch.Tensor]]:
    """Each batch on the model's device, and the encoder's states (B, R, C) of it, in evaluation
    mode; the mode is restored after."""
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            moved = batch.to(model.device)
            layout = {"document": moved.document, "position": moved.position}
            yield moved, model.model(**moved.inputs, **layout).last_hidden_state
    finally:
        model.train(was_training)


def evaluate(
    model: BehaveGPTForBehaviorPrediction,
    store: EventStore,
    split: int,
    *,
    precision: str = "auto",
    shift: torch.Tensor | None = None,
    share: Share = ALL,
    on_batch: Callable[[int], None] | None = None,
    collectors: Sequence[Collector] = (),
) -> tuple[PredictionMetrics, float]:
    """Metrics over a split and the mean cross-entropy in nats, all scores also taken up by
    `collectors`; on several ranks every rank gets the whole result.

    `shift` (K,) is subtracted from the logits before anything is scored: a rule of decision.py.
    Raises AssertionError unless the ranks together saw each target exactly once.
    """
    device = next(model.parameters()).device
    metrics = PredictionMetrics(
        store.behaviors.classes, confusion=store.behaviors.classes <= CONFUSION_CLASSES
    )
    shift = torch.zeros(store.behaviors.classes) if shift is None else shift
    shift = shift.to(device)
    loss = torch.zeros(2, dtype=torch.float64)
    seen = torch.zeros(2, dtype=torch.int64)  # rows and the sum of their ids
    for part in score(model, store, split, precision=precision, share=share):
        logits = part.logits - shift
        metrics.update(logits, part.target)
        for collector in collectors:
            collector.update(logits, part.target, part.row)
        loss[0] += F.cross_entropy(logits, part.target, reduction="sum").double().cpu()
        loss[1] += len(part.target)
        seen += torch.stack([torch.tensor(len(part.row)), part.row.sum().cpu()])
        if on_batch:
            on_batch(len(part.target))

    if share.world > 1:
        parts = [metrics.state(), loss, seen, *(collector.sums for collector in collectors)]
        parts = [part.to(device) for part in parts]
        for tensor in parts:
            dist.all_reduce(tensor)
        state, loss, seen, *sums = (part.cpu() for part in parts)
        metrics.load_state(state)
        for collector, whole in zip(collectors, sums, strict=True):
            collector.sums = whole
    rows = target_rows(store, split)
    assert seen.tolist() == [len(rows), int(rows.sum())], "each target must be scored exactly once"
    return metrics, float(loss[0] / loss[1].clamp(min=1))
