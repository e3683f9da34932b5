"""The loss of many positions over many classes, without the logits of all of them at once.

The logits of a chunk of positions are made, differentiated and dropped before the next chunk: the
peak memory is one chunk instead of (N, K). That works because a loss here is a sum over positions
whose weights are known beforehand.

Shape letters: N positions that are predicted, K classes, C hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

# logits held at once while training. Each chunk adds to the whole gradient of the projection, so
# that with many classes small chunks cost more than they save in memory
CHUNK_ELEMENTS = {"cpu": 3 << 20, "cuda": 1 << 27}
WHOLE = slice(None)  # the part that is all of them


class HeadLoss(NamedTuple):
    """A loss sum with what the loss's state is updated from."""

    total: torch.Tensor  # () weighted sum over the N positions
    class_loss: torch.Tensor  # (K,) detached sum of unweighted losses per class
    class_count: torch.Tensor  # (K,) positions per class


class GradientSink(NamedTuple):
    """Where a projection's gradients are added up while a step's logits come in chunks."""

    weight: torch.Tensor  # (K, hidden units)
    bias: torch.Tensor  # (K,)


# logits (n, K) of a part of the positions, from the same part of the inputs
Score = Callable[[slice, Sequence[torch.Tensor], GradientSink | None], torch.Tensor]


class Scored(NamedTuple):
    """What gives the logits, and all that it is differentiated by."""

    score: Score
    inputs: tuple[torch.Tensor, ...]  # each (N, ...)
    parameters: tuple[torch.Tensor, ...]
    projection: nn.Module | None = None  # `score` applies it by `project`, with the sink
    share: torch.Tensor | None = None  # (N,) factor of each target's weight

    def weight(self, criterion: Any, target: torch.Tensor, part: slice = WHOLE) -> torch.Tensor:
        """Weights (n,) of a part of the targets (N,) under a criterion."""
        weight: torch.Tensor = criterion.weight(target[part])
        return weight if self.share is None else weight * self.share[part]


def chunked_loss(scored: Scored, criterion: Any, target: torch.Tensor, classes: int) -> HeadLoss:
    """Loss of N positions under `criterion` (behavegpt.losses.Loss); `target` (N,) holds no ignored
    one.

    Without gradients, or with few classes, ordinary autograd does it; else the gradients are made
    here, and the result can be differentiated once.
    """
    class_count = torch.bincount(target, minlength=classes).float()  # (K,)
    rows = max(1, CHUNK_ELEMENTS["cpu" if target.device.type == "cpu" else "cuda"] // classes)

    if len(target) > rows and torch.is_grad_enabled():
        total, class_loss = _differentiated(scored, criterion, target, classes, rows)
        return HeadLoss(total, class_loss, class_count)

    # without gradients logits die with their chunk; few positions are one chunk
    parts = [WHOLE]
    if len(target) > rows:
        parts = [slice(first, first + rows) for first in range(0, len(target), rows)]

    losses = []
    for part in parts:
        pieces = [tensor[part] for tensor in scored.inputs]
        losses.append(criterion.per_event(scored.score(part, pieces, None), target[part]))

    per_event = torch.cat(losses)  # (N,)
    # a sum, so that chunks, micro-batches and ranks add up to the same loss
    total = (scored.weight(criterion, target) * per_event).sum()
    return HeadLoss(total, _by_class(per_event, target, classes), class_count)


def linear_loss(
    linear: nn.Linear, criterion: Any, hidden: torch.Tensor, target: torch.Tensor
) -> HeadLoss:
    """The loss of the logits (N, K) that a linear layer gives hidden states (N, C)."""
    scored = Scored(
        lambda part, pieces, sink: project(linear, pieces[0], sink),
        (hidden,),
        tuple(linear.parameters()),
        linear,
    )
    return chunked_loss(scored, criterion, target, linear.out_features)


def project(layer: nn.Module, x: torch.Tensor, sink: GradientSink | None = None) -> torch.Tensor:
    """x (N, C) -> logits (N, K); with a sink the layer's own gradients go there."""
    if sink is None:
        logits: torch.Tensor = layer(x)
    else:
        logits = _SinkingLinear.apply(x, layer.weight, layer.bias, sink)
    return logits


@torch.compiler.disable
def _differentiated(
    scored: Scored, criterion: Any, target: torch.Tensor, classes: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss () and the summed losses per class (K,), in chunks of `rows` positions."""
    sums: tuple[torch.Tensor, torch.Tensor] = _ChunkedLoss.apply(
        scored, criterion, target, classes, rows, *scored.inputs, *scored.parameters
    )
    return sums


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward, chunk by chunk, and scaled in the backward, which can run
    once."""

    @staticmethod
    def forward(
        ctx: Any,
        scored: Scored,
        criterion: Any,
        target: torch.Tensor,
        classes: int,
        rows: int,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, parameters, projection = scored.inputs, scored.parameters, scored.projection
        total = torch.zeros((), device=target.device)
        class_loss = torch.zeros(classes, device=target.device)  # (K,)

        # ids among the inputs have no gradient, frozen parameters need none
        input_gradients = [torch.zeros_like(x) if x.is_floating_point() else None for x in inputs]
        gradients = [torch.zeros_like(p) if p.requires_grad else None for p in parameters]
        by_id = {id(p): g for p, g in zip(parameters, gradients, strict=True)}

        # the projection's backward adds to its gradients in place, so autograd is not asked for
        # them: with a fresh one for each chunk this was no faster than whole logits (docs/log.md)
        sink = _sink_of(projection, by_id)
        sunk = {id(p) for p in projection.parameters()} if projection and sink else set()

        for first in range(0, len(target), rows):
            part = slice(first, first + rows)
            with torch.enable_grad():
                pieces = [x[part].detach() for x in inputs]
                pieces = [x.requires_grad_() if x.is_floating_point() else x for x in pieces]
                per_event = criterion.per_event(scored.score(part, pieces, sink), target[part])
                loss = (scored.weight(criterion, target, part) * per_event).sum()

            # (what the chunk is differentiated by, where its gradient is added)
            sums = [
                (x, g[part]) for x, g in zip(pieces, input_gradients, strict=True) if g is not None
            ]
            sums += [
                (p, g)
                for p, g in zip(parameters, gradients, strict=True)
                if g is not None and id(p) not in sunk
            ]
            _add_gradients(loss, sums)
            total += loss.detach()
            class_loss += _by_class(per_event, target[part], classes)

        # not saved_tensors: the backward scales these in place and gives them away, so that no
        # second copy is made
        ctx.gradients = [*input_gradients, *gradients]
        ctx.mark_non_differentiable(class_loss)
        return total, class_loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once; call the model again")
        # None for scored, criterion, target, classes and rows
        return (None,) * 5 + tuple(None if g is None else g.mul_(scale) for g in gradients)


class _SinkingLinear(torch.autograd.Function):
    """x @ weight.T + bias, whose backward adds the parameters' gradients to a sink instead of
    making new ones."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, sink: GradientSink
    ) -> Any:
        # (N, hidden units) and (K, hidden units)
        ctx.save_for_backward(x, weight)
        ctx.sink = sink
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # `gradient` is that of the logits, (N, K)

        sink = ctx.sink
        if gradient.is_cuda and gradient.dtype != sink.weight.dtype:
            # under autocast the product in half precision is 10 x as fast, and only the sum is not
            sink.weight.add_(gradient.T @ x.to(gradient.dtype))
        else:
            wide = gradient.to(sink.weight.dtype)
            sink.weight.addmm_(wide.T, x.to(wide.dtype))

        sink.bias.add_(gradient.sum(0, dtype=sink.bias.dtype))

        # weight, bias and sink get none: the sink holds them already
        return gradient @ weight.to(gradient.dtype), None, None, None


def _add_gradients(loss: torch.Tensor, sums: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Add the gradients of a loss () by each source to the tensor beside it, of any one shape."""
    # unused: frozen layers under an adapter, or a head's optional parts
    made = torch.autograd.grad(loss, [source for source, _ in sums], allow_unused=True)
    for (_, summed), new in zip(sums, made, strict=True):
        if new is not None:
            summed += new


def _sink_of(
    projection: nn.Module | None, gradients: Mapping[int, torch.Tensor | None]
) -> GradientSink | None:
    """Where the projection's gradients (K, hidden units) go; None if it is frozen, or no plain
    linear layer (as under an adapter)."""
    if type(projection) is not nn.Linear or projection.bias is None:
        return None
    weight, bias = gradients.get(id(projection.weight)), gradients.get(id(projection.bias))
    return None if weight is None or bias is None else GradientSink(weight, bias)


def _by_class(per_event: torch.Tensor, target: torch.Tensor, classes: int) -> torch.Tensor:
    """Losses (N,) of targets (N,) summed by class, (K,) detached."""
    zero = torch.zeros(classes, dtype=torch.float32, device=target.device)

    # float32 also under autocast: bf16 would lose small losses in a large sum
    return zero.index_add(0, target, per_event.detach().float())
