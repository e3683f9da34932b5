"""Losses for long-tailed classes that DRO is compared with, each from its paper's formula.

N events, K classes, n_b training events of class b. Counts below 1 are read as 1, which keeps every
loss finite.
"""

from __future__ import annotations

import math
from typing import Self

import torch

from behavegpt.losses.base import Loss


def class_balanced_weight(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """1 / (1 - beta^n_b) (Cui et al. 2019), scaled to average 1 over the training events: (K,) ->
    (K,) float64.

    A class without training events has weight 0.

    >>> class_balanced_weight(torch.tensor([90.0, 10.0, 0.0]), beta=0.5).round(decimals=3).tolist()
    [1.0, 1.001, 0.0]
    """
    counts = counts.double()

    # expm1, as 1 - beta^n loses its digits where n (1 - beta) is small
    weight = -1.0 / torch.expm1(counts.clamp(min=1) * math.log(beta)) * (counts > 0)

    # sum_b n_b w_b = sum_b n_b: the mean loss keeps its size, and the learning rate its meaning
    return weight * counts.sum() / (weight * counts).sum()


class LogitAdjustment(Loss):
    """Cross-entropy of logits + tau log pi (Menon et al. 2021); tau = 1 is balanced softmax (Ren et
    al. 2020).

    Only the loss sees the shift: predictions use the logits as they are, and so favor the classes
    less by frequency.
    """

    def __init__(self, counts: torch.Tensor, tau: float = 1.0) -> None:
        super().__init__(counts)

        seen = self.counts.clamp(min=1)
        # log pi of the prior over the classes, floored at one event
        self.shift = (tau * (seen / seen.sum()).log()).float()  # (K,)

    def to(self, device: torch.device | str) -> Self:
        """Move weights and shift."""
        self.shift = self.shift.to(device)
        return super().to(device)

    def per_event(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits (N, K), target (N,) -> (N,) float32."""
        return super().per_event(logits.float() + self.shift, target)


class ClassBalanced(Loss):
    """Cross-entropy weighted by 1 - mix + mix * class-balanced weight, from `start` of training
    on."""

    def __init__(
        self, counts: torch.Tensor, beta: float = 0.999, mix: float = 0.2, start: float = 0.8
    ) -> None:
        super().__init__(counts, start)
        # mix 1 is Cui et al.'s weight itself, 0 plain cross-entropy
        self.balanced = 1 - mix + mix * class_balanced_weight(self.counts, beta)
        self._set_weights()

    def _active_weight(self) -> torch.Tensor:
        return self.balanced  # (K,) float64


class LDAM(ClassBalanced):
    """Label-distribution-aware margin (Cao et al. 2019): cross-entropy of scale * (logits - margin
    of the true class).

    The margin is max_m at the rarest class and falls with n_b^(-1/4). From `start` on the events
    are re-weighted by class-balanced weights (the paper's deferred re-weighting). The paper's scale
    of 30 is for cosine logits.
    """

    def __init__(
        self,
        counts: torch.Tensor,
        max_m: float = 0.5,
        scale: float = 1.0,
        beta: float = 0.999,
        start: float = 0.8,
    ) -> None:
        super().__init__(counts, beta, mix=1.0, start=start)

        spread = self.counts.clamp(min=1).pow(-0.25)  # (K,)
        self.margin = (max_m * spread / spread.max()).float()  # (K,)
        self.scale = scale

    def to(self, device: torch.device | str) -> Self:
        """Move weights and margins."""
        self.margin = self.margin.to(device)
        return super().to(device)

    def per_event(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits (N, K), target (N,) -> (N,) float32."""
        # IGNORED has no margin of its own; its loss is set to 0 below
        true = target.clamp(min=0)
        lowered = logits.float().scatter_add(1, true[:, None], -self.margin[true][:, None])
        return super().per_event(self.scale * lowered, target)


class ClassBalancedFocal(Loss):
    """(1 - p)^gamma * cross-entropy with class-balanced weights (Cui et al. 2019; Lin et al. 2017),
    over a softmax."""

    def __init__(self, counts: torch.Tensor, beta: float = 0.999, gamma: float = 0.5) -> None:
        super().__init__(counts)
        self.gamma = gamma
        self.balanced = class_balanced_weight(self.counts, beta)
        self._set_weights()

    def per_event(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits (N, K), target (N,) -> (N,) float32."""
        loss = super().per_event(logits, target)
        # 1 - p; bounded away from 0, where a gamma below 1 has an infinite slope
        wrong = -torch.expm1(-loss).clamp(max=-1e-12)
        return wrong.pow(self.gamma) * loss

    def _active_weight(self) -> torch.Tensor:
        return self.balanced
