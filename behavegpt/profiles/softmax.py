"""Cross-entropy over many ids without keeping the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# logits made at a time: what a CPU's cache holds, large pieces for a GPU
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}


def cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Sum of -log softmax(weight @ h + bias)[target]: hidden (N, H), weight (V, H), bias (V,),
    target (N,) -> ().

    Pieces of the batch are scored one after the other, and with many ids the gradients are made at
    once, so the memory beyond the parameters' gradients is that of one piece.
    """
    rows = max(1, CHUNK["cpu" if hidden.device.type == "cpu" else "cuda"] // len(weight))
    if len(hidden) <= rows:
        return F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum")
    if torch.is_grad_enabled():
        total: Tensor = _InPieces.apply(hidden, weight, bias, target, rows)
        return total
    pieces = zip(hidden.split(rows), target.split(rows), strict=True)
    return torch.stack(
        [F.cross_entropy(F.linear(h, weight, bias), t, reduction="sum") for h, t in pieces]
    ).sum()


class _InPieces(torch.autograd.Function):
    """The gradient of the logits is softmax - one-hot: it is made right after the loss and
    multiplied out."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, rows: int
    ) -> Tensor:
        to_hidden, to_weight, to_bias = (
            torch.empty_like(hidden),
            torch.zeros_like(weight),
            torch.zeros_like(bias),
        )
        total = hidden.new_zeros(())
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = F.linear(hidden[part], weight, bias)
            logits -= logits.logsumexp(dim=1, keepdim=True)
            place = target[part][:, None]
            total -= logits.gather(1, place).sum()
            logits.exp_().scatter_add_(1, place, logits.new_full(place.shape, -1.0))
            torch.mm(logits, weight, out=to_hidden[part])
            to_weight.addmm_(logits.T, hidden[part])
            to_bias += logits.sum(0)
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * scale for gradient in ctx.saved_tensors), None, None
