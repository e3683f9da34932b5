"""Training of a member's network: seeded batches, early stopping on its own objective, the best
state kept, checkpoints of a long run.

    with seeded(context.seed):
        network = MyNetwork(...).to(device)
    task = Task("week_all", rows, objective)
    facts = train(network, task, settings.training, context.seed, context.work(settings))

The paper's public code stops early by another loss than the one it trains on (its decoder runs
freely in validation), and exports the last state of some members. Here both are the same objective,
without dropout, on clients held out of training, and what `train` leaves in the network is the best
state.

The steps are pure functions of seed, epoch and number, but for torch's generator (dropout), whose
state a checkpoint holds: a run that was stopped and goes on gives the bytes of one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from behavegpt.config import Settings
from behavegpt.console import Update, progress, say
from behavegpt.errors import ConfigError
from behavegpt.signals import collecting
from behavegpt.training.checkpoint import (
    Snapshot,
    load_latest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from behavegpt.training.optimizer import build_optimizer, learning_rate
from behavegpt.training.settings import TrainSettings

# rows (B,), a seeded generator for what is drawn -> the sum of the batch's losses and what it is
# divided by
Objective = Callable[[np.ndarray, np.random.Generator], tuple[Tensor, float]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

POOL = 64  # batches among which clients of like length are brought together
SAVE_EVERY = 120.0  # seconds between checkpoints: what a killed run may lose
BEST = "best/"  # before the names of the best state in a checkpoint


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


@dataclass
class Progress:
    """What a training has reached; saved in every checkpoint."""

    step: int = 0  # finished optimizer steps
    epoch_start: int = 0  # the step at which the epoch began
    weight: float = 0.0  # of the epoch's losses so far
    epochs: list[dict[str, float]] = field(default_factory=list)  # figures of the finished ones
    best: float | None = None
    best_epoch: int = 0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from `seed` on; those of everybody else go on afterwards as if nothing
    had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def train(
    network: nn.Module, task: Task, settings: TrainingSettings, seed: int, work: Path | None = None
) -> dict[str, Any]:
    """Train until the objective of the rows held out gets no better, and leave the best state in
    `network`.

    `work`: the folder of its checkpoints, of this training alone; it goes on from what is there.
    Without held-out rows the training loss decides. Returns steps, epochs, the best of them and the
    losses of each. Raises ConfigError when the loss is no number, KeyboardInterrupt, once all is
    saved, on a signal.
    """
    with seeded(seed):
        training = _Training(network, task, settings, seed, work)
        training.restore()
        nobody: AbstractContextManager[list[int]] = nullcontext([])

        with (
            nobody if work is None else collecting() as stop,
            progress(task.label, training.steps) as tell,
        ):
            while training.goes_on and not stop:
                training.epoch(tell, stop)
            training.save_if_due(bool(stop))

    if stop:
        say(f"{task.label}: stopped by a signal at step {training.progress.step}; saved.")
        signal.raise_signal(stop[0])  # whoever handles signals ends the program his way
        raise KeyboardInterrupt

    return training.finish()


class _Training:
    """A network on the way to its best state."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        settings: TrainingSettings,
        seed: int,
        work: Path | None,
    ) -> None:
        self.network, self.task, self.settings = network, task, settings
        self.seed, self.work = seed, work
        self.fitted, self.held_out = _divide(len(task.rows), settings.held_out, seed)
        epoch_steps = -(-len(self.fitted) // settings.batch)
        self.steps = settings.steps or epoch_steps * settings.epochs

        self.device = next(network.parameters()).device

        if task.make_optimizer is None:
            fused = self.device.type in ("cpu", "cuda")
            asked = TrainSettings(
                lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.999)
            )
            self.optimizer: torch.optim.Optimizer = build_optimizer(network, asked, fused=fused)
        else:
            self.optimizer = task.make_optimizer(network.parameters())

        self.progress = Progress()
        self.summed = torch.zeros((), device=self.device)  # the epoch's losses so far
        self.best_state = _copy(network)
        self.saved = time.monotonic()

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch, or the rest of one."""
        at = self.progress
        unfinished = at.step > at.epoch_start
        patient = len(at.epochs) - at.best_epoch < self.settings.patience
        return unfinished or (at.step < self.steps and patient)

    def epoch(self, tell: Update, stop: list[int]) -> None:
        """Train to the end of the epoch, or to the next step after a signal."""
        at, number = self.progress, len(self.progress.epochs)
        lengths = None if self.task.lengths is None else self.task.lengths[self.fitted]
        order = epoch_batches(len(self.fitted), self.settings.batch, self.seed, number, lengths)
        left = islice(enumerate(order), at.step - at.epoch_start, self.steps - at.epoch_start)
        self.network.train()

        for index, batch in left:
            self.step(self.fitted[batch], np.random.default_rng((self.seed, number, index)))
            tell(at.step, f"epoch {number + 1}")
            if stop:
                return
            self.save_if_due()

        self._judge()

    def step(self, chosen: np.ndarray, rng: np.random.Generator) -> None:
        """One optimizer step on the rows number `chosen` (B,)."""
        settings, at = self.settings, self.progress
        loss, weight = self.task.objective(self.task.rows[chosen], rng)
        self.optimizer.zero_grad(set_to_none=True)
        (loss / weight).backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)

        rate = learning_rate(
            at.step,
            self.steps,
            lr=settings.lr,
            warmup=(settings.warmup + 1) / self.steps,
            floor=1.0,
            schedule="constant",
        )

        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.step()
        at.step, at.weight = at.step + 1, at.weight + weight
        self.summed += loss.detach()

    def _judge(self) -> None:
        """Note the figures of a finished epoch, and its state if it is the best. ConfigError for a
        loss that is no number."""
        at, task = self.progress, self.task
        figures = {
            "epoch": len(at.epochs) + 1,
            "steps": at.step,
            "loss": float(self.summed) / at.weight,
        }

        if len(self.held_out):
            figures["held_out"] = mean_objective(
                self.network,
                task.objective,
                task.rows[self.held_out],
                self.settings.batch,
                self.seed,
            )

        value = figures.get("held_out", figures["loss"])
        if not math.isfinite(value):
            raise ConfigError(
                f"{task.label}: the loss became {value} by step {at.step}; lower training.lr or "
                "set a clip."
            )

        at.epochs.append({name: round(figure, 6) for name, figure in figures.items()})
        if at.best is None or value < at.best:
            at.best, at.best_epoch, self.best_state = value, len(at.epochs), _copy(self.network)

        at.epoch_start, at.weight = at.step, 0.0
        self.summed.zero_()

    def finish(self) -> dict[str, Any]:
        """Leave the best state in the network; what training.json tells."""
        at = self.progress
        self.network.load_state_dict(self.best_state)
        self.network.eval()
        assert at.best is not None

        return {
            "steps": at.step,
            "best_epoch": at.best_epoch,
            "best": round(at.best, 6),
            "epochs": at.epochs,
        }

    def save_if_due(self, now: bool = False) -> None:
        """Write a checkpoint, where there is a folder, now or if the last one is old."""
        if self.work is None or not (now or time.monotonic() - self.saved > SAVE_EVERY):
            return

        beside = {f"{BEST}{name}": tensor for name, tensor in self.best_state.items()}
        beside |= {"summed": self.summed, "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            beside["random_cuda"] = torch.cuda.get_rng_state(self.device)

        snapshot = Snapshot(
            self.progress.step,
            self.network.state_dict(),
            optimizer_tensors(self.optimizer, self.network),
            beside,
            {"progress": asdict(self.progress)},
        )

        save_checkpoint(self.work, snapshot, keep=1)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the latest checkpoint, if there is one."""
        checkpoint = None if self.work is None else load_latest(self.work)
        if checkpoint is None:
            return

        self.network.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimizer, self.network, checkpoint.optimizer)
        self.progress = Progress(**checkpoint.trainer["progress"])
        beside = checkpoint.loss
        self.summed.copy_(beside["summed"])
        self.best_state = {
            name.removeprefix(BEST): t for name, t in beside.items() if name.startswith(BEST)
        }
        torch.set_rng_state(beside["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(beside["random_cuda"], self.device)

        say(f"{self.task.label}: goes on from step {self.progress.step}")


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


def _divide(size: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below `size` that are fitted and that are held out, both ascending."""
    order = np.random.default_rng((seed, size)).permutation(size)
    held_out = min(round(size * share), size - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _copy(network: nn.Module) -> dict[str, Tensor]:
    """The state on the CPU, apart from the network's own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
