"""PackedBatch: several users' histories side by side in fixed rows, what the model and the loop
exchange."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

# target of a position that is not trained or scored (torch's cross-entropy convention)
IGNORED = -100
PADDING = -1  # document of a position that holds no event


class PackedBatch(NamedTuple):
    """Shapes: B rows of R positions. A NamedTuple survives accelerate, pytrees and torch.compile.

    Position t holds an event and asks for the behavior of the user's next one.
    """

    inputs: dict[str, torch.Tensor]
    """Field ids by the model's argument name (`input_ids` = event, `weekday_ids`, ...), each (B, R)
    int64."""
    document: torch.Tensor
    """(B, R) int64: which history of the row, from 0; PADDING where there is none. Attention stays
    inside."""
    position: torch.Tensor
    """(B, R) int64: index within the history, from 0."""
    target: torch.Tensor
    """(B, R) int64: class of the next behavior; IGNORED where none is asked."""
    row: torch.Tensor
    """(B, R) int64: index of the target event in the prepared columns, the row's id in evaluation;
    -1 if none."""
    next_fields: dict[str, torch.Tensor]
    """Targets of the optional heads (`event`, `location`, `gap`), each (B, R) int64; empty without
    them."""
    memory: dict[str, torch.Tensor] | None = None
    """What the counts of the whole past say at the N positions with a target, row by row; see
    model/mixer.py."""
    given: dict[str, torch.Tensor] | None = None
    """Field ids (N,) int64 of those targets that the model may know (`weekday`, `slot`,
    `location`); None without."""
    baskets: dict[str, torch.Tensor] | None = None
    """Of a log of baskets, each a position: `sizes` (B, R), their events; `asked` (N,), positions
    of the flattened rows that are asked for the next basket, once for each behavior in it; `share`
    (N,), 1 / the targets of that basket. `inputs` are (E,) then, basket by basket, target and row
    (N,)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What a model's forward takes of it, whatever is asked."""
        counts = {} if self.memory is None else {"memory": self.memory}
        given = {} if self.given is None else {"given": self.given}
        baskets = {} if self.baskets is None else {"baskets": self.baskets}
        return {
            **self.inputs,
            "document": self.document,
            "position": self.position,
            **counts,
            **given,
            **baskets,
        }

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device."""
        batch: PackedBatch = moved(self, device)
        return batch


def moved(parts: Any, device: torch.device) -> Any:
    """Tensors, or arrays as such, on a device; also in dicts and named tuples of them."""
    if isinstance(parts, np.ndarray):
        parts = torch.from_numpy(parts)
    if isinstance(parts, torch.Tensor):
        return parts.to(device, non_blocking=True)

    # whatever holds tensors keeps its form; anything else, such as None, stays as it is
    if isinstance(parts, dict):
        return {name: moved(part, device) for name, part in parts.items()}
    if isinstance(parts, tuple):
        parts_there = [moved(part, device) for part in parts]
        # a named tuple takes its fields one by one, a plain one as a list
        return type(parts)(*parts_there) if hasattr(parts, "_fields") else tuple(parts_there)
    return parts
