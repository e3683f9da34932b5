"""Vectors learned by telling one's own future from others': the past's tower against the next
window's, InfoNCE.

    contrastive: {kind: contrastive, fields: [event, category, price, "sku:5000", "url:5000"],
                  cut: {horizon: 14}}

In a batch of pasts and futures, cosine(past n, future m) / temperature is the logit that m is n's
future; both ways of asking count half. The future's tower is the mean of its events' embeddings and
an MLP: no times, so that what is bought and looked at must tell. A past without a future takes no
part in this; whether there is one is a task beside it. A batch has each client once, so nobody's
other future is a negative.

Shape letters: N examples, D dimensions, P of the projections, T events of the futures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.batch import moved
from behavegpt.profiles.future.tower import Tower, TowerSettings, Trained, fit_tower
from behavegpt.profiles.future.windows import Cuts, Examples, Past, read_past
from behavegpt.profiles.histories import mean_states
from behavegpt.profiles.members import Context
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.ragged import ranges

PROJECTED = 128  # width in which pasts and futures are compared


class ContrastiveSettings(TowerSettings):
    """The loss."""

    kind: Literal["contrastive"] = "contrastive"
    temperature: float = Field(0.1, gt=0)
    empty_weight: float = Field(
        0.3, ge=0, description="of telling whether there is a future at all"
    )


def fit(context: Context, settings: ContrastiveSettings, folder: Path) -> None:
    """Train the past's tower against the future's; the latter is not kept."""

    def make(tower: Tower, store: SequenceStore, cuts: Cuts, device: torch.device) -> Trained:
        sizes = {name: store.sizes[name] for name in settings.names}
        network = Contrast(tower, sizes, settings).to(device)

        def loss(examples: Examples) -> Tensor:
            pasts = read_past(store, examples, settings.names, settings.shape.longest)
            futures = read_futures(store, examples, settings.names)
            return network(*moved((pasts, futures), device))

        return network, loss

    fit_tower(context, settings, folder, make)


class Futures(NamedTuple):
    """The futures of N examples."""

    ids: dict[str, Tensor]  # field -> (T,) int64
    bounds: Tensor  # (N + 1,) int64


def read_futures(store: SequenceStore, examples: Examples, fields: tuple[str, ...]) -> Futures:
    """The events from each cut to its horizon."""
    lengths = examples.end - examples.stop  # (N,)
    source = ranges(examples.stop, lengths)  # (T,)
    ids = {name: torch.from_numpy(store.columns[name][source].astype(np.int64)) for name in fields}
    return Futures(ids, torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])))


class Contrast(nn.Module):
    """Two towers, the projections that are compared, and the head for an empty future."""

    def __init__(self, tower: Tower, sizes: dict[str, int], settings: ContrastiveSettings) -> None:
        super().__init__()
        dimensions = settings.dimensions
        self.tower = tower
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size, dimensions) for name, size in sizes.items()}
        )
        self.future = nn.Sequential(
            nn.LayerNorm(dimensions),
            nn.Linear(dimensions, 2 * dimensions),
            nn.GELU(),
            nn.Linear(2 * dimensions, PROJECTED),
        )

        self.project = nn.Linear(dimensions, PROJECTED)
        self.empty = nn.Linear(dimensions, 1)
        self.temperature, self.empty_weight = settings.temperature, settings.empty_weight

    def forward(self, pasts: Past, futures: Futures) -> Tensor:
        """InfoNCE over the examples with a future, plus the weighted loss of telling which have
        none."""
        vectors = self.tower(pasts)  # (N, D)
        there = futures.bounds.diff() > 0

        # a churn task: it is what pasts without a future are learned from
        loss = self.empty_weight * F.binary_cross_entropy_with_logits(
            self.empty(vectors)[:, 0], (~there).float()
        )

        if there.sum() > 1:
            # a single pair has no negative: its loss is 0 whatever the vectors are
            embedded = torch.stack(
                [table(futures.ids[name]) for name, table in self.tables.items()]
            ).sum(0)
            theirs = self.future(mean_states(embedded, futures.bounds)[there])
            loss = loss + info_nce(self.project(vectors[there]), theirs, self.temperature)

        return loss


def info_nce(past: Tensor, future: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax of the own pair's cosine over pasts (N, P) and futures (N, P), both
    ways."""
    logits = F.normalize(past, dim=1) @ F.normalize(future, dim=1).T / temperature  # (N, N) cosines
    own = torch.arange(len(logits), device=logits.device)  # pair n is on the diagonal
    # both ways: futures for a past, and pasts for a future
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
