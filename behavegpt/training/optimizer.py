"""AdamW and the learning-rate schedule, a pure function of the step."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import nn

from behavegpt.training.settings import TrainSettings

MIXER = "memory.mixer."  # in the names of the parameters that `train.mixer_lr` is for


def build_optimizer(model: nn.Module, settings: TrainSettings, *, fused: bool) -> torch.optim.AdamW:
    """AdamW (Adam, as in the paper, when weight_decay is 0); decay on matrices only, not on biases
    and norms.

    A group's `scale` is what its learning rate is multiplied by: the mixer of a memory, shared by
    all classes, bears a larger one than a network whose embeddings see each class a few times.
    """
    scales = {False: 1.0, True: (settings.mixer_lr or settings.lr) / settings.lr}

    # (is of the mixer, is a matrix) -> parameters
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds[MIXER in name, parameter.ndim >= 2].append(parameter)

    # in a fixed order, whatever the order of the modules
    groups = [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if is_matrix else 0.0,
            "scale": scales[is_mixer],
        }
        for (is_mixer, is_matrix), parameters in sorted(kinds.items(), key=_matrices_first)
    ]

    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)


def _matrices_first(item: tuple[tuple[bool, bool], list[nn.Parameter]]) -> tuple[bool, bool]:
    # sorted() puts False first: the network before the mixer, matrices before biases and norms
    (is_mixer, is_matrix), _ = item
    return is_mixer, not is_matrix


def learning_rate(
    step: int, steps: int, *, lr: float, warmup: float, floor: float, schedule: str
) -> float:
    """Learning rate of a step in [0, steps): linear warm-up over a share of the steps, then down to
    floor * lr."""
    warm = max(1, round(warmup * steps))

    # (step + 1): the first step already moves the weights
    if step < warm:
        return lr * (step + 1) / warm

    # share of the way down, in [0, 1)
    done = (step - warm) / max(1, steps - warm)

    shape = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
    }[schedule]
    return lr * (floor + (1 - floor) * shape)
