"""The training loop on accelerate: one optimizer step is one global batch, whatever ranks and
micro-batches.

The loss is a weighted sum. It is divided once, by the weight of the whole step over all
micro-batches and ranks, which is known before the first forward; so 8 x 1, 1 x 8 and two ranks give
the same gradient. Auxiliary heads have no weights: their sum is divided by the number of targets.
Data order, learning rate and dropout are pure functions of (seed, step): a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.console import progress as progress_bar
from behavegpt.console import say
from behavegpt.data.loader import Share, TrainingBatches
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.errors import BehaveGPTError
from behavegpt.losses import Loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.precision import autocast, choose_precision
from behavegpt.model.size import count_parameters
from behavegpt.signals import collecting
from behavegpt.training.checkpoint import (
    Checkpoint,
    Snapshot,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_sharded,
    tidy,
)
from behavegpt.training.evaluate import evaluate
from behavegpt.training.memory import keep_freed_memory
from behavegpt.training.optimizer import build_optimizer, learning_rate
from behavegpt.training.progress import FIGURES, Progress
from behavegpt.training.record import fingerprint_of, targets_of, tell_unseen
from behavegpt.training.run import RunFolder
from behavegpt.training.settings import TrainSettings
from behavegpt.training.setup import choose_kernels, leave, reporter, training_batches
from behavegpt.training.sharding import (
    gathered,
    is_sharded,
    no_sync,
    part_like,
    spread,
    whole,
    whole_state,
)


class Trainer:
    """Trains a model on a store's training split: `fit` goes to the last step, `step` makes one."""

    def __init__(
        self,
        model: BehaveGPTForBehaviorPrediction,
        loss: Loss,
        store: EventStore,
        settings: TrainSettings,
        run: RunFolder,
        *,
        attention: str = "auto",
        batches: TrainingBatches | None = None,
    ) -> None:
        """`model`: on the CPU; parameters without gradient stay as they are. `attention`: a back
        end of model/attention.py. `batches`: instead of those of the store. Raises DataError when
        there is nothing to learn.
        """
        self.store, self.settings = store, settings
        self.run, self.accelerator = run, run.accelerator
        device = self.accelerator.device
        self.precision = choose_precision(settings.precision, device)
        choose_kernels(model, attention, settings, device, self.precision)
        self.batches = batches or training_batches(store, model.config, settings, model.counts)
        self.steps = settings.steps or max(1, round(settings.epochs * self.batches.steps_per_epoch))

        self.bare = model
        self.loss = loss.to(device)
        # what is trained, and what can be saved
        self.model, self.saved = spread(model, self.accelerator)
        fused = device.type in ("cpu", "cuda")
        self.optimizer = build_optimizer(model, settings, fused=fused)

        self.judge_start = False
        self.progress = Progress()
        self.fingerprint: dict[str, Any] = {}
        self.signal: int | None = None  # the one that stopped the run, if one did
        self._maker = ThreadPoolExecutor(1, "batches")
        self._ahead: dict[int, Future[list[PackedBatch]]] = {}  # step -> its batches, being made
        if device.type == "cpu":
            keep_freed_memory()

    def fit(
        self,
        origin: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        *,
        judge_start: bool = False,
    ) -> None:
        """Train to the last step or an early stop, from the run's latest checkpoint if it is
        resumed.

        `origin`: what else must be the same for a run to go on; `facts`: what else run.json tells;
        `judge_start`: the model as it is may be the best one.
        Raises BehaveGPTError on a non-finite loss or a checkpoint of another run; SystemExit, once
        all is saved, on a signal.
        """
        self.judge_start = judge_start
        assert self.run.settings is not None, "a run without a folder keeps nothing to go on from"
        self.fingerprint = fingerprint_of(self.run.settings, self.store, self.bare.config) | dict(
            origin or {}
        )
        checkpoint = self.run.latest(self.fingerprint)
        parameters, targets = count_parameters(self.saved), targets_of(self.store)
        known = {
            "parameters": parameters["total"],
            "parameters_by_part": parameters,
            "steps": self.steps,
        }
        known |= {"targets": targets, **(facts or {})}
        self.run.begin(self.store, known, resumed=checkpoint is not None)
        if self.accelerator.is_main_process:
            tell_unseen(targets["valid"])

        with progress_bar(self.run.name, self.steps) as show:
            self._begin(checkpoint)
            self._loop(reporter(show))
        if self.signal is None:
            best = self.progress.best_step
            self.run.record["best_step"] = self.progress.step if best is None else best
            self.run.record["stopped"] = self.progress.stopped
            return
        leave(self.accelerator)
        if self.accelerator.is_main_process:
            say(
                f"stopped by a signal at step {self.progress.step}; saved. The same command goes "
                "on there, train and finetune with --resume."
            )
        raise SystemExit(128 + (self.signal if self.signal == signal.SIGINT else signal.SIGTERM))

    def best_model(self) -> BehaveGPTForBehaviorPrediction:
        """The model with the weights of the best validation, or the last ones; whole on rank 0. All
        ranks ask."""
        state = whole_state(self.bare) if is_sharded(self.bare) else None
        progress = self.progress
        if self.accelerator.is_main_process:
            if state is not None:
                self.saved.load_state_dict(state)
            if progress.best_step not in (None, progress.step):
                best = load_checkpoint(self.run.checkpoints / f"step_{progress.best_step:08d}")
                self.saved.load_state_dict(best.model)
        return self.saved

    def _loop(self, report: Any) -> None:
        settings = self.settings
        every = settings.valid_every or max(1, self.steps // 10)
        save_every = settings.checkpoint_every or every
        began, events = time.perf_counter(), 0
        self.model.train()
        with collecting() as stop:
            if (
                self.judge_start
                and self.progress.best_step is None
                and self._validate(self.progress.step)
            ):
                self.save()
            while (
                self.progress.step < self.steps
                and not self.progress.stopped
                and self.signal is None
            ):
                record = self.step(self.progress.step)
                self.progress.step += 1
                step, events = self.progress.step, events + int(record.pop("events"))
                if step % settings.log_every == 0 or step == self.steps:
                    now = time.perf_counter()
                    record["events_per_second"] = events / (now - began)
                    began, events = now, 0
                    self._log({"kind": "train", "step": step, **record})
                report(step, record)

                better = False
                if step % every == 0 or step == self.steps:
                    better = self._validate(step)
                    began, events = time.perf_counter(), 0
                if self._stop_asked(stop) and not self.progress.stopped:
                    self.signal = stop[0] if stop else signal.SIGTERM  # which another rank got
                ends = step == self.steps or self.progress.stopped or self.signal is not None
                if better or step % save_every == 0 or ends:
                    self.save()

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns loss, cross_entropy, lr, grad_norm and events of the global
        batch."""
        self.loss.set_progress(step / self.steps)
        total, statistics = self._backward(step)
        norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip))
        value = float(total)
        if not np.isfinite(value) or not bool(torch.isfinite(norm)):
            self._refuse(step, value, float(norm))

        rate = self._descend(step)
        self.loss.update(statistics[0], statistics[1])
        count = float(statistics[1].sum())
        return {
            "loss": value,
            "cross_entropy": float(statistics[0].sum()) / max(count, 1.0),
            "lr": rate,
            "grad_norm": float(norm),
            "events": count,
        }

    def _backward(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of a step; returns the loss () and the class statistics (2, K) of all
        ranks."""
        accelerator, device = self.accelerator, self.accelerator.device
        rank, world = accelerator.process_index, accelerator.num_processes
        micro = [batch.to(device) for batch in self._micro_batches(step)]
        normalizer, targets = self._sum(self._mass(micro)).clamp(min=1e-12)
        statistics = torch.zeros(2, len(self.batches.store.behaviors.counts), device=device)
        total = torch.zeros((), device=device)
        for index, batch in enumerate(micro):
            torch.manual_seed(_mix(self.settings.seed, step, index, rank))
            last = index == len(micro) - 1
            with (
                nullcontext() if last else no_sync(self.model, accelerator),
                autocast(device, self.precision),
            ):
                output = self.model(
                    **batch.arguments,
                    labels=batch.target,
                    criterion=self.loss,
                    next_fields=batch.next_fields or None,
                )
                mean = output.loss / normalizer + output.side_loss / targets
                # DDP averages the ranks' gradients; the sum over ranks is wanted
                (mean * world).backward()
            total += mean.detach()
            statistics += torch.stack([output.class_loss, output.class_count])
        statistics = self._sum(statistics)
        return self._sum(total), statistics

    def _descend(self, step: int) -> float:
        """Move the weights by the gradients that were made; returns the learning rate."""
        settings = self.settings
        rate = learning_rate(
            step,
            self.steps,
            lr=settings.lr,
            warmup=settings.warmup,
            floor=settings.lr_floor,
            schedule=settings.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _micro_batches(self, step: int) -> list[PackedBatch]:
        """This rank's batches of a step. While a GPU works on them, a thread makes those of the
        next step."""

        def make(step: int) -> list[PackedBatch]:
            accelerator = self.accelerator
            asked = (
                step,
                self.settings.micro_batches,
                accelerator.process_index,
                accelerator.num_processes,
            )
            return list(self.batches.micro_batches(*asked))

        if self.accelerator.device.type == "cpu":
            return make(step)
        made = self._ahead.pop(step, None)
        parts = make(step) if made is None else made.result()
        self._ahead = {step + 1: self._maker.submit(make, step + 1)}
        return parts

    def validate(self) -> dict[str, float]:
        """Figures of the validation split; empty without its events."""
        accelerator = self.accelerator
        with gathered(self.bare):
            metrics, cross_entropy = evaluate(
                self.bare,
                self.store,
                SPLITS["valid"],
                precision=self.precision,
                share=Share(accelerator.process_index, accelerator.num_processes),
            )
        if not metrics.rows:
            return {}
        figures = metrics.compute(self.store.behaviors.counts)
        return {n: figures[n] for n in FIGURES if figures[n] is not None} | {
            "cross_entropy": cross_entropy
        }

    def save(self) -> None:
        """Write a checkpoint: rank 0, or all ranks where the weights are cut over them."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        cut = is_sharded(bare)
        if cut or self.accelerator.is_main_process:
            snapshot = Snapshot(
                self.progress.step,
                bare.state_dict(),
                optimizer_tensors(self.optimizer, bare),
                self.loss.state_dict(),
                {"progress": vars(self.progress), "fingerprint": self.fingerprint},
            )
            write = save_sharded if cut else save_checkpoint
            write(self.run.checkpoints, snapshot, self.settings.keep, self.progress.protected)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; the journal forgets what came after it."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        current = bare.state_dict()
        bare.load_state_dict(
            {
                n: part_like(t, current[n]) if n in current else t
                for n, t in checkpoint.model.items()
            }
        )
        restore_optimizer(self.optimizer, bare, checkpoint.optimizer)
        self.loss.load_state_dict(checkpoint.loss)
        self.progress = Progress(**checkpoint.trainer["progress"])
        # in checkpoints of earlier versions; an early stop stays one
        if self.progress.stopped == "signal":
            self.progress.stopped = None
        if self.accelerator.is_main_process:
            self.run.journal.truncate_after(self.progress.step)
            tidy(
                self.run.checkpoints,
                self.progress.step,
                self.settings.keep,
                self.progress.protected,
            )

    def _validate(self, step: int) -> bool:
        """Whether this is the best model so far by `settings.select`."""
        figures = self.validate()
        if not figures:  # no validation events: the last weights are the result
            return False
        self._log({"kind": "valid", "step": step, **figures})
        settled = step / self.steps > self.loss.start or (step == 0 and self.judge_start)
        # before, the loss is not yet what it will be
        if self.settings.select == "last" or not settled:
            return False
        return self.progress.judge(figures, self.settings.select, self.settings.patience)

    def _mass(self, micro: list[PackedBatch]) -> torch.Tensor:
        """(2,) what this rank's sums are divided by: the weight of its targets, and their number
        for side losses."""
        asked = [batch.target[batch.target != IGNORED] for batch in micro]
        weight = torch.stack([self.loss.weight(target).sum() for target in asked]).sum().float()
        return torch.stack([weight, weight.new_tensor(sum(len(target) for target in asked))])

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.run.journal.append(record)
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
            f"step {step + 1}: the loss is {value} and the gradient's norm {norm}; the weights "
            f"were not changed. The batch is rows {held.min()}-{held.max()} of epoch {epoch} (seed "
            f"{self.settings.seed}). Lower train.lr, or resume from the last checkpoint in "
            f"{self.run.checkpoints} with --resume train.lr={self.settings.lr / 3:.1e}."
        )

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint; without one, drop what a run wrote that never reached its
        first."""
        if checkpoint is not None:
            self.restore(checkpoint)
        if not self.accelerator.is_main_process:
            return
        if checkpoint is not None:
            say(f"resumed from step {self.progress.step}")
        else:
            self.run.journal.truncate_after(0)


def _mix(*parts: int) -> int:
    """A 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
