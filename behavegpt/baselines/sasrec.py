"""SASRec (Kang and McAuley, ICDM 2018): self-attentive sequential recommendation.

    x = sqrt(C) e + p_t      e: embedded event, p: learned position
    q = LN(x)
    y = q + dropout(softmax(q W_q (x W_k)' / sqrt(D)) x W_v)      causal, within the history
    z = LN(y)
    x' = z + dropout(W_2 dropout(relu(W_1 z)))      inner width C
    score_k = LN(x_L) . e_k

The original's loss is binary cross-entropy with one uniform negative (loss.name=binary_negatives);
full cross-entropy makes it far stronger, as others have found. Ours: four fields side by side as x,
no l2 penalty, dropout on attention weights left out; the original's e_k are the input embeddings
(`tied_scores`).

Shape letters: B rows, R positions, H heads, C hidden width, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.model.attention import AttentionPlan, attend, by_head, plan_attention
from behavegpt.model.output import Encoded


class SASRecAttention(nn.Module):
    """Multi-head attention whose queries alone are normalized."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, q: torch.Tensor, x: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Queries q and the events x they look at, (B, R, C) each -> (B, R, C)."""
        query = by_head(self.query(q), self.heads)  # (B, H, R, D)
        key, value = by_head(self.key(x), self.heads), by_head(self.value(x), self.heads)
        return attend(query, key, value, plan).transpose(1, 2).flatten(2)  # (B, R, C)


class SASRecBlock(nn.Module):
    """One block; the residual starts from the normalized input, as in the original."""

    def __init__(self, config: BaselineConfig, width: int | None = None) -> None:
        super().__init__()
        width = width or config.hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SASRecAttention(width, config.num_attention_heads)
        self.mlp_in = nn.Linear(width, config.intermediate_size or width)
        self.mlp_out = nn.Linear(config.intermediate_size or width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """x (B, R, C) -> (B, R, C)"""
        q = self.attention_norm(x)  # the residual is the normalized input
        z = self.mlp_norm(q + self.dropout(self.attention(q, x, plan)))  # (B, R, C)
        return z + self.dropout(self.mlp_out(self.dropout(self.mlp_in(z).relu())))


class SASRecEncoder(nn.Module):
    """The blocks and the final norm; positions and the factor sqrt(C) belong to the embedding."""

    BLOCK: Callable[[BaselineConfig], nn.Module] = SASRecBlock

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        make = type(self).BLOCK
        self.blocks = nn.ModuleList([make(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C)"""
        plan = plan_attention(layout.document, self.config._attn_implementation or "sdpa")
        for block in self.blocks:
            x = block(x, plan)
        return Encoded(self.norm(x))
