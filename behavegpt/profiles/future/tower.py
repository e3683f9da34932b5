"""The tower that turns a past into a vector; what it is trained on is the business of `future` and
`contrastive`.

z = LayerNorm(W2 gelu(W1 [state at the last event, mean of the states, counts]))

Shape letters: N examples, T events, C width of the body, D dimensions of the vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from behavegpt.batch import moved
from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.devices import choose_device
from behavegpt.io import write_json
from behavegpt.profiles.fields import SequenceSettings, Vocabularies, parse_field
from behavegpt.profiles.future.windows import (
    AGES,
    RECENT,
    Cuts,
    CutSettings,
    Examples,
    Past,
    counts,
    cut_histories,
    end_of,
    read_past,
    whole,
)
from behavegpt.profiles.histories import Body, Shape, last_states, mean_states
from behavegpt.profiles.members import Context
from behavegpt.profiles.networks import NetworkSettings, embed_store, fit_network, open_network
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.profiles.task import Task, seeded
from behavegpt.user_embeddings import UserEmbeddings

STATE = "tower.json"
# log counts in each window and ever, and the ages of the newest and the oldest event
COUNTS = len(EVENTS) * (len(RECENT) + 1) + 2


class TowerSettings(NetworkSettings):
    """What the tower reads, and where the history is cut to train it."""

    cut: CutSettings = CutSettings()
    shape: Shape = Shape()
    dimensions: int = Field(128, ge=1, description="width of the vector")

    @field_validator("fields")
    @classmethod
    def _relative(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        absolute = {"day", "week", "time"} & {parse_field(text).name for text in fields}
        if absolute:
            name = sorted(absolute)[0]
            raise ValueError(
                f"{name} tells the date, which no later cut shares; remove it, ages are read "
                "in any case"
            )
        return fields

    @property
    def sequence(self) -> SequenceSettings:
        """Whole histories: an early cut must find its past."""
        needed = tuple(name for name in ("event", "time") if name not in self.names)
        return SequenceSettings(
            fields=(*self.fields, *needed), events=self.events, clients=self.clients
        )


class Tower(nn.Module):
    """Past -> vector."""

    def __init__(self, sizes: dict[str, int], shape: Shape, dimensions: int) -> None:
        """`sizes`: number of ids of each field that is read."""
        super().__init__()
        self.body = Body(sizes | {"age": AGES}, shape)
        inner = 2 * self.body.width + COUNTS
        self.fuse = nn.Sequential(
            nn.Linear(inner, 2 * dimensions),
            nn.GELU(),
            nn.Dropout(shape.dropout),
            nn.Linear(2 * dimensions, dimensions),
            nn.LayerNorm(dimensions),
        )

    def forward(self, pasts: Past) -> Tensor:
        """(N, D)."""
        states, bounds = self.body(pasts.packed), pasts.packed.bounds  # (T, C), (N + 1,)
        parts = [last_states(states, bounds), mean_states(states, bounds), counts(pasts)]
        return self.fuse(torch.cat(parts, dim=1))


# the network, and the mean loss of examples
Trained = tuple[nn.Module, Callable[[Examples], Tensor]]
Maker = Callable[[Tower, SequenceStore, Cuts, torch.device], Trained]


def fit_tower(context: Context, settings: TowerSettings, folder: Path, make: Maker) -> None:
    """Train a tower under what `make` puts on it; writes vocabularies, the tower's weights and the
    history's end."""
    vocabularies = context.vocabularies(settings.sequence)
    store = context.sequences(settings.sequence, vocabularies)
    device = choose_device(context.device)
    now = end_of(store)
    cuts = cut_histories(store, settings.cut, now)

    with seeded(context.seed):
        tower = _tower(settings, vocabularies)
        network, loss = make(tower, store, cuts, device)

    task = cut_task(settings.kind, cuts, network, loss)
    fit_network(context, settings, folder, vocabularies, task, network, kept=tower)
    write_json(folder / STATE, {"now": now})


def cut_task(
    label: str, cuts: Cuts, network: nn.Module, loss: Callable[[Examples], Tensor]
) -> Task:
    """Learning from the clients of `cuts` by the mean `loss` of examples."""

    def objective(rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
        # in training one moment of each client; all of them to judge, one draw is too noisy to
        # stop by
        drawn = [cuts.draw(rows, rng)] if network.training else cuts.all_of(rows)
        sizes = [len(examples.row) for examples in drawn]
        losses = [loss(part) * size for part, size in zip(drawn, sizes, strict=True)]
        return torch.stack(losses).sum(), sum(sizes)

    return Task(label, np.flatnonzero(cuts.usable), objective)


def embed_tower(context: Context, settings: TowerSettings, folder: Path) -> UserEmbeddings:
    """(U, D) float32 of the asked clients with an event: their whole histories, aged at
    `context.at`, or at the end of the fitted history."""
    tower, store = open_network(context, settings, folder, lambda known: _tower(settings, known))
    device = choose_device(context.device)
    fitted = json.loads((folder / STATE).read_text(encoding="utf-8"))["now"]
    now = int(fitted) if context.at is None else context.at

    def encode(rows: np.ndarray) -> Tensor:
        histories = whole(store, rows, now)
        pasts = read_past(store, histories, settings.names, settings.shape.longest)
        return tower(moved(pasts, device))  # (N, D)

    return embed_store(store, settings, encode)


def _tower(settings: TowerSettings, vocabularies: Vocabularies) -> Tower:
    return Tower(
        {name: vocabularies.sizes[name] for name in settings.names},
        settings.shape,
        settings.dimensions,
    )
