"""The training loop on accelerate: one optimizer step is one global batch, whatever ranks and micro-batches.

The loss is a weighted sum. It is divided once, by the weight of the whole step over all micro-batches and ranks,
which is known before the first forward; so 8 x 1, 1 x 8 and two ranks give the same gradient. Second heads have no
weights: their sum is divided by the number of targets.
Data order, learning rate and dropout are pure functions of (seed, step): a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.config import Settings
from behavegpt.data.loader import TrainingBatches
from behavegpt.errors import BehaveGPTError
from behavegpt.losses import Loss
from behavegpt.training.checkpoint import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_sharded,
    tidy,
)
from behavegpt.training.evaluate import autocast, to_device
from behavegpt.training.journal import Journal
from behavegpt.training.memory import keep_freed_memory
from behavegpt.training.optimizer import learning_rate
from behavegpt.training.sharding import is_sharded, no_sync, part_like, whole

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainSettings(Settings):
    """Settings of the training loop."""

    steps: int | None = Field(None, ge=1, le=10**9, description="optimizer steps; null: `epochs` over the data")
    epochs: float = Field(3.0, gt=0, le=1e6, description="passes over the training targets, when steps is null")
    batch_events: int | None = Field(
        None,
        ge=64,
        le=2**31,
        description="positions of a step over all ranks; null: a 32nd of the events, 1,024 to 8,192",
    )
    micro_batches: int = Field(1, ge=1, le=2**16, description="parts of a step that are accumulated, to save memory")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW (the paper: 1e-4 at 150 M parameters)")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's moving averages")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of matrices; 0 is Adam")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape after warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising learning rate")
    lr_floor: float = Field(0.1, ge=0, le=1, description="final learning rate as a share of the peak")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(0, ge=0, description="seed of initialisation, data order and dropout")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device has it")
    compile: bool = Field(False, description="torch.compile the model (for GPUs)")
    activation_checkpointing: bool = Field(False, description="recompute activations to save memory")
    deterministic: bool = Field(False, description="only deterministic kernels; a CPU run always is")
    log_every: int = Field(10, ge=1, description="steps between records of the journal")
    valid_every: int | None = Field(None, ge=1, description="steps between validations; null: ten in a run")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; null: as validation")
    keep: int = Field(2, ge=1, description="latest checkpoints kept, beside the best one")
    select: Literal["rec_mean", "rec_w", "rec_m", "ndcg@3", "cross_entropy", "last"] = Field(
        "rec_mean", description="validation figure of the best checkpoint; rec_mean = (rec_w + rec_m) / 2"
    )
    patience: int | None = Field(None, ge=1, description="validations without a better figure before stopping early")
    wandb: str | None = Field(None, description="Weights & Biases project; null: the journal alone")


@dataclass
class Progress:
    """What a run has reached; saved in every checkpoint."""

    step: int = 0  # finished optimizer steps
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0  # validations since the best one
    stopped: str | None = None  # why it was best to end before the last step; a signal is no state of the training


@dataclass
class Trainer:
    """Everything a step needs; `run` goes from `progress.step` to the end."""

    model: torch.nn.Module  # as prepared by accelerate
    loss: Loss
    optimizer: torch.optim.Optimizer
    batches: TrainingBatches
    settings: TrainSettings
    steps: int
    accelerator: Accelerator
    journal: Journal
    checkpoints: Path
    fingerprint: dict[str, Any]
    validate: Callable[[], dict[str, float]]
    precision: str
    on_step: Callable[[int, dict[str, float]], None] = lambda step, record: None
    progress: Progress = field(default_factory=Progress)
    signal: int | None = None  # the one that stopped the run, if one did
    judge_start: bool = False  # the model before the first step may be the best one

    def __post_init__(self) -> None:
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()

    def run(self) -> Progress:
        """Train to the last step, an early stop or a signal. Raises BehaveGPTError on a non-finite loss."""
        settings = self.settings
        every = settings.valid_every or max(1, self.steps // 10)
        save_every = settings.checkpoint_every or every
        began, events = time.perf_counter(), 0
        self.model.train()
        with stop_signals() as stop:
            if self.judge_start and self.progress.best_step is None and self._validate(self.progress.step):
                self.save()
            while self.progress.step < self.steps and not self.progress.stopped and self.signal is None:
                record = self.step(self.progress.step)
                self.progress.step += 1
                step, events = self.progress.step, events + int(record.pop("events"))
                if step % settings.log_every == 0 or step == self.steps:
                    now = time.perf_counter()
                    record["events_per_second"] = events / (now - began)
                    began, events = now, 0
                    self._log({"kind": "train", "step": step, **record})
                self.on_step(step, record)
                better = False
                if step % every == 0 or step == self.steps:
                    better = self._validate(step)
                    began, events = time.perf_counter(), 0
                if self._stop_asked(stop) and not self.progress.stopped:
                    self.signal = stop[0] if stop else signal.SIGTERM  # which another rank got
                ends = step == self.steps or self.progress.stopped or self.signal is not None
                if better or step % save_every == 0 or ends:
                    self.save()
        return self.progress

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns loss, cross_entropy, lr, grad_norm and events of the global batch."""
        settings, accelerator = self.settings, self.accelerator
        rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        self.loss.set_progress(step / self.steps)
        parts = list(self.batches.micro_batches(step, settings.micro_batches, rank, world))
        micro = [to_device(batch, device) for batch in parts]
        normalizer, targets = self._sum(self._mass(micro)).clamp(min=1e-12)
        classes = len(self.batches.store.behaviors.counts)
        statistics = torch.zeros(2, classes, device=device)
        total = torch.zeros((), device=device)
        for index, batch in enumerate(micro):
            torch.manual_seed(_mix(settings.seed, step, index, rank))
            last = index == len(micro) - 1
            with nullcontext() if last else no_sync(self.model, accelerator), autocast(device, self.precision):
                output = self.model(
                    **batch.arguments,
                    labels=batch.target,
                    criterion=self.loss,
                    next_fields=batch.next_fields or None,
                )
                mean = output.loss / normalizer + output.side_loss / targets
                (mean * world).backward()  # DDP averages the ranks' gradients; the sum over ranks is wanted
            total += mean.detach()
            statistics += torch.stack([output.class_loss, output.class_count])
        statistics, total = self._sum(statistics), self._sum(total)
        norm = whole(accelerator.clip_grad_norm_(self.model.parameters(), settings.clip))
        value = float(total)
        if not np.isfinite(value) or not bool(torch.isfinite(norm)):
            self._refuse(step, value, float(norm))
        rate = learning_rate(
            step,
            self.steps,
            lr=settings.lr,
            warmup=settings.warmup,
            floor=settings.lr_floor,
            schedule=settings.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.update(statistics[0], statistics[1])
        count = float(statistics[1].sum())
        return {
            "loss": value,
            "cross_entropy": float(statistics[0].sum()) / max(count, 1.0),
            "lr": rate,
            "grad_norm": float(norm),
            "events": count,
        }

    def save(self) -> None:
        """Write a checkpoint: rank 0, or all ranks where the weights are cut over them."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        cut = is_sharded(bare)
        if cut or self.accelerator.is_main_process:
            (save_sharded if cut else save_checkpoint)(
                self.checkpoints,
                self.progress.step,
                bare.state_dict(),
                optimizer_tensors(self.optimizer, bare),
                self.loss.state_dict(),
                {"progress": vars(self.progress), "fingerprint": self.fingerprint},
                keep=self.settings.keep,
                protect=self._protected(),
            )
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; the journal forgets what came after it."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        current = bare.state_dict()
        bare.load_state_dict({n: part_like(t, current[n]) if n in current else t for n, t in checkpoint.model.items()})
        restore_optimizer(self.optimizer, bare, checkpoint.optimizer)
        self.loss.load_state_dict(checkpoint.loss)
        self.progress = Progress(**checkpoint.trainer["progress"])
        if self.progress.stopped == "signal":  # in checkpoints of earlier versions; an early stop stays one
            self.progress.stopped = None
        if self.accelerator.is_main_process:
            self.journal.truncate_after(self.progress.step)
            tidy(self.checkpoints, self.progress.step, self.settings.keep, self._protected())

    def _protected(self) -> list[int]:
        return [] if self.progress.best_step is None else [self.progress.best_step]

    def _validate(self, step: int) -> bool:
        """Whether this is the best model so far by `settings.select`."""
        figures = self.validate()
        if not figures:  # no validation events: the last weights are the result
            return False
        self._log({"kind": "valid", "step": step, **figures})
        settled = step / self.steps > self.loss.start or (step == 0 and self.judge_start)
        if self.settings.select == "last" or not settled:  # before, the loss is not yet what it will be
            return False
        value = selection_value(figures, self.settings.select)
        if self.progress.best_value is None or value > self.progress.best_value:
            self.progress.best_step, self.progress.best_value, self.progress.worse = step, value, 0
            return True
        self.progress.worse += 1
        if self.settings.patience and self.progress.worse >= self.settings.patience:
            self.progress.stopped = f"no better {self.settings.select} in {self.progress.worse} validations"
        return False

    def _mass(self, micro: list[PackedBatch]) -> torch.Tensor:
        """(2,) what this rank's sums are divided by: the weight of its targets, and their number for side losses."""
        asked = [batch.target[batch.target != IGNORED] for batch in micro]
        weight = torch.stack([self.loss.weight(target).sum() for target in asked]).sum().float()
        return torch.stack([weight, weight.new_tensor(sum(len(target) for target in asked))])

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.journal.append(record)
        figures = {f"{record['kind']}/{k}": v for k, v in record.items() if isinstance(v, float)}
        self.accelerator.log(figures, step=record["step"])

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks."""
        if self.accelerator.num_processes > 1:
            dist.all_reduce(tensor)
        return tensor

    def _stop_asked(self, stop: list[int]) -> bool:
        """Whether any rank got a signal; all ranks agree."""
        flag = torch.tensor(float(bool(stop)), device=self.accelerator.device)
        return bool(self._sum(flag) > 0)

    def _refuse(self, step: int, value: float, norm: float) -> None:
        """Stop before the update spoils the weights."""
        _, rows = self.batches.rows(step)
        epoch = step // self.batches.steps_per_epoch
        held = rows[rows >= 0]
        raise BehaveGPTError(
            f"step {step + 1}: the loss is {value} and the gradient's norm {norm}; the weights were not changed. The "
            f"batch is rows {held.min()}-{held.max()} of epoch {epoch} (seed {self.settings.seed}). Lower train.lr, or "
            f"resume from the last checkpoint in {self.checkpoints} with --resume train.lr={self.settings.lr / 3:.1e}."
        )


def selection_value(figures: dict[str, float], select: str) -> float:
    """The figure by which checkpoints are compared; larger is better."""
    if select == "rec_mean":
        return (figures["rec_w"] + figures["rec_m"]) / 2
    return -figures[select] if select == "cross_entropy" else figures[select]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM, SIGINT and SIGUSR1 so that the run can save and end at a step; a second SIGINT interrupts."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # handlers can only be set in the main thread
        return
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in names}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _mix(*parts: int) -> int:
    """A 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
