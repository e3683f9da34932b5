"""Learned stacking: the columns of all members, projected by a layer that was trained on a later
window of the input.

    stacked: {stack: {columns: 256}}

    z = gelu(W (x - mean) / deviation + b)

with the tasks and the loss of `future` on z (the winners of the RecSys Challenge 2025 end with such
a layer). x are the members' columns at a cut: each member embeds the history before it, and what is
asked for lies in the `horizon` after it. The vectors are z of the members' columns of the whole
history. No window after the input is looked at.

What the layer learns from is held out of its own input x, but by default not of the members: they
were fitted on the whole input, and those that learn from the future (`future`, `contrastive`) know
some of its labels by heart. `fitted: before` fits every member again on the events before the first
cut: clean, at twice the time, and the vectors are then those of members that know less.

Shape letters: N examples, D columns of the members, K of the projection, M cuts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from behavegpt.batch import moved
from behavegpt.devices import choose_device
from behavegpt.profiles.cache import digest
from behavegpt.profiles.fields import SequenceSettings
from behavegpt.profiles.future.tasks import FutureModel, FutureTasks, base_rates, targets
from behavegpt.profiles.future.tower import cut_task
from behavegpt.profiles.future.windows import DAY, Cuts, CutSettings, Examples, cut_histories
from behavegpt.profiles.members import Context
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.profiles.task import TrainingSettings, seeded
from behavegpt.profiles.training import train
from behavegpt.profiles.transforms import Rows, State, fit_steps

ASKED = ("category", "sku", "price", "url")  # fields whose values may be asked for


class StackSettings(FutureTasks):
    """How many columns, and what they are trained to tell."""

    columns: int = Field(256, ge=1, le=2048, description="width of the vector")
    predict: dict[str, int] = Field(
        {"category": 100, "sku": 100, "price": 100},
        description="field -> how many of its most frequent values are asked for",
    )
    cut: CutSettings = CutSettings(horizon=14, moments=2, step=7)
    fitted: Literal["whole", "before"] = Field(
        "whole",
        description="members as fitted on the whole input, or again on what precedes all cuts",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="of the members' columns")
    training: TrainingSettings = TrainingSettings(
        epochs=40, batch=256, lr=3e-4, weight_decay=0.01, held_out=0.1
    )

    @field_validator("predict")
    @classmethod
    def _known(cls, predict: dict[str, int]) -> dict[str, int]:
        for name, top in predict.items():
            if name not in ASKED or top < 1:
                raise ValueError(f"{name}: {top}: name {', '.join(ASKED)} with a number above 0")
        return predict


class Window(NamedTuple):
    """The input, and where it is cut to train the projection."""

    store: SequenceStore
    cuts: Cuts
    now: int  # epoch seconds: the midnight after the last event, where the whole history is read


def open_window(context: Context, settings: StackSettings) -> Window:
    """Raises DataError when no client has an event before a cut."""
    needed = SequenceSettings(fields=("event", "time", *settings.predict))
    store = context.sequences(needed, context.vocabularies(needed))
    # at midnight, as the target windows of the challenge and the windows of handcrafted features
    now = (context.tables.last // DAY + 1) * DAY
    return Window(store, cut_histories(store, settings.cut, now), now)


class _Examples:
    """The members' columns (N, D) of examples, made when they are asked for."""

    def __init__(self, joined: Sequence[Rows], cuts: Cuts) -> None:
        self.joined, self.moments = joined, cuts.moment
        everything = cuts.all_of(np.flatnonzero(cuts.usable))
        self.row = np.concatenate([of.row for of in everything])  # (N,)
        self.cut = np.concatenate([of.cut for of in everything])  # (N,)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, some: slice | np.ndarray) -> np.ndarray:
        return self.columns(self.row[some], self.cut[some])

    def columns(self, row: np.ndarray, cut: np.ndarray) -> np.ndarray:
        """(N, D) float64 of clients `row` (N,) at the moments `cut` (N,)."""
        number = np.searchsorted(-self.moments, -cut)  # (N,) moments descend
        parts = {index: self.joined[index][row[number == index]] for index in np.unique(number)}

        out = np.empty((len(row), next(iter(parts.values())).shape[1]))
        for index, part in parts.items():
            out[number == index] = part
        return out


class Projection(nn.Module):
    """(N, D) -> (N, K)."""

    mean: Tensor  # (D,)
    deviation: Tensor  # (D,)

    def __init__(self, scores: State, settings: StackSettings) -> None:
        """`scores`: mean (D,) and deviation (D,) of the columns."""
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scores["mean"]))
        self.register_buffer("deviation", torch.from_numpy(scores["deviation"]))
        self.layer = nn.Linear(len(scores["mean"]), settings.columns)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, columns: Tensor) -> Tensor:
        """float64 in, as the members' steps give it; float32 out."""
        standard = ((columns - self.mean) / self.deviation).float()
        return nn.functional.gelu(self.layer(self.dropout(standard)))

    def state(self) -> State:
        """What `project` needs."""
        return {name: value.cpu().numpy() for name, value in self.state_dict().items()}


def fit_stack(
    context: Context, settings: StackSettings, window: Window, joined: Sequence[Rows]
) -> tuple[State, dict[str, Any]]:
    """Train the projection on the members' columns (U, D) of the window's clients at each cut;
    returns its state and what training.json tells of a network."""
    store, cuts, _ = window
    examples = _Examples(joined, cuts)
    scores = fit_steps(("zscore",), examples)[0]
    device = choose_device(context.device)

    with seeded(context.seed):
        projection = Projection(scores, settings)
        rates = base_rates(store, cuts, settings)
        network = FutureModel(projection, rates, settings.columns).to(device)

    def loss(of: Examples) -> Tensor:
        columns = torch.from_numpy(examples.columns(of.row, of.cut))
        return network(*moved((columns, targets(store, of, settings)), device))

    key = digest(settings.model_dump(mode="json"), context.seed, *(scores["mean"].tolist()))
    work = context.cache / "unfinished" / f"stack_{key[:20]}"
    task = cut_task("stacking", cuts, network, loss)
    report = train(network, task, settings.training, context.seed, work)
    shutil.rmtree(work, ignore_errors=True)

    return projection.state(), {"examples": len(examples), "tasks": list(rates)} | report


def project(state: State, columns: np.ndarray) -> np.ndarray:
    """The members' columns (B, D) float64 -> (B, K) float64."""
    from scipy.special import erf

    standard = (columns - state["mean"]) / state["deviation"]
    x = standard @ state["layer.weight"].T.astype(np.float64) + state["layer.bias"]
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)  # gelu
