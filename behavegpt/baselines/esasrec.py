"""eSASRec-style (RecTools, RecSys 2025): SASRec's shifted-sequence training with LiGR blocks and
sampled softmax.

    x = sqrt(C) e + p_t
    y  = x + sigmoid(x W_g) * dropout(attention(LN(x)))            causal, within the history
    x' = y + sigmoid(y W_f) * dropout(W_o (silu(LN(y) W_a) * LN(y) W_b))
    score_k = LN(x_L) . e_k

Named "style": the gates follow the published description of LiGR (gated residual branches), the
inner network is SwiGLU; widths and negatives are the project's settings, not the original's. Loss:
sampled_softmax, 128 negatives.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.sasrec import SASRecAttention, SASRecEncoder
from behavegpt.model.attention import AttentionPlan


class LiGRBlock(nn.Module):
    """Pre-norm attention and SwiGLU, each let in by a gate that looks at the residual stream."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size or config.hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = SASRecAttention(width, config.num_attention_heads)
        self.attention_out = nn.Linear(width, width)
        self.attention_gate = nn.Linear(width, width)
        self.mlp_gate = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, inner, bias=False)
        self.mlp_side = nn.Linear(width, inner, bias=False)
        self.mlp_out = nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """x (B, R, C) -> (B, R, C)"""
        normed = self.attention_norm(x)  # (B, R, C)
        seen = self.attention_out(self.attention(normed, normed, plan))  # (B, R, C)

        # the gates read the residual stream, not what they let in
        y = x + self.attention_gate(x).sigmoid() * self.dropout(seen)

        normed = self.mlp_norm(y)
        inner = F.silu(self.mlp_in(normed)) * self.mlp_side(normed)  # SwiGLU, (B, R, inner)
        return y + self.mlp_gate(y).sigmoid() * self.dropout(self.mlp_out(inner))


class ESASRecEncoder(SASRecEncoder):
    """SASRec's encoder with other blocks."""

    BLOCK = LiGRBlock
