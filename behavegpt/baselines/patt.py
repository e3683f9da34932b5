"""PAtt (KDD 2024): attention weights from determinantal point processes over pairs of events.

    S = (x W_q)^2, elementwise      K = S S'
    det_ij = (K_ii + e)(K_jj + e) - K_ij^2, e = 1e-5
             the pair's determinant, small for events that are alike
    P_ij = det_ij / sum over a < b <= i of det_ab      i != j, within the history
    a_i = softmax over j <= i of -(P_ij, or K_ii at j = i) / sqrt(C)
    y = LN(x + dropout(W_o sum_j a_ij x_j))
    x' = LN(y + dropout(MLP(y)))      GELU, inner width 4 C

Written from the formulas; the public code is under the GPL and was not used. Ours: the normalizer
runs over the past of each query only (theirs sums over the whole window, so later events change
earlier weights); the optional kernel of categories and its loss are left out. The original trains
with one negative (loss.name=binary_negatives).

Shape letters: B rows, R positions, C hidden width.
"""

from __future__ import annotations

import torch
from torch import nn

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.model.output import Encoded

JITTER = 1e-5


def pair_logits(similar: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """-(P + diag K) (B, R, R) of kernels K (B, R, R) and what is visible (B, R, R); finite
    everywhere."""
    own = similar.diagonal(dim1=-2, dim2=-1) + JITTER  # (B, R)
    pair = own[:, :, None] * own[:, None] - similar**2  # (B, R, R)

    # (B, R, R), a < b
    earlier = visible & ~torch.eye(similar.shape[-1], dtype=torch.bool, device=similar.device)
    fresh = (pair * earlier).sum(-1)  # determinants of pairs whose later event is the row's

    # (B, R, 1) of all pairs up to the row's
    total = (visible.to(fresh.dtype) @ fresh[..., None]).clamp(min=JITTER)

    return -torch.where(earlier, pair / total, 0.0) - torch.diag_embed(own - JITTER)


class PAttBlock(nn.Module):
    """One layer, one head."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_in, self.mlp_out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """x (B, R, C), visible (B, R, R) -> (B, R, C)"""
        squared = self.query(x).float() ** 2
        # determinants of alike events are small differences
        with torch.autocast(x.device.type, enabled=False):
            logits = pair_logits(squared @ squared.transpose(-1, -2), visible) / x.shape[-1] ** 0.5
        weight = logits.masked_fill(~visible, torch.finfo(logits.dtype).min).softmax(-1)
        y = self.attention_norm(x + self.dropout(self.out(weight.to(x.dtype) @ x)))
        return self.mlp_norm(y + self.dropout(self.mlp_out(nn.functional.gelu(self.mlp_in(y)))))


class PAttEncoder(nn.Module):
    """`num_hidden_layers` layers; the original has one."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([PAttBlock(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C)"""
        visible = layout.visible()
        for block in self.blocks:
            x = block(x, visible)
        return Encoded(x)
