"""Score a model on a split: streamed, each target once, the same on one rank and several.

Shape letters: B rows, R positions, C hidden width, N scored positions, K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn import functional as F

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import ALL, Share, evaluation_batches, row_length_for
from behavegpt.data.pack import target_rows
from behavegpt.data.store import EventStore
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.precision import autocast

LOGITS = 50_000_000  # held at once: 200 MB of float32

CONFUSION_CLASSES = 2048  # more would make the table of confusions larger than the model


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
    # with many classes fewer positions, so that the logits of a batch fit the memory
    # and of baskets, each of which is asked for several
    asked = 1 if store.baskets is None else store.baskets.targets_each
    positions = int(min(positions_per_batch, LOGITS // store.behaviors.classes) / asked)

    batches = evaluation_batches(
        store,
        split,
        max_length=config.max_length,
        rows_per_batch=max(1, positions // row_length_for(config.max_length)),
        fields=BatchFields(config.columns, given=tuple(config.given or ())),
        counts=model.counts,
        share=share,
    )

    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            moved = batch.to(device)
            wanted = moved.target != IGNORED  # (B, R): each target in one batch, once
            with autocast(device, precision):
                # baskets tell themselves where each is asked for
                select = wanted if moved.baskets is None else None
                output = model(**moved.arguments, select=select)
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
            # of the encoder alone: no head, and so no logits
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
    on_batch: Callable[[ScoredBatch], None] | None = None,
) -> tuple[PredictionMetrics, float]:
    """Metrics over a split and the mean cross-entropy in nats; on several ranks every rank gets the
    whole result.

    `shift` (K,) is subtracted from the logits before anything is scored: a rule of decision.py.
    `on_batch` is shown each batch that this rank scored, shifted. Raises AssertionError unless the
    ranks together saw each target exactly once.
    """
    device = next(model.parameters()).device
    classes = store.behaviors.classes
    metrics = PredictionMetrics(classes, confusion=classes <= CONFUSION_CLASSES)
    shift = (torch.zeros(classes) if shift is None else shift).to(device)

    # summed cross-entropy and targets; float64, as millions of targets are added up
    loss = torch.zeros(2, dtype=torch.float64)
    seen = torch.zeros(2, dtype=torch.int64)  # rows and the sum of their ids
    for part in score(model, store, split, precision=precision, share=share):
        # the targets' own logits too: the cross-entropy is that of the rule
        part = part._replace(logits=part.logits - shift)
        metrics.update(part.logits, part.target)
        loss[0] += F.cross_entropy(part.logits, part.target, reduction="sum").double().cpu()
        loss[1] += len(part.target)
        seen += torch.stack([torch.tensor(len(part.row)), part.row.sum().cpu()])
        if on_batch:
            on_batch(part)

    if share.world > 1:
        state, loss, seen = sum_over_ranks((metrics.state(), loss, seen), device)
        # counts are whole numbers: any number of ranks gives the same figures
        metrics.load_state(state)

    # a target that two ranks scored, or none, would change the figures without a word
    rows = target_rows(store, split)
    assert seen.tolist() == [len(rows), int(rows.sum())], "each target must be scored exactly once"
    return metrics, float(loss[0] / loss[1].clamp(min=1))


def sum_over_ranks(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Each tensor, of any shape, summed over all ranks, on the CPU; all ranks must ask."""
    summed = []
    for tensor in tensors:
        moved = tensor.to(device)  # the back end of a GPU's ranks adds on GPUs alone
        dist.all_reduce(moved)
        summed.append(moved.cpu())
    return summed
