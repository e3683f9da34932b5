"""Training of a member's network: early stopping on its own objective, the best state kept,
checkpoints of a long run.

    with seeded(context.seed):
        network = MyNetwork(...).to(device)
    task = Task("week_all", rows, objective)
    report = train(network, task, settings.training, context.seed, context.work(settings))

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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from behavegpt.console import Update, progress, say
from behavegpt.errors import ConfigError
from behavegpt.profiles.task import (
    Task,
    TrainingSettings,
    divide,
    epoch_batches,
    mean_objective,
    seeded,
)
from behavegpt.signals import collecting
from behavegpt.training.checkpoint import (
    Snapshot,
    forget_after,
    load_latest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from behavegpt.training.optimizer import build_optimizer, learning_rate
from behavegpt.training.settings import TrainSettings

SAVE_EVERY = 120.0  # seconds between checkpoints: what a killed run may lose
BEST = "best/"  # before the names of the best state in a checkpoint


@dataclass
class Progress:
    """What a training has reached; saved in every checkpoint."""

    step: int = 0  # finished optimizer steps
    epoch_start: int = 0  # the step at which the epoch began
    weight: float = 0.0  # of the epoch's losses so far
    epochs: list[dict[str, float]] = field(default_factory=list)  # figures of the finished ones
    best: float | None = None
    best_epoch: int = 0


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

        # a short training without a folder has nothing to save, and leaves signals to the caller
        no_signals: AbstractContextManager[list[int]] = nullcontext([])

        with (
            no_signals if work is None else collecting() as stop,
            progress(task.label, training.steps) as tell,
        ):
            while training.goes_on and not stop:
                training.epoch(tell, stop)
            training.save_if_due(bool(stop))

    if stop:
        say(
            f"{task.label}: stopped by a signal at step {training.progress.step}; a "
            "checkpoint was saved"
        )
        signal.raise_signal(stop[0])  # whoever handles signals decides how the program ends
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
        self.fitted, self.held_out = divide(len(task.rows), settings.held_out, seed)
        epoch_steps = -(-len(self.fitted) // settings.batch)
        self.steps = settings.steps or epoch_steps * settings.epochs
        self.device = next(network.parameters()).device

        if task.make_optimizer is None:
            fused = self.device.type in ("cpu", "cuda")
            # Adam's default betas, as in the paper's code; the main model has others
            adamw = TrainSettings(
                lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.999)
            )
            self.optimizer: torch.optim.Optimizer = build_optimizer(network, adamw, fused=fused)
        else:
            self.optimizer = task.make_optimizer(network.parameters())

        self.progress = Progress()
        self.summed = torch.zeros((), device=self.device)  # the epoch's losses so far
        self.best_state = _copy(network)
        self.saved = time.monotonic()

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch, or the rest of one."""
        reached = self.progress
        unfinished = reached.step > reached.epoch_start
        patient = len(reached.epochs) - reached.best_epoch < self.settings.patience
        return unfinished or (reached.step < self.steps and patient)

    def epoch(self, tell: Update, stop: list[int]) -> None:
        """Train to the end of the epoch, or to the next step after a signal."""
        reached, number = self.progress, len(self.progress.epochs)
        lengths = None if self.task.lengths is None else self.task.lengths[self.fitted]
        order = epoch_batches(len(self.fitted), self.settings.batch, self.seed, number, lengths)

        # a resumed epoch goes on behind its finished steps
        start = reached.epoch_start
        left = islice(enumerate(order), reached.step - start, self.steps - start)
        self.network.train()

        for index, batch in left:
            self.step(self.fitted[batch], np.random.default_rng((self.seed, number, index)))
            tell(reached.step, f"epoch {number + 1}")
            if stop:
                return
            self.save_if_due()

        self._judge()

    def step(self, chosen: np.ndarray, rng: np.random.Generator) -> None:
        """One optimizer step on the rows number `chosen` (B,)."""
        settings, reached = self.settings, self.progress
        loss, weight = self.task.objective(self.task.rows[chosen], rng)

        self.optimizer.zero_grad(set_to_none=True)
        (loss / weight).backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)

        # `warmup` steps below lr, the one after them has all of it
        rate = learning_rate(
            reached.step,
            self.steps,
            lr=settings.lr,
            warmup=(settings.warmup + 1) / self.steps,
            floor=1.0,
            schedule="constant",
        )

        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.step()
        # a sum on the device: reading it each step would wait for the GPU
        reached.step, reached.weight = reached.step + 1, reached.weight + weight
        self.summed += loss.detach()

    def _judge(self) -> None:
        """Note the figures of a finished epoch, and its state if it is the best. ConfigError for a
        loss that is no number."""
        reached, task = self.progress, self.task
        figures = {
            "epoch": len(reached.epochs) + 1,
            "steps": reached.step,
            "loss": float(self.summed) / reached.weight,
        }

        # without held-out rows the training loss decides
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
                f"{task.label}: the loss became {value} by step {reached.step}; lower training.lr "
                "or set a clip."
            )

        reached.epochs.append({name: round(figure, 6) for name, figure in figures.items()})
        if reached.best is None or value < reached.best:
            reached.best, reached.best_epoch = value, len(reached.epochs)
            self.best_state = _copy(self.network)

        reached.epoch_start, reached.weight = reached.step, 0.0
        self.summed.zero_()

    def finish(self) -> dict[str, Any]:
        """Leave the best state in the network; what training.json tells."""
        reached = self.progress
        self.network.load_state_dict(self.best_state)
        self.network.eval()
        assert reached.best is not None

        return {
            "steps": reached.step,
            "best_epoch": reached.best_epoch,
            "best": round(reached.best, 6),
            "epochs": reached.epochs,
        }

    def save_if_due(self, now: bool = False) -> None:
        """Write a checkpoint, where there is a folder, now or if the last one is old."""
        if self.work is None or not (now or time.monotonic() - self.saved > SAVE_EVERY):
            return

        extra = {f"{BEST}{name}": tensor for name, tensor in self.best_state.items()}
        # the generator's state too: dropout goes on as if the run had not stopped
        extra |= {"summed": self.summed, "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            extra["random_cuda"] = torch.cuda.get_rng_state(self.device)

        snapshot = Snapshot(
            self.progress.step,
            self.network.state_dict(),
            optimizer_tensors(self.optimizer, self.network),
            extra,
            {"progress": asdict(self.progress)},
        )

        save_checkpoint(self.work, snapshot, keep=1)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the latest checkpoint, if there is one."""
        checkpoint = None if self.work is None else load_latest(self.work)
        if self.work is None or checkpoint is None:
            return

        forget_after(self.work, checkpoint.step)

        self.network.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimizer, self.network, checkpoint.optimizer)
        self.progress = Progress(**checkpoint.trainer["progress"])

        extra = checkpoint.loss

        self.summed.copy_(extra["summed"])
        self.best_state = {
            name.removeprefix(BEST): t for name, t in extra.items() if name.startswith(BEST)
        }
        torch.set_rng_state(extra["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(extra["random_cuda"], self.device)

        say(f"{self.task.label}: resumed from step {self.progress.step}")


def _copy(network: nn.Module) -> dict[str, Tensor]:
    """The state on the CPU, apart from the network's own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
