"""How frequent each class was in training, smoothed, so that none is impossible."""

from __future__ import annotations

import torch


def class_prior(counts: torch.Tensor, pseudo_count: float = 0.5) -> torch.Tensor:
    """Probabilities (K,) of the classes from their training counts (K,).

    >>> class_prior(torch.tensor([3, 0, 5])).tolist()
    [0.3684210479259491, 0.05263157933950424, 0.5789473652839661]
    """
    smoothed = counts + pseudo_count
    return smoothed / smoothed.sum()
