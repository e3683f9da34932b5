"""BehaveGPT's blocks as a baseline's encoder, optionally with AdaptFormer's branches (Chen et al.
2022).

branch: x + scale * W_up relu(W_down LN(x)), beside the block's MLP; W_up begins at 0
"""

from __future__ import annotations

import torch
from torch import nn

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.model.attention import AttentionPlan, plan_attention
from behavegpt.model.block import BehaveGPTBlock, Pair, rope_tables
from behavegpt.model.output import Encoded


class Branch(nn.Module):
    """A narrow MLP beside a frozen one."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        # one learned scale, as in AdaptFormer
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, R, C) -> what is added to it, (B, R, C)"""
        return self.scale * self.up(self.down(self.norm(x)).relu())


class BackboneEncoder(nn.Module):
    """The blocks and the final norm, named as in BehaveGPTModel; `branch` 0: without branches."""

    def __init__(self, config: BaselineConfig, branch: int = 0) -> None:
        super().__init__()
        self.config = config
        layers, width = config.num_hidden_layers, config.hidden_size
        self.blocks = nn.ModuleList([BehaveGPTBlock(config) for _ in range(layers)])
        self.branches = nn.ModuleList(
            [Branch(width, branch, config.layer_norm_eps) for _ in range(layers if branch else 0)]
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C)"""
        config = self.config
        plan = plan_attention(layout.document, config._attn_implementation or "sdpa")

        rope = None

        if config.position_encoding == "rope":
            rope = rope_tables(
                layout.position, config.hidden_size // config.num_attention_heads, x.dtype
            )

        # without branches each block runs as it is
        branches: list[nn.Module | None] = (
            [*self.branches] if len(self.branches) else [None] * len(self.blocks)
        )
        for block, branch in zip(self.blocks, branches, strict=True):
            assert isinstance(block, BehaveGPTBlock)
            x = (
                block(x, plan, rope)
                if branch is None
                else _with_branch(block, branch, x, plan, rope)
            )

        return Encoded(self.norm(x))


def _with_branch(
    block: BehaveGPTBlock,
    branch: nn.Module,
    x: torch.Tensor,
    plan: AttentionPlan,
    rope: Pair | None,
) -> torch.Tensor:
    """BehaveGPTBlock.forward with the branch beside its MLP."""
    x = x + block.dropout(block.attention(block.attention_norm(x), plan, rope))  # (B, R, C)
    inner = block.mlp_out(block.activation(block.mlp_in(block.mlp_norm(x))))  # (B, R, C), frozen
    # the branch reads the residual stream as the MLP does and is added beside it
    return x + block.dropout(inner) + branch(x)
