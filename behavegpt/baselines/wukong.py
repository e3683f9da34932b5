"""Wukong (Zhang et al., ICML 2024, arXiv:2403.02545): stacked factorization machines, here over the
last events.

    X_0 (n, d): the field embeddings of the last M events, newest first, and of the mean of the
                whole history
    layer:  LCB(X) = W_L' X                                (n -> n_L rows)
            FMB(X) = reshape(MLP(LN(flatten(X X' Y))))     Y (n, k) learned; n_F rows of width d
            X' = LN(concat(FMB, LCB) + W_r' X)             (n -> n_F + n_L rows; without W_r where
                                                           the numbers agree)
    h = MLP(flatten(X_l))

The original predicts clicks from one impression's features with a sigmoid. Ours: the features are
the user's past (`events` = M; with fewer, zeros) and the softmax is over behaviors, so that it
answers the same question.

Shape letters: B rows, R positions, C hidden width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.config import Settings
from behavegpt.model.output import Encoded


class Options(Settings):
    """Wukong's own."""

    events: int = Field(8, ge=1, description="last events whose fields interact")
    rows: int = Field(
        16, ge=1, description="n_L = n_F: embeddings that each branch of a layer gives on"
    )
    rank: int = Field(24, ge=1, description="k: columns of Y, the compressed interactions")
    inner: int = Field(256, ge=1, description="hidden units of the MLPs")


class WukongLayer(nn.Module):
    """n embeddings of width d -> 2 * rows embeddings."""

    def __init__(self, count: int, width: int, options: Options, eps: float) -> None:
        super().__init__()
        self.rows, self.width = options.rows, width
        self.linear = nn.Linear(count, options.rows, bias=False)
        self.compress = nn.Linear(count, options.rank, bias=False)  # Y
        self.norm = nn.LayerNorm(count * options.rank, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(count * options.rank, options.inner),
            nn.ReLU(),
            nn.Linear(options.inner, options.rows * width),
        )
        self.residual = (
            nn.Linear(count, 2 * options.rows, bias=False)
            if count != 2 * options.rows
            else nn.Identity()
        )
        self.out_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., n, d) -> (..., 2 * rows, d)"""
        across = x.transpose(-1, -2)  # (..., d, n)
        pairs = x @ self.compress(across)  # X X' Y (..., n, k), without making X X'
        machines = self.mlp(self.norm(pairs.flatten(-2))).unflatten(-1, (self.rows, self.width))

        linear = self.linear(across).transpose(-1, -2)
        return self.out_norm(
            torch.cat([machines, linear], dim=-2) + self.residual(across).transpose(-1, -2)
        )


class WukongEncoder(nn.Module):
    """`num_hidden_layers` layers and the MLP to the hidden state."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        options = Options(**(config.options or {}))
        self.events, self.fields = options.events, len(config.field_sizes or ())
        width = config.embedding_size

        # the first layer reads the features, the others what the layer before gives
        counts = [self.fields * (options.events + 1)] + [2 * options.rows] * (
            config.num_hidden_layers - 1
        )
        self.layers = nn.ModuleList(
            [WukongLayer(n, width, options, config.layer_norm_eps) for n in counts]
        )
        self.out = nn.Sequential(
            nn.Linear(2 * options.rows * width, options.inner),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(options.inner, config.hidden_size),
        )

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C)"""
        visible = layout.visible().to(x.dtype)  # (B, R, R)
        mean = (visible @ x) / visible.sum(-1, keepdim=True)  # (B, R, C)

        # (B, R, M + 1, C)
        events = torch.cat([layout.back(x, self.events), mean[:, :, None]], dim=2)
        # split each event's state into its fields' embeddings: n = fields x (M + 1)
        state = events.unflatten(-1, (self.fields, -1)).flatten(2, 3)  # (B, R, n, d)
        for layer in self.layers:
            state = layer(state)
        return Encoded(self.out(state.flatten(2)))
