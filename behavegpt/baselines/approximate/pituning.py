"""PITuning-like (after PITuning, KDD 2024): its first stage; named "like" because only its abstract
was at hand.

    logits = MLP(h)_k + log T[e_t, k]
             T: learned transitions from the current event, begun at the counts
                (n_ek + w p_k) / (n_e + w), w = PSEUDO events
    loss = CE(behavior) + .5 * sum of CE over the reconstructed fields of the next event
           (`next_heads`)

Not reproduced: the language model's weights (ours are BehaveGPT's blocks from scratch), the
distillation to a small device model, and the third stage, which unlearns the population's
preferences for each user and tunes on the user's own data: every model of the table here is one
model for all users.

Shape letters: B rows, R positions, N predicted positions, C hidden width, K behaviors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.backbone import BackboneEncoder
from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.heads import ScoreHead, Side
from behavegpt.baselines.layout import Layout
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import ConfigError
from behavegpt.model.history import class_prior
from behavegpt.model.output import Encoded

PSEUDO = 10.0
CELLS = 50_000_000  # of T
# where the data have them and they are not the behavior itself
RECONSTRUCTED = ("event", "location", "slot")
WEIGHT = 0.5


class PITuningEncoder(nn.Module):
    """The blocks, and the current event for the head."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.backbone = BackboneEncoder(config)

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C), and the event ids (B, R) beside it."""
        return Encoded(self.backbone(x, layout).hidden, {"event": layout.ids["event"]})


class PITuningHead(ScoreHead):
    """MLP plus transitions."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        events, width = (config.field_sizes or {})["event"], config.hidden_size
        if events * config.num_behaviors > CELLS:
            raise ConfigError(
                f"pituning_like keeps a table of {events:,} events x {config.num_behaviors:,} "
                f"behaviors; the most is {CELLS:,} cells. Take another baseline, or coarser labels."
            )

        self.dense = nn.Linear(width, width)
        self.transitions = nn.Embedding(events, config.num_behaviors)

    def forward(self, hidden: torch.Tensor, side: Side, event_table: torch.Tensor) -> torch.Tensor:
        """hidden (N, C), side["event"] (N,) -> logits (N, K)"""
        scores = super().forward(F.gelu(self.dense(hidden)), side, event_table)
        return scores + self.transitions(side["event"])

    def set_prior(self, counts: torch.Tensor) -> None:
        """The transitions hold the frequencies."""


def start(model: Any, store: EventStore) -> None:
    """Begin at the training counts of what followed each event."""
    rows = target_rows(store, TRAIN)
    table = model.head.transitions.weight

    events, classes = table.shape
    before = store.column("event")[rows - 1].astype(np.int64)  # (rows,) the current event
    after = store.column("behavior")[rows].astype(np.int64)  # (rows,) what followed it
    key = before * classes + after
    counts = np.bincount(key - FIRST, minlength=events * classes).reshape(events, classes)
    prior = class_prior(torch.tensor(store.behaviors.counts))  # (K,)
    seen = torch.from_numpy(counts).float()

    # smoothed towards the class frequencies by PSEUDO events of each row
    table.data.copy_(((seen + PSEUDO * prior) / (seen.sum(1, keepdim=True) + PSEUDO)).log())
