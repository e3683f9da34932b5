"""Training of a member's network: seeded batches, early stopping on its own objective, the best
state kept.

    with seeded(context.seed):
        network = MyNetwork(...).to(device)
    facts = train(network, objective, rows, settings.training, context.seed, "week_all")
    save_network(network, folder)

The paper's public code stops early by another loss than the one it trains on (its decoder runs
freely in validation), and exports the last state of some members. Here both are the same objective,
without dropout, on clients held out of training, and what `train` leaves in the network is the best
state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from behavegpt.config import Settings
from behavegpt.console import progress
from behavegpt.errors import ConfigError

# rows (B,), a seeded generator for what is drawn -> the sum of the batch's losses and what it is
# divided by
Objective = Callable[[np.ndarray, np.random.Generator], tuple[Tensor, float]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

POOL = 64  # batches among which clients of like length are brought together
WEIGHTS = "network.safetensors"


class TrainingSettings(Settings):
    """How long, how fast, and when to stop."""

    epochs: int = Field(10, ge=1)
    steps: int | None = Field(None, ge=1, description="optimizer steps in all, instead of epochs")
    batch: int = Field(256, ge=1, description="clients in a step")
    lr: float = Field(1e-3, gt=0, description="of AdamW, constant after the warmup")
    warmup: int = Field(0, ge=0, description="steps in which the rate grows to lr")
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    held_out: float = Field(
        0.02, ge=0, lt=1, description="share of clients whose loss decides when to stop"
    )
    patience: int = Field(3, ge=1, description="epochs without a better loss after which it stops")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from `seed` on; those of everybody else go on afterwards as if nothing
    had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def train(
    network: nn.Module,
    objective: Objective,
    rows: np.ndarray,
    settings: TrainingSettings,
    seed: int,
    label: str,
    lengths: np.ndarray | None = None,
    make_optimizer: MakeOptimizer | None = None,
) -> dict[str, Any]:
    """Train on `rows` (N,) until the objective of those held out gets no better, and leave the best
    state in `network`.

    `lengths` (N,) brings clients of like length together. Returns steps, epochs, the best of them
    and the losses of each; without held-out rows the training loss decides. Raises ConfigError when
    the loss is no number.
    """
    fitted, held_out = _divide(len(rows), settings.held_out, seed)
    optimizer = (
        make_optimizer(network.parameters()) if make_optimizer else _adamw(network, settings)
    )
    warm = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (settings.warmup + 1))
    )
    each = -(-len(fitted) // settings.batch)
    total = settings.steps or each * settings.epochs
    among = None if lengths is None else lengths[fitted]
    history: list[dict[str, float]] = []
    best, best_epoch, best_state, step = math.inf, 0, _copy(network), 0
    with seeded(seed), progress(label, total) as tell:
        while step < total and len(history) - best_epoch < settings.patience:
            epoch = len(history)
            network.train()
            order = epoch_batches(len(fitted), settings.batch, seed, epoch, among)
            summed, count = torch.zeros(()), 0.0
            for number, batch in enumerate(islice(order, total - step)):
                loss, weight = objective(
                    rows[fitted[batch]], np.random.default_rng((seed, epoch, number))
                )
                _step(network, optimizer, loss / weight, settings.clip)
                warm.step()
                step, summed, count = (
                    step + 1,
                    summed.to(loss.device) + loss.detach(),
                    count + weight,
                )
                tell(step, f"epoch {epoch + 1}")
            facts = {"epoch": epoch + 1, "steps": step, "loss": float(summed) / count}
            if len(held_out):
                facts["held_out"] = mean_objective(
                    network, objective, rows[held_out], settings.batch, seed
                )
            now = facts.get("held_out", facts["loss"])
            if not math.isfinite(now):
                raise ConfigError(
                    f"{label}: the loss became {now} by step {step}; lower training.lr or set a "
                    "clip."
                )
            history.append({name: round(value, 6) for name, value in facts.items()})
            if now < best:
                best, best_epoch, best_state = now, epoch + 1, _copy(network)
    network.load_state_dict(best_state)
    network.eval()
    return {"steps": step, "best_epoch": best_epoch, "best": round(best, 6), "epochs": history}


@torch.no_grad()
def mean_objective(
    network: nn.Module, objective: Objective, rows: np.ndarray, batch: int, seed: int
) -> float:
    """The objective over `rows` without dropout; what it draws is the same each time."""
    network.eval()
    found = [
        objective(rows[start : start + batch], np.random.default_rng((seed, start)))
        for start in range(0, len(rows), batch)
    ]
    return sum(float(summed) for summed, _ in found) / sum(count for _, count in found)


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
        pool = batch * POOL
        parts = [order[start : start + pool] for start in range(0, size, pool)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    starts = np.arange(0, size, batch)
    for start in rng.permutation(starts) if lengths is not None else starts:
        yield order[start : start + batch]


@torch.no_grad()
def embed_rows(
    encode: Callable[[np.ndarray], Tensor],
    rows: np.ndarray,
    lengths: np.ndarray,
    batch: int,
    label: str,
) -> np.ndarray:
    """Vectors (N, D) float32 of `rows` (N,) by `encode(rows) -> (B, D)`, in batches of like
    length."""
    # the longest first: what does not fit fails at once
    order = np.argsort(lengths, kind="stable")[::-1]
    vectors: np.ndarray | None = None
    with progress(label, len(rows)) as tell:
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            found = encode(rows[chosen]).float().cpu().numpy()
            if vectors is None:
                vectors = np.empty((len(rows), found.shape[1]), np.float32)
            vectors[chosen] = found
            tell(start + len(chosen), "")
    return np.zeros((0, 0), np.float32) if vectors is None else vectors


def save_network(network: nn.Module, folder: Path) -> None:
    """Write the weights, network.safetensors."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in _copy(network).items()}, folder / WEIGHTS
    )


def load_network(network: nn.Module, folder: Path) -> None:
    """Read what `save_network` wrote into a network of the same shape, ready to embed."""
    from safetensors.torch import load_file

    network.load_state_dict(load_file(folder / WEIGHTS))
    network.eval()


def _divide(size: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below `size` that are fitted and that are held out, both ascending."""
    order = np.random.default_rng((seed, size)).permutation(size)
    held_out = min(round(size * share), size - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float | None
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()


def _adamw(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )


def _copy(network: nn.Module) -> dict[str, Tensor]:
    """The state on the CPU, apart from the network's own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
