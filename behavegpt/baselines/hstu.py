"""HSTU (Zhai et al., ICML 2024, arXiv:2402.17152): sequential transduction without softmax.

    x^ = LN(x)      [u, v, q, k] = silu(x^ W)
    A_ij = silu(q_i . k_j + b_pos[i - j] + b_time[bucket(t_i - t_j)]) / N
           for j <= i of the same history, else 0
    x' = x + W_o dropout(u * LN(A v))      no feed-forward layer; both LN without parameters
    bucket(s) = min(floor(ln(max(|s|, 1)) / 0.301), 128)      N = max_length, s in seconds

Inputs are sqrt(C) e + p_t; scores are cosines over a temperature of .05, after the paper's sampled
softmax with 128 negatives (`score: cosine`, loss.name=sampled_softmax); the preset says which is
used. The public code gives the query the time of the event to predict, t_{i+1}. The paper's task
hides it, so `target_time` is `hidden` (t_i) by default; `known` is there for comparison and leaks
that time, and that time alone.

Shape letters: B rows, R positions, C hidden width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.config import Settings
from behavegpt.model.attention import by_head
from behavegpt.model.output import Encoded

BUCKETS = 128
BASE = 0.301


class Options(Settings):
    """HSTU's own."""

    target_time: Literal["hidden", "known"] = Field(
        "hidden", description="whether the query sees the target's time"
    )


class HSTUBlock(nn.Module):
    """Gated attention with pointwise SiLU weights; d_qk = d_v = C / heads."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.longest = config.max_length
        self.parts = nn.Linear(width, 4 * width, bias=False)  # u, v, q, k
        self.out = nn.Linear(width, width)
        self.position_bias = nn.Embedding(config.max_length, 1)  # by i - j
        self.time_bias = nn.Embedding(BUCKETS + 1, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, visible: torch.Tensor, ago: torch.Tensor, bucket: torch.Tensor
    ) -> torch.Tensor:
        """x (B, R, C) -> (B, R, C); `visible`, `ago` (events), `bucket` (of time): (B, R, R), query
        by key."""
        width = x.shape[-1]
        # (B, R, C) each
        u, v, q, k = F.silu(self.parts(F.layer_norm(x, (width,), eps=self.eps))).chunk(4, dim=-1)

        # (B, H, R, C / H)
        v, q, k = by_head(v, self.heads), by_head(q, self.heads), by_head(k, self.heads)
        bias = self.position_bias(ago)[..., 0] + self.time_bias(bucket)[..., 0]  # (B, R, R)

        # pointwise SiLU in place of the softmax: divided by a constant, so that many similar events
        # add up
        # (B, H, R, R)
        weight = F.silu(q @ k.transpose(-1, -2) + bias[:, None]) / self.longest * visible[:, None]
        seen = (weight @ v).transpose(1, 2).flatten(2)  # (B, R, C)

        return x + self.out(self.dropout(u * F.layer_norm(seen, (width,), eps=self.eps)))


class HSTUEncoder(nn.Module):
    """`num_hidden_layers` blocks."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.known = Options(**(config.options or {})).target_time == "known"
        self.longest = config.max_length
        self.blocks = nn.ModuleList([HSTUBlock(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C); reads the column `time`, in seconds."""
        time, position = layout.ids["time"], layout.position
        # the query's own time: its successor's would tell when the target happens
        asked = following(time, layout.document) if self.known else time  # (B, R)
        bucket = time_bucket(asked[:, :, None] - time[:, None])  # (B, R, R)
        ago = (position[:, :, None] - position[:, None]).clamp(0, self.longest - 1)  # (B, R, R)

        visible = layout.visible()
        for block in self.blocks:
            x = block(x, visible, ago, bucket)
        return Encoded(x)


def time_bucket(seconds: torch.Tensor) -> torch.Tensor:
    """Bucket of a time difference, any shape, int64.

    >>> time_bucket(torch.tensor([0, 1, 2, -60, 86400, 10**15])).tolist()
    [0, 0, 2, 13, 37, 114]
    """
    # double: float32 is too coarse for seconds since 1970
    return (seconds.abs().clamp(min=1).double().log() / BASE).floor().clamp(max=BUCKETS).long()


def following(time: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    """Time (B, R) of each event's successor in its history; the last one's own."""
    later = torch.cat([time[:, 1:], time[:, -1:]], dim=1)
    same = torch.zeros_like(document, dtype=torch.bool)
    same[:, :-1] = document[:, 1:] == document[:, :-1]
    return torch.where(same, later, time)
