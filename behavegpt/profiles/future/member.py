"""Vectors learned from the next window: a tower reads the past and tells which events, and what,
the future holds.

    future: {kind: future, fields: [event, category, price, "sku:5000"],
             predict: {category: 100, sku: 100, price: 100}}

What is asked for is described in `tasks`. Everything is cut from the input (see `windows`); the
evaluated windows are never seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from behavegpt.batch import moved
from behavegpt.profiles.future.tasks import FutureModel, FutureTasks, base_rates, targets
from behavegpt.profiles.future.tower import Tower, TowerSettings, Trained, fit_tower
from behavegpt.profiles.future.windows import Cuts, Examples, read_past
from behavegpt.profiles.members import Context
from behavegpt.profiles.sequences import SequenceStore


class FutureSettings(TowerSettings, FutureTasks):
    """The tasks."""

    kind: Literal["future"] = "future"

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
        rates = base_rates(store, cuts, settings)
        network = FutureModel(tower, rates, settings.dimensions).to(device)

        def loss(examples: Examples) -> Tensor:
            pasts = read_past(store, examples, settings.names, settings.shape.longest)
            # wanted: task -> (N, K)
            return network(*moved((pasts, targets(store, examples, settings)), device))

        return network, loss

    fit_tower(context, settings, folder, make)
