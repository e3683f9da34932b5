"""CDN (cross decoupling network, KDD 2023), as a head on SASRec's encoder.

    item side   y_i = g_0 MLP_0(id_i) + sum over j of g_j MLP_j(content_i)
                g = softmax(W f_i)
                f_i: log frequency of the class, its square, its rank: frequent ones memorize, rare
                     ones generalize
    user side   u = a f_main(h) + (1 - a) f_balanced(h)
                a = 1 - (t / (spread T))^2, its last value afterwards
    score_i = u . y_i + b_i

Trained on the data and a class-balanced draw of it (loss.name=two_distributions, same `spread`).
Written from the abstract and a public configuration. Approximations: `content_i` is the class's
cluster by co-occurrence, as logs hold no item features; the second draw is its expectation, by
weights; b_i.

Shape letters: N positions, K behaviors, C hidden width, E generalization experts.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.cooccurrence import clusters, label_vectors
from behavegpt.baselines.heads import ScoreHead, Side
from behavegpt.config import Settings
from behavegpt.data.store import EventStore
from behavegpt.losses.by_frequency import own_share

FEATURES = 3
VECTOR = 64


class Options(Settings):
    """CDN's own."""

    experts: int = Field(3, ge=1, description="generalization experts")
    spread: float = Field(
        2.0, gt=1, description="as loss.spread: the balanced branch ends at 1 / spread^2"
    )


class CDNHead(ScoreHead):
    """Mixture of experts for the classes, two branches for the user."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        options = Options(**(config.options or {}))
        width, classes = config.hidden_size, config.num_behaviors
        self.spread = options.spread
        self.content = nn.Embedding(cluster_count(classes), width)

        # expert 0 memorizes: it alone reads the class's own vector
        self.experts = nn.ModuleList([_mlp(width) for _ in range(1 + options.experts)])
        self.gate = nn.Linear(FEATURES, 1 + options.experts)
        self.main, self.balanced = _mlp(width), _mlp(width)
        self.own: torch.Tensor
        self.cluster: torch.Tensor
        self.frequency: torch.Tensor
        self.register_buffer("own", torch.ones(()))  # a
        self.register_buffer("cluster", torch.zeros(classes, dtype=torch.long))
        self.register_buffer("frequency", torch.zeros(classes, FEATURES))

    def forward(self, hidden: torch.Tensor, side: Side, event_table: torch.Tensor) -> torch.Tensor:
        """hidden (N, C) -> logits (N, K)"""
        user = self.own * self.main(hidden) + (1 - self.own) * self.balanced(hidden)  # (N, C)
        return self.biased(user @ self.class_vectors().T)

    def class_vectors(self) -> torch.Tensor:
        """y (K, C)."""
        assert self.classes is not None
        content = self.content(self.cluster)  # (K, C)
        given = [self.classes.weight, *[content] * (len(self.experts) - 1)]

        # (K, 1+E, C)
        each = torch.stack(
            [expert(x) for expert, x in zip(self.experts, given, strict=True)], dim=1
        )

        # the gate sees how frequent a class is: rare ones lean on the experts of their cluster
        return (self.gate(self.frequency).softmax(-1)[..., None] * each).sum(1)

    def set_progress(self, fraction: float) -> None:
        """The share of the main branch."""
        self.own.fill_(own_share(fraction, self.spread))


def start(model: Any, store: EventStore) -> None:
    """Frequency features and clusters of the classes."""
    counts = torch.tensor(store.behaviors.counts, dtype=torch.float32)
    log = counts.log1p() / counts.max().log1p()  # (K,), 0 to 1

    # 0 for the most frequent
    rank = counts.argsort(descending=True, stable=True).argsort() / len(counts)
    model.head.frequency.copy_(torch.stack([log, log**2, rank], dim=1))
    model.head.cluster.copy_(
        clusters(label_vectors(store, "behavior", VECTOR), cluster_count(len(counts)))
    )


def cluster_count(classes: int) -> int:
    """As many clusters as classes in each, on average."""
    return max(1, round(classes**0.5))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
