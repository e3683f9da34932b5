"""Score a model on a split: streamed, each target once, the same on one rank and several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn import functional as F

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.data.loader import evaluation_batches, row_length_for
from behavegpt.data.pack import target_rows
from behavegpt.data.store import EventStore
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model.precision import autocast
from behavegpt.model.prior import class_prior

LOGITS = 50_000_000  # held at once
CONFUSION_CLASSES = 2048  # more would make the table of confusions larger than the model


class ScoredBatch(NamedTuple):
    """The scored positions of one batch."""

    logits: torch.Tensor  # (N, K) float32
    target: torch.Tensor  # (N,)
    row: torch.Tensor  # (N,) the targets' flat indices


@torch.no_grad()
def score(
    model: torch.nn.Module,
    store: EventStore,
    split: int,
    *,
    max_length: int,
    fields: tuple[str, ...],
    positions_per_batch: int = 16384,
    device: torch.device | None = None,
    precision: str = "auto",
    rank: int = 0,
    world: int = 1,
) -> Iterator[ScoredBatch]:
    """Float32 logits of this rank's share of a split's targets, in evaluation mode; the mode is
    restored after."""
    device = device or next(model.parameters()).device
    positions = min(positions_per_batch, LOGITS // store.behaviors.classes)
    batches = evaluation_batches(
        store,
        split,
        max_length=max_length,
        rows_per_batch=max(1, positions // row_length_for(max_length)),
        fields=fields,
        counts=getattr(model, "counts", None),
        rank=rank,
        world=world,
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
    model: torch.nn.Module,
    store: EventStore,
    split: int,
    *,
    max_length: int,
    fields: tuple[str, ...],
    precision: str = "auto",
    prior_correction: float = 0.0,
    rank: int = 0,
    world: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[PredictionMetrics, float]:
    """Metrics over a split and the mean cross-entropy in nats; on several ranks every rank gets the
    whole result.

    `prior_correction` tau subtracts tau * log(training frequency) from the logits (post-hoc logit
    adjustment). Raises AssertionError unless the ranks together saw each target exactly once.
    """
    device = next(model.parameters()).device
    metrics = PredictionMetrics(
        store.behaviors.classes, confusion=store.behaviors.classes <= CONFUSION_CLASSES
    )
    shift = torch.zeros(store.behaviors.classes, device=device)
    if prior_correction:
        counts = torch.tensor(store.behaviors.counts, dtype=torch.float32, device=device)
        shift = prior_correction * class_prior(counts, 1).log()
    loss = torch.zeros(2, dtype=torch.float64)
    seen = torch.zeros(2, dtype=torch.int64)  # rows and the sum of their ids
    for part in score(
        model,
        store,
        split,
        max_length=max_length,
        fields=fields,
        precision=precision,
        rank=rank,
        world=world,
    ):
        logits = part.logits - shift
        metrics.update(logits, part.target)
        loss[0] += F.cross_entropy(logits, part.target, reduction="sum").double().cpu()
        loss[1] += len(part.target)
        seen += torch.stack([torch.tensor(len(part.row)), part.row.sum().cpu()])
        if on_batch:
            on_batch(len(part.target))
    if world > 1:
        state = metrics.state().to(device)
        reduced = [loss.to(device), seen.to(device)]
        for tensor in (state, *reduced):
            dist.all_reduce(tensor)
        metrics.load_state(state.cpu())
        loss, seen = (tensor.cpu() for tensor in reduced)
    rows = target_rows(store, split)
    assert seen.tolist() == [len(rows), int(rows.sum())], "each target must be scored exactly once"
    return metrics, float(loss[0] / loss[1].clamp(min=1))
