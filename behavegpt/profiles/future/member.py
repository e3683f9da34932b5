"""Vectors learned from the next window: a tower reads the past and tells which events, and what,
the future holds.

    future: {kind: future, fields: [event, category, price, "sku:5000"],
             predict: {category: 100, sku: 100, price: 100}}

One task for the event types that occur (so churn, too) and one for each field of `predict`, whose
labels are its most frequent values among the future's `bought` events. A task's loss is its binary
cross-entropy in units of what its base rates alone would give, so that all begin at 1 however many
labels they have and however rare these are. Everything is cut from the input (see `windows`); the
evaluated windows are never seen.

Shape letters: N examples, K labels of a task, D dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.batch import moved
from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.profiles.fields import FIRST
from behavegpt.profiles.future.tower import Tower, TowerSettings, Trained, fit_tower
from behavegpt.profiles.future.windows import Cuts, Examples, Past, chosen, happens, read_past
from behavegpt.profiles.members import Context
from behavegpt.profiles.sequences import SequenceStore

OCCURS = "events"  # the task of the event types
BLOCK = 2**14  # examples whose labels are counted at a time


class FutureSettings(TowerSettings):
    """The tasks."""

    kind: Literal["future"] = "future"
    predict: dict[str, int] = Field(
        description="field -> how many of its most frequent values are asked for"
    )
    bought: tuple[EventName, ...] = Field(
        ("product_buy",), min_length=1, description="events whose values are asked for"
    )

    @model_validator(mode="after")
    def _known(self) -> FutureSettings:
        unknown = set(self.predict) - set(self.names)
        if unknown:
            raise ValueError(
                f"predict: {sorted(unknown)[0]} is not among the fields {', '.join(self.names)}"
            )
        return self


def fit(context: Context, settings: FutureSettings, folder: Path) -> None:
    """Train on examples of the tasks."""

    def make(tower: Tower, store: SequenceStore, cuts: Cuts, device: torch.device) -> Trained:
        network = Future(tower, _base_rates(store, cuts, settings), settings.dimensions).to(device)

        def loss(examples: Examples) -> Tensor:
            pasts = read_past(store, examples, settings.names, settings.shape.longest)
            # wanted: task -> (N, K)
            return network(*moved((pasts, targets(store, examples, settings)), device))

        return network, loss

    fit_tower(context, settings, folder, make)


def targets(
    store: SequenceStore, examples: Examples, settings: FutureSettings
) -> dict[str, np.ndarray]:
    """Task -> (N, K) float32 of 0 and 1."""
    bought = tuple(EVENTS.index(event) for event in settings.bought)
    labels = {OCCURS: happens(store, examples)}

    for field, top in settings.predict.items():
        width = min(top, store.sizes[field] - FIRST)  # a small vocabulary has fewer values
        labels[field] = chosen(store, examples, field, width, bought)

    return labels


def _base_rates(
    store: SequenceStore, cuts: Cuts, settings: FutureSettings
) -> dict[str, np.ndarray]:
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


class Future(nn.Module):
    """A tower and a linear head for each task."""

    def __init__(self, tower: Tower, rates: dict[str, np.ndarray], dimensions: int) -> None:
        """`rates`: task -> base rates (K,) among the examples, where the heads start."""
        super().__init__()
        self.tower = tower
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

    def forward(self, pasts: Past, wanted: dict[str, Tensor]) -> Tensor:
        """The sum over tasks of their losses, each in units of its base rates'."""
        vectors = self.tower(pasts)  # (N, D)
        return torch.stack(
            [
                F.binary_cross_entropy_with_logits(head(vectors), wanted[task]) / self.units[task]
                for task, head in self.heads.items()
            ]
        ).sum()
