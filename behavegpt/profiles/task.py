"""What a member's network learns and in which order: settings, the objective, rows held out, seeded
batches.

Shape letters: N rows of a task, B of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from behavegpt.config import Settings

# rows (B,), a seeded generator for what is drawn -> the sum of the batch's losses and what it is
# divided by
Objective = Callable[[np.ndarray, np.random.Generator], tuple[Tensor, float]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

POOL = 64  # batches among which clients of like length are brought together


class TrainingSettings(Settings):
    """How long, how fast, and when to stop."""

    epochs: int = Field(10, ge=1)
    steps: int | None = Field(None, ge=1, description="optimizer steps in all, instead of epochs")
    batch: int = Field(256, ge=1, description="clients in a step")
    lr: float = Field(1e-3, gt=0, description="of AdamW, constant after the warmup")
    warmup: int = Field(0, ge=0, description="steps in which the rate grows to lr")
    weight_decay: float = Field(0.0, ge=0, description="of matrices, not of biases and norms")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    held_out: float = Field(
        0.02, ge=0, lt=1, description="share of clients whose loss decides when to stop"
    )
    patience: int = Field(3, ge=1, description="epochs without a better loss after which it stops")


class Task(NamedTuple):
    """What is learned, and from which rows."""

    label: str
    rows: np.ndarray  # (N,)
    objective: Objective
    lengths: np.ndarray | None = None  # (N,) brings rows of like length together
    make_optimizer: MakeOptimizer | None = None  # AdamW by default


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators in this block; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def mean_objective(
    network: nn.Module, objective: Objective, rows: np.ndarray, batch: int, seed: int
) -> float:
    """The objective over `rows` without dropout; what it draws is the same each time."""
    network.eval()  # without dropout
    parts = [
        objective(rows[start : start + batch], np.random.default_rng((seed, start)))
        for start in range(0, len(rows), batch)
    ]
    return sum(float(summed) for summed, _ in parts) / sum(weight for _, weight in parts)


def epoch_batches(
    size: int, batch: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Every number below `size` once, in batches: a pure function of its arguments.

    With `lengths` (size,), each pool of shuffled batches is sorted by length, and then the batches
    are shuffled.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(size)

    if lengths is not None:
        # like lengths share a batch, so little is padded; pools keep the order random enough
        pool = batch * POOL
        parts = [order[start : start + pool] for start in range(0, size, pool)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])

    starts = np.arange(0, size, batch)
    for start in rng.permutation(starts) if lengths is not None else starts:
        yield order[start : start + batch]


def divide(size: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below `size` that are fitted and that are held out, both ascending."""
    order = np.random.default_rng((seed, size)).permutation(size)
    # at least one row is left to train on
    held_out = min(round(size * share), size - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
