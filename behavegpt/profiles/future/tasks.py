"""The tasks of a future window, and what they weigh: which event types occur, and which values are
among them.

One task for the event types that occur (so churn, too) and one for each field of `predict`, whose
labels are its most frequent values among the future's `bought` events. A task's loss is its binary
cross-entropy in units of what its base rates alone would give, so that all begin at 1 however many
labels they have and however rare these are.

Shape letters: N examples, K labels of a task, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.config import Settings
from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.profiles.fields import FIRST
from behavegpt.profiles.future.windows import Cuts, Examples, chosen, happens
from behavegpt.profiles.sequences import SequenceStore

OCCURS = "events"  # the task of the event types
BLOCK = 2**14  # examples whose labels are counted at a time


class FutureTasks(Settings):
    """What is asked of the future."""

    predict: dict[str, int] = Field(
        description="field -> how many of its most frequent values are asked for"
    )
    bought: tuple[EventName, ...] = Field(
        ("product_buy",), min_length=1, description="events whose values are asked for"
    )


def targets(
    store: SequenceStore, examples: Examples, settings: FutureTasks
) -> dict[str, np.ndarray]:
    """Task -> (N, K) float32 of 0 and 1."""
    bought = tuple(EVENTS.index(event) for event in settings.bought)
    labels = {OCCURS: happens(store, examples)}

    for field, top in settings.predict.items():
        width = min(top, store.sizes[field] - FIRST)  # a small vocabulary has fewer values
        labels[field] = chosen(store, examples, field, width, bought)

    return labels


def base_rates(store: SequenceStore, cuts: Cuts, settings: FutureTasks) -> dict[str, np.ndarray]:
    """Task -> share (K,) of all examples, every client at every moment, that have the label."""
    totals: dict[str, np.ndarray] = {}
    for index in range(len(cuts.moment)):
        # clients with an event before this moment
        rows = np.flatnonzero(cuts.usable > index)
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            labelled = targets(store, cuts.at(np.full(len(some), index), some), settings)
            for task, labels in labelled.items():
                totals[task] = totals.get(task, 0) + labels.sum(axis=0, dtype=np.float64)

    return {task: total / cuts.usable.sum() for task, total in totals.items()}


class FutureModel(nn.Module):
    """What makes vectors, and a linear head for each task."""

    def __init__(self, encoder: nn.Module, rates: dict[str, np.ndarray], dimensions: int) -> None:
        """`rates`: task -> base rates (K,) among the examples, where the heads start."""
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(
            {task: nn.Linear(dimensions, len(rate)) for task, rate in rates.items()}
        )

        # the heads start at the base rates (weights 0, bias their log odds), and a task's loss is
        # divided by its entropy there: every task begins at 1
        self.units: dict[str, float] = {}
        for task, rate in rates.items():
            head = self.heads[task]
            assert isinstance(head, nn.Linear)
            smoothed = np.clip(rate, 1e-5, 1 - 1e-5)  # a label may be in all examples or in none
            with torch.no_grad():
                head.weight.zero_()

                head.bias.copy_(torch.from_numpy(np.log(smoothed / (1 - smoothed))))
            entropy = -(smoothed * np.log(smoothed) + (1 - smoothed) * np.log(1 - smoothed))
            self.units[task] = float(entropy.mean())

    def forward(self, pasts: Any, wanted: dict[str, Tensor]) -> Tensor:
        """The sum over tasks of their losses, each in units of its base rates'."""
        vectors = self.encoder(pasts)  # (N, D)
        return torch.stack(
            [
                F.binary_cross_entropy_with_logits(head(vectors), wanted[task]) / self.units[task]
                for task, head in self.heads.items()
            ]
        ).sum()
