"""What every baseline's encoder returns, and what those without options of their own declare."""

from __future__ import annotations

from typing import NamedTuple

import torch

from behavegpt.config import Settings


class NoOptions(Settings):
    """An architecture without options of its own."""


class Encoded(NamedTuple):
    """The encoder's view of packed rows; B rows, R positions, C hidden width."""

    hidden: torch.Tensor  # (B, R, C)
    side: dict[str, torch.Tensor] = {}
    # (B, R) loss beside that of the labels, summed where labels are asked for
    auxiliary: torch.Tensor | None = None
