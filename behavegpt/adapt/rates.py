"""A user's own time gaps beside what the model expects of this user.

The model sees weekdays and slots, not how long a user waits between events: averaged over users its gaps are right,
for one user they are not. So the odds of a gap bucket b are multiplied by

    (observed(b) + w * expected(b)) / ((n + w) * expected(b))

over the n gaps of the user's window: how often b happened, and its mean predicted probability at those events. A short
history changes little (w = 5, chosen on Jakarta, docs/generation.md). Nothing is trained.

Shapes: N rows, R events, V buckets.
"""

from __future__ import annotations

import torch

WEIGHT = 5.0  # events


def log_odds(probability: torch.Tensor, observed: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """What is added to the logits (N, V), from predictions (N, R, V), what followed (N, R) and where that is known."""
    weight = real.to(probability)
    count = weight.sum(1, keepdim=True)
    expected = (probability * weight[..., None]).sum(1) / count.clamp(min=1)
    expected = expected.clamp(min=1e-6)
    happened = torch.zeros_like(expected).scatter_add(1, observed, weight)
    odds = (happened + WEIGHT * expected) / ((count + WEIGHT) * expected)
    return torch.where(count > 0, odds, 1.0).log()
