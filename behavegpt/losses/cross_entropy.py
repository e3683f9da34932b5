"""Plain cross-entropy: every event counts alike."""

from __future__ import annotations

from behavegpt.losses.contract import Loss


class CrossEntropy(Loss):
    """-log softmax(logits)[target], all weights 1; no state."""
