"""Baskets, sets of events, as the model reads them: one position each, the mean of its events'
embeddings.

Attention is causal over baskets, so the logits after a basket know all events up to and with it, in
no order, and nothing of the basket that they are asked for.

Shapes: B rows of R positions, E events in them, N targets, K behaviors, C hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Baskets(NamedTuple):
    """How the events (E,) of a forward lie in its rows, and what is asked."""

    sizes: torch.Tensor
    """(B, R) int64: events of each position, which stand one position after the other; 0: none."""
    asked: torch.Tensor | None = None
    """(N,) int64: positions of the flattened rows whose next basket holds a target each."""
    share: torch.Tensor | None = None
    """(N,) float32: weight of each target in its basket's loss."""

    def at(self, hidden: torch.Tensor) -> torch.Tensor:
        """States (N, C) of (B, R, C) where the targets are asked for."""
        if self.asked is None:
            raise ValueError("baskets: give `asked`, the positions that are asked for the next one")
        return hidden.flatten(0, 1)[self.asked]


def mean_of_baskets(values: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Means (B, R, C) of the values (E, C) of each basket; 0 where there is none."""
    flat = sizes.flatten()  # (B * R,)
    sums = torch.segment_reduce(values, "sum", lengths=flat, axis=0, initial=0)
    return (sums / flat.clamp(min=1)[:, None]).unflatten(0, sizes.shape)


def check_baskets(takes: bool, baskets: Baskets | None, document: torch.Tensor | None) -> None:
    """Raise ValueError unless a model is told of baskets if and only if it `takes` them."""
    if takes and (baskets is None or document is None):
        raise ValueError(
            "a model of baskets takes ids (events,) of flat lists, with document (rows, positions) "
            "and baskets={'sizes': (rows, positions)}, as behavegpt.data.basket_batches makes them"
        )
    if baskets is not None and not takes:
        raise ValueError("the model reads events one by one; leave baskets out")
