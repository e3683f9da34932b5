"""The loss of the prediction layer under a criterion; with many classes its logits come in chunks.

Shape letters: N positions that are predicted, C hidden width, K behaviors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from behavegpt.model.head import GradientSink, Predicted, PredictionHead

# logits held at once while training; more are made and differentiated piece by piece. Each piece
# adds to the whole gradient of the projection, so that with many classes small pieces cost more
# than they save in memory
CHUNK_ELEMENTS = {"cpu": 3 << 20, "cuda": 1 << 27}


class HeadLoss(NamedTuple):
    """A loss sum with what the loss's state is updated from."""

    total: torch.Tensor  # () weighted sum over the N positions
    class_loss: torch.Tensor  # (K,) detached sum of unweighted losses per class
    class_count: torch.Tensor  # (K,) positions per class


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

    With many classes the logits are made, and differentiated, in chunks: the peak memory is one
    chunk instead of (N, K), and the weights are known beforehand, so DRO costs nothing extra.
    `event_embedding` (ids, d), if tied.
    """
    hidden = predicted.hidden
    class_count = torch.bincount(target, minlength=classes).float()
    rows = max(1, CHUNK_ELEMENTS["cpu" if hidden.device.type == "cpu" else "cuda"] // classes)
    if hidden.shape[0] <= rows or not torch.is_grad_enabled():
        per_event = criterion.per_event(head(hidden, predicted.past, event_embedding), target)
        total = (criterion.weight(target) * per_event).sum()
        return HeadLoss(total, sum_by_class(per_event, target, classes), class_count)

    parameters = [*head.parameters(), *([] if event_embedding is None else [event_embedding])]
    work = _Work(head, predicted, target, criterion, classes, event_embedding, rows)
    total, class_loss = _ChunkedLoss.apply(work, hidden, *parameters)
    return HeadLoss(total, class_loss, class_count)


def sum_by_class(per_event: torch.Tensor, target: torch.Tensor, classes: int) -> torch.Tensor:
    """Detached sums (K,) float32 of losses (N,) whose targets (N,) are the same class."""
    zero = torch.zeros(classes, dtype=torch.float32, device=target.device)
    return zero.index_add(0, target, per_event.detach().float())


class _Work(NamedTuple):
    """What a chunked loss is made of; the tensors that need gradients are given beside it."""

    head: PredictionHead
    predicted: Predicted
    target: torch.Tensor  # (N,)
    criterion: Any
    classes: int
    event_embedding: torch.Tensor | None
    rows: int  # of a chunk

    def loss(
        self, hidden: torch.Tensor, part: slice, sink: GradientSink | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum () and the losses of the events of a chunk of hidden states (n, C)."""
        past = self.predicted.part(part).past
        logits = self.head(hidden, past, self.event_embedding, sink)
        per_event = self.criterion.per_event(logits, self.target[part])
        return (self.criterion.weight(self.target[part]) * per_event).sum(), per_event


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward, chunk by chunk, and scaled in the backward, which can run
    once."""

    @staticmethod
    def forward(
        ctx: Any, work: _Work, hidden: torch.Tensor, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros((), device=hidden.device)
        class_loss = torch.zeros(work.classes, device=hidden.device)

        gradients = {id(p): torch.zeros_like(p) for p in parameters if p.requires_grad}
        projection = work.head.projection
        sink = _sink_of(work.head, gradients)
        apart = () if sink is None else (id(projection.weight), id(projection.bias))
        wanted = [p for p in parameters if p.requires_grad and id(p) not in apart]

        hidden_gradient = torch.empty_like(hidden)
        for at in range(0, len(hidden), work.rows):
            part = slice(at, at + work.rows)
            with torch.enable_grad():
                piece = hidden[part].detach().requires_grad_()
                loss, per_event = work.loss(piece, part, sink)
            hidden_gradient[part], *found = torch.autograd.grad(
                loss, [piece, *wanted], allow_unused=True
            )
            for parameter, new in zip(wanted, found, strict=True):
                if new is not None:
                    gradients[id(parameter)] += new
            total += loss.detach()
            class_loss += sum_by_class(per_event, work.target[part], work.classes)

        # not saved_tensors: the backward scales these in place and gives them away, so that no
        # second copy is made
        ctx.gradients = [hidden_gradient, *(gradients.get(id(p)) for p in parameters)]
        ctx.mark_non_differentiable(class_loss)
        return total, class_loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once; call the model again")
        return None, *(None if g is None else g.mul_(scale) for g in gradients)


def _sink_of(head: PredictionHead, gradients: dict[int, torch.Tensor]) -> GradientSink | None:
    """Where the projection's gradients go; None if it is frozen, or no plain linear layer (as under
    an adapter)."""
    if type(head.projection) is not nn.Linear:
        return None
    weight = gradients.get(id(head.projection.weight))
    bias = gradients.get(id(head.projection.bias))
    if weight is None or bias is None:
        return None
    return GradientSink(weight, bias)
