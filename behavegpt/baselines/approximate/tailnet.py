"""TailNet (RecSys 2020): a gate that shifts the scores between head and tail classes, by the user's
taste for either.

    v_1 .. v_t = GRU(x)
    k_j: type embedding of event j, head (top fifth of the classes by count) or tail
    f_tj = sigmoid(W_1 v_t + W_2 [v_j; k_j] + c)      j <= t, within the history
    s = mean over j of (q . f_tj) v_j      R_tail = sigmoid(w . s)      R_head = 1 - R_tail
    S = W [v_t; mean over j of (q' . f_tj) v_j]
    score_i = S . e_i * (R_tail if i is tail, else R_head) + b_i      gate: multiply
    score_i = S . e_i + log(R_tail or R_head) + b_i      gate: add; ours, as scores may be negative

Written from the abstract and memory of the formulas. Ours: means for sums (histories are longer
than sessions), one f for both attentions, of a smaller width (`attention`), b_i.

Shape letters: B rows, R positions, C hidden width, A width of f, N predicted positions, K
behaviors.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.gru import run_gru
from behavegpt.baselines.heads import ScoreHead, Side
from behavegpt.baselines.layout import Layout
from behavegpt.config import Settings
from behavegpt.data.store import EventStore
from behavegpt.model.config import SPECIAL_IDS
from behavegpt.model.output import Encoded

HEAD_SHARE = 0.2


class Options(Settings):
    """TailNet's own."""

    gate: Literal["multiply", "add"] = Field(
        "multiply", description="how R enters the scores; multiply: the paper's"
    )
    attention: int = Field(16, ge=1, description="width of f")


class TailNetEncoder(nn.Module):
    """GRU, and attention over its states."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        options, width = Options(**(config.options or {})), config.hidden_size
        self.column = "event" if config.behavior_is_event else "behavior"
        self.gru = nn.GRU(width, width, batch_first=True)
        self.types = nn.Embedding(2, width)
        self.now = nn.Linear(width, options.attention)  # W_1, c
        self.past = nn.Linear(2 * width, options.attention, bias=False)  # W_2
        self.weights = nn.Linear(options.attention, 2, bias=False)  # q, q'
        self.preference = nn.Linear(width, 1, bias=False)  # w
        self.out = nn.Linear(2 * width, width)  # W
        self.dropout = nn.Dropout(config.dropout)
        self.tail: torch.Tensor  # of each behavior id; padding and unknown are head
        self.register_buffer(
            "tail", torch.zeros(config.num_behaviors + SPECIAL_IDS, dtype=torch.long)
        )

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> S (B, R, C), and R_tail (B, R, 1) beside it."""
        v = self.dropout(run_gru(self.gru, x, layout))  # (B, R, C)
        # (B, R, C + C) -> (B, R, A)
        keys = self.past(torch.cat([v, self.types(self.tail[layout.ids[self.column]])], dim=-1))
        features = (self.now(v)[:, :, None] + keys[:, None]).sigmoid()  # (B, R, R, A)
        visible = layout.visible()

        # means over the visible past: histories are longer than the original's sessions
        # (B, R, R, 2)
        weight = self.weights(features) * visible[..., None] / visible.sum(-1)[:, :, None, None]
        s, session = weight[..., 0] @ v, weight[..., 1] @ v  # (B, R, C) each

        score = self.out(torch.cat([v, session], dim=-1))  # S
        return Encoded(score, {"tail": self.preference(s).sigmoid()})


class TailNetHead(ScoreHead):
    """ScoreHead under the gate."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.multiply = Options(**(config.options or {})).gate == "multiply"
        self.is_tail: torch.Tensor
        self.register_buffer("is_tail", torch.zeros(config.num_behaviors, dtype=torch.bool))

    def forward(self, hidden: torch.Tensor, side: Side, event_table: torch.Tensor) -> torch.Tensor:
        """hidden (N, C), side["tail"] (N, 1) -> logits (N, K)"""
        scores = self.similarity(hidden, event_table)  # (N, K)
        # every class is shifted by the user's taste for its group
        gate = torch.where(self.is_tail, side["tail"], 1 - side["tail"])  # (N, K)
        return self.biased(scores * gate if self.multiply else scores + gate.clamp(min=1e-6).log())


def start(model: Any, store: EventStore) -> None:
    """Tell head from tail by the training counts."""
    counts = torch.tensor(store.behaviors.counts)

    is_tail = torch.ones(len(counts), dtype=torch.bool)
    frequent = counts.argsort(descending=True, stable=True)
    is_tail[frequent[: max(1, round(HEAD_SHARE * len(counts)))]] = False

    model.head.is_tail.copy_(is_tail)
    model.model.encoder.tail[SPECIAL_IDS:] = is_tail.long()
