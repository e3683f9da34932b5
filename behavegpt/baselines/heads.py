"""How a baseline scores the classes from its hidden state.

Shape letters: N positions, C hidden width, K behaviors, d width of an event's embedding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.config import BaselineConfig
from behavegpt.model.config import SPECIAL_IDS
from behavegpt.model.history import log_shares

# what an encoder tells the head beside the hidden state, each (N, ...)
Side = dict[str, torch.Tensor]


class ScoreHead(nn.Module):
    """score_k = h . e_k + b_k, or cos(h, e_k) / temperature.

    e_k is the class's own vector, or (tied, where the classes are the events) the event's
    embedding; h is mapped to its width where that differs. b_k begins at the log frequency.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.tied = config.tied_scores and config.behavior_is_event
        self.temperature = config.score_temperature if config.score == "cosine" else None
        self.to_event: nn.Linear | None = None

        # an event's embedding is narrower than the hidden state of several fields
        if self.tied and width != config.embedding_size:
            self.to_event = nn.Linear(width, config.embedding_size, bias=False)

        self.classes = None if self.tied else nn.Embedding(config.num_behaviors, width)
        self.bias = nn.Parameter(torch.zeros(config.num_behaviors)) if config.class_bias else None

    def forward(self, hidden: torch.Tensor, side: Side, event_table: torch.Tensor) -> torch.Tensor:
        """hidden (N, C) -> logits (N, K); `event_table` (ids, d) is the events' embedding."""
        return self.biased(self.similarity(hidden, event_table))

    def similarity(self, hidden: torch.Tensor, event_table: torch.Tensor) -> torch.Tensor:
        """hidden (N, C) -> scores (N, K) without the bias."""
        # classes are the events' ids behind the special ones
        # (K, C) or (K, d)
        table = event_table[SPECIAL_IDS:] if self.classes is None else self.classes.weight
        if self.to_event is not None:
            hidden = self.to_event(hidden)
        if self.temperature is None:
            return hidden @ table.T

        # the temperature is in the settings: cosines alone are too flat for a softmax
        return F.normalize(hidden, dim=-1) @ F.normalize(table, dim=-1).T / self.temperature

    def biased(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (N, K) plus the bias, if there is one."""
        return scores if self.bias is None else scores + self.bias

    @torch.no_grad()
    def set_prior(self, counts: torch.Tensor) -> None:
        """Begin at the training frequencies (K,)."""
        if self.bias is not None:
            self.bias.copy_(log_shares(counts))

    def set_progress(self, fraction: float) -> None:
        """Share of training done, told before each training batch."""
