"""Where the histories of packed rows are: what a baseline needs beside the embedded events.

Shape letters: B rows, R positions a row, D histories in all rows, L events of the longest, M events
looked back on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from behavegpt.batch import PADDING


class Layout(NamedTuple):
    """A batch's events and the histories they belong to; each tensor (B, R) int64."""

    ids: dict[str, torch.Tensor]
    """By column: the model's fields, and `time` in seconds or `behavior` for the baselines that
    read them."""
    document: torch.Tensor
    """Which history of its row an event belongs to; PADDING where there is none."""
    position: torch.Tensor
    """Index within the history."""

    def visible(self) -> torch.Tensor:
        """(B, R, R) bool: whether query i may look at event j: the same history, and not later."""
        length = self.document.shape[1]
        # (R, R)
        causal = torch.ones(length, length, dtype=torch.bool, device=self.document.device).tril()
        return (self.document[:, :, None] == self.document[:, None, :]) & causal

    def unpack(self) -> Histories:
        """The histories as D separate sequences."""
        begins = torch.ones_like(self.document, dtype=torch.bool)  # (B, R)
        begins[:, 1:] = self.document[:, 1:] != self.document[:, :-1]
        starts = begins.flatten().nonzero().flatten()  # (all stretches,)

        # up to the next beginning, or the end
        length = torch.cat([starts, starts.new_tensor([begins.numel()])]).diff()
        # padding forms stretches of its own, which are no histories
        real = self.document.flatten()[starts] != PADDING
        starts, length = starts[real], length[real]
        index = torch.arange(int(length.max()) if len(length) else 1, device=starts.device)  # (L,)

        return Histories(starts[:, None] + index, index < length[:, None], length)

    def back(self, values: torch.Tensor, steps: int) -> torch.Tensor:
        """The last `steps` values of each position's own history, newest first: (B, R, C) -> (B, R,
        M, C).

        Events before the history's first are zeros.
        """
        shifted = []
        for ago in range(steps):
            # a shift along the row; what comes from another history is masked by the position
            moved = torch.zeros_like(values)
            moved[:, ago:] = values[:, : values.shape[1] - ago]
            shifted.append(moved * (self.position >= ago)[..., None])

        return torch.stack(shifted, dim=2)


class Histories(NamedTuple):
    """Places of D histories in the flattened rows."""

    # (D, L) position in the B * R positions; beyond the history where not `real`
    place: torch.Tensor
    real: torch.Tensor  # (D, L) bool
    length: torch.Tensor  # (D,)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """(B, R, C) -> (D, L, C), zeros behind each history."""
        flat = values.flatten(0, 1)
        # clamped places are zeroed
        return flat[self.place.clamp(max=len(flat) - 1)] * self.real[..., None]

    def put(self, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """(D, L, C) -> (B, R, C) in the rows of `like` (B, R, ...), zeros where there is no
        history."""
        rows, length = like.shape[:2]
        flat = values.new_zeros(rows * length, values.shape[-1])

        return flat.index_copy(0, self.place[self.real], values[self.real]).view(rows, length, -1)
