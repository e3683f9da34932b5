"""AdamW and the learning-rate schedule, a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], fused: bool
) -> torch.optim.AdamW:
    """AdamW (Adam, as in the paper, when weight_decay is 0); decay on matrices only, not on biases
    and norms."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=fused)


def learning_rate(
    step: int, steps: int, *, lr: float, warmup: float, floor: float, schedule: str
) -> float:
    """Learning rate of a step in [0, steps): linear warm-up over a share of the steps, then down to
    floor * lr."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return lr * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    shape = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
    }[schedule]
    return lr * (floor + (1 - floor) * shape)
