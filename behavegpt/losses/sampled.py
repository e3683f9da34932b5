"""Losses of recommenders that score a few drawn classes instead of all.

N events, K classes, M negatives, drawn uniformly from the K - 1 other classes, with replacement.
They are chosen among logits that the project's head makes anyway: the loss is the original's, its
saving is not.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from behavegpt.batch import IGNORED
from behavegpt.losses.base import Loss


class _Sampled(Loss):
    """Draws the negatives from torch's generator, which the training loop seeds for each part of a
    step."""

    def __init__(self, counts: torch.Tensor, negatives: int) -> None:
        super().__init__(counts)
        self.negatives = negatives

    def drawn(
        self, logits: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's logit (N,) and the negatives' (N, M), float32, of logits (N, K); target
        (N,)."""
        true = target.clamp(min=0)[:, None]  # (N, 1)

        other = torch.randint(
            logits.shape[1] - 1, (len(target), self.negatives), device=logits.device
        )
        # skips the target: ids from it on move up by one, so that all others are equally likely
        other = other + (other >= true)

        return logits.gather(1, true)[:, 0].float(), logits.gather(1, other).float()


class BinaryNegatives(_Sampled):
    """-log sigmoid(s_target) - sum over negatives of log sigmoid(-s): SASRec's loss, which draws
    one negative."""

    def per_event(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits (N, K), target (N,) -> (N,) float32; 0 where IGNORED."""
        own, other = self.drawn(logits, target)
        # softplus(x) = -log sigmoid(-x), without overflow
        return (F.softplus(-own) + F.softplus(other).sum(1)) * (target != IGNORED)


class SampledSoftmax(_Sampled):
    """Cross-entropy among the target and the drawn negatives alone; no correction, as the draw is
    uniform."""

    def per_event(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """logits (N, K), target (N,) -> (N,) float32; 0 where IGNORED."""
        own, other = self.drawn(logits, target)
        # log of the summed exponentials of target and negatives, (N,)
        everything = torch.logaddexp(own, other.logsumexp(1))
        return (everything - own) * (target != IGNORED)
