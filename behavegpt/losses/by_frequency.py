"""Class weights of two baselines; K classes, n_b training events of class b."""

from __future__ import annotations

import torch

from behavegpt.losses.base import Loss


class TanhFrequency(Loss):
    """CAT-SR's weights (KDD 2024): w_b = alpha - tanh(beta f_b - beta), on cross-entropy; sum(w CE)
    / sum w.

    `tanh_unit` 0 takes f_b = n_b, as printed: then all classes with more than a few events weigh
    alpha - 1. With unit u, f_b = n_b / (u times the mean count): ours, free of scale.
    """

    def __init__(
        self,
        counts: torch.Tensor,
        tanh_alpha: float = 1.2,
        tanh_beta: float = 0.99,
        tanh_unit: float = 0.0,
    ) -> None:
        super().__init__(counts)
        # `tanh_unit` 0: the counts themselves, as the paper prints it
        frequency = self.counts / (tanh_unit * self.counts.mean() if tanh_unit else 1.0)
        self.fixed = tanh_alpha - torch.tanh(tanh_beta * (frequency - 1))  # (K,)
        self._set_weights()

    def _active_weight(self) -> torch.Tensor:
        return self.fixed  # (K,), the same from the first step on


class TwoDistributions(Loss):
    """CDN's co-training (KDD 2023): a_t CE on the data + (1 - a_t) CE on class-balanced data, a_t =
    1 - (t / (gT))^2.

    The second draw is replaced by its expectation: an event of class b stands for N / (K' n_b)
    balanced ones, K' the classes with training events. So w_b = a_t + (1 - a_t) N / (K' n_b), which
    averages to 1; `spread` is g > 1.
    """

    def __init__(self, counts: torch.Tensor, spread: float = 2.0) -> None:
        super().__init__(counts)
        self.spread = spread
        # a class without training events has no balanced share either: it can never be drawn
        seen = self.counts > 0
        self.balanced = torch.where(  # (K,)
            seen, self.counts.sum() / (seen.sum() * self.counts.clamp(min=1)), 0.0
        )

    def set_progress(self, fraction: float) -> None:
        """The balanced share grows with each step."""
        # not as the base does it: these weights change in every step, and not at `start` alone
        self.progress = fraction
        self._set_weights()

    def _active_weight(self) -> torch.Tensor:
        own = own_share(self.progress, self.spread)  # a_t
        # averages to 1 over the training events at every share, so the learning rate keeps its
        # meaning
        return own + (1 - own) * self.balanced


def own_share(progress: float, spread: float) -> float:
    """a_t of CDN after a share of training; from 1 down to 1 - 1 / spread^2.

    >>> [own_share(t, 2.0) for t in (0.0, 0.5, 1.0)]
    [1.0, 0.9375, 0.75]
    """
    return 1.0 - (progress / spread) ** 2
