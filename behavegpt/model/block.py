"""One transformer block: pre-norm causal self-attention and MLP, GPT-2's arithmetic (Radford et al.
2019).

Shape letters: B rows, R positions, C hidden width, H heads, D = C / H.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from behavegpt.model.attention import AttentionPlan, attend, by_head
from behavegpt.model.config import BehaveGPTConfig

Pair = tuple[torch.Tensor, torch.Tensor]


class ResidualLinear(nn.Linear):
    """A linear layer whose output is added to the residual stream; it is initialised smaller."""


class BehaveGPTAttention(nn.Module):
    """Multi-head self-attention within each history."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = ResidualLinear(width, width)

    def forward(
        self,
        x: torch.Tensor,
        plan: AttentionPlan,
        rope: Pair | None,
        remember: Callable[..., Pair] | None = None,
    ) -> torch.Tensor:
        """x (B, R, C) -> (B, R, C); `rope` = cos, sin of the positions, each (B, 1, R, D).

        `remember` takes the new keys and values (B, H, R, D) and returns those to attend to, (B, H,
        S, D).
        """
        q = by_head(self.q_proj(x), self.heads)  # (B, H, R, D)
        k = by_head(self.k_proj(x), self.heads)
        v = by_head(self.v_proj(x), self.heads)

        if rope is not None:
            # under autocast q is bf16 and the tables float32: the product would widen q again
            cos, sin = rope[0].to(q.dtype), rope[1].to(q.dtype)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        # with a cache: the keys and values of the past, the new ones behind them
        if remember is not None:
            k, v = remember(k, v)

        # the heads side by side again, (B, R, C)
        return self.o_proj(attend(q, k, v, plan).transpose(1, 2).flatten(2))


class BehaveGPTBlock(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size

        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = BehaveGPTAttention(config)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_in = nn.Linear(width, inner)
        self.mlp_out = ResidualLinear(inner, width)
        self.activation = nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        plan: AttentionPlan,
        rope: Pair | None,
        remember: Callable[..., Pair] | None = None,
    ) -> torch.Tensor:
        """x (B, R, C) -> (B, R, C)"""
        x = x + self.dropout(self.attention(self.attention_norm(x), plan, rope, remember))
        return x + self.dropout(self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x)))))


def rope_tables(position: torch.Tensor, width: int, dtype: torch.dtype) -> Pair:
    """cos and sin, each (B, 1, R, D), of rotary position encoding (Su et al. 2021) for positions
    (B, R).

    Made anew in each forward: a buffer that is not saved would come back from `from_pretrained`
    uninitialised.
    """
    index = torch.arange(0, width, 2, device=position.device, dtype=torch.float32)  # (D / 2,)
    angle = position[..., None].float() * 10000.0 ** (-index / width)  # (B, R, D / 2)
    # twice the same angles: `rotate` pairs feature i with i + D/2. One more axis, for the heads
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + D/2) of x (B, H, R, D) by their angles."""
    first, second = x.chunk(2, dim=-1)  # each (B, H, R, D / 2)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
