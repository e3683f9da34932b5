"""The loss of the prediction layer under a criterion; with many classes its logits come in chunks.

Shape letters: N positions that are predicted, C hidden width, K behaviors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from behavegpt.model.chunks import GradientSink, HeadLoss, Scored, chunked_loss
from behavegpt.model.head import Predicted, PredictionHead


def head_loss(
    head: PredictionHead,
    predicted: Predicted,
    target: torch.Tensor,
    criterion: Any,
    classes: int,
    event_embedding: torch.Tensor | None = None,
) -> HeadLoss:
    """Loss of N predicted positions under `criterion` (behavegpt.losses.Loss); `target` (N,) holds
    no ignored one.

    `event_embedding` (ids, d), if tied.
    """

    def score(
        part: slice, pieces: Sequence[torch.Tensor], sink: GradientSink | None
    ) -> torch.Tensor:
        # (n, K) of a part of the positions
        logits: torch.Tensor = head(pieces[0], predicted.part(part).past, event_embedding, sink)
        return logits

    # all that the logits depend on: the chunked loss makes the gradients of these, and of no other
    tied = () if event_embedding is None else (event_embedding,)
    parameters = (*head.parameters(), *tied)
    scored = Scored(score, (predicted.asked,), parameters, head.projection, predicted.share)
    return chunked_loss(scored, criterion, target, classes)
