"""The training loop: steps, validations, checkpoints, and how a run ends.

A step itself is in step.py. A resumed run equals an uninterrupted one: all that a step depends on
is in the checkpoint, or a pure function of seed and step.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

from behavegpt.console import progress as progress_bar
from behavegpt.console import say
from behavegpt.data.loader import Share, TrainingBatches
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.losses import Loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.size import count_parameters
from behavegpt.signals import collecting
from behavegpt.training.checkpoint import (
    Checkpoint,
    Snapshot,
    forget_after,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_sharded,
    tidy,
)
from behavegpt.training.evaluate import evaluate
from behavegpt.training.progress import FIGURES, Progress
from behavegpt.training.record import fingerprint_of, targets_of, tell_unseen
from behavegpt.training.run import RunFolder
from behavegpt.training.settings import TrainSettings
from behavegpt.training.setup import leave, reporter
from behavegpt.training.sharding import gathered, is_sharded, part_like, whole_state
from behavegpt.training.step import OptimizerSteps


class Trainer(OptimizerSteps):
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
        """As OptimizerSteps."""
        super().__init__(model, loss, store, settings, run, attention=attention, batches=batches)
        self.judge_start = False
        self.progress = Progress()
        self.fingerprint: dict[str, Any] = {}
        self.signal: int | None = None  # the one that stopped the run, if one did

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

        # a checkpoint is continued by the same data, shape and options alone
        own = fingerprint_of(self.run.settings, self.store, self.bare.config)
        self.fingerprint = own | dict(origin or {})
        checkpoint = self.run.latest(self.fingerprint)

        parameters, targets = count_parameters(self.saved), targets_of(self.store)
        known = {
            "parameters": parameters["total"],
            "parameters_by_part": parameters,
            "steps": self.steps,
            "targets": targets,
            **(facts or {}),
        }
        self.run.begin(self.store, known, resumed=checkpoint is not None)
        if self.accelerator.is_main_process:
            tell_unseen(targets["valid"])

        with progress_bar(self.run.name, self.steps) as show:
            self._begin(checkpoint)
            self._loop(reporter(show))

        if self.signal is not None:
            self._end_by(self.signal)
        best = self.progress.best_step
        # None: nothing was judged, and the last weights are the result
        self.run.record["best_step"] = self.progress.step if best is None else best
        self.run.record["stopped"] = self.progress.stopped

    def _end_by(self, number: int) -> NoReturn:
        """End the process of a run that a signal stopped, once all is saved."""
        # the ranks leave together: one that ended before the others had saved would hang them
        leave(self.accelerator)
        if self.accelerator.is_main_process:
            say(
                f"stopped by a signal at step {self.progress.step}; a checkpoint was "
                "saved. Run the same command again to continue (train and finetune with "
                "--resume; the demo starts over)."
            )
        # shells expect 128 + the signal; SIGUSR1, which schedulers send, ends like SIGTERM
        raise SystemExit(128 + (number if number == signal.SIGINT else signal.SIGTERM))

    def best_model(self) -> BehaveGPTForBehaviorPrediction:
        """The model with the weights of the best validation, or the last ones; whole on rank 0. All
        ranks ask."""
        # gathering is collective, so all ranks do it, although only rank 0 keeps the result
        state = whole_state(self.bare) if is_sharded(self.bare) else None
        progress = self.progress

        if self.accelerator.is_main_process:
            if state is not None:
                self.saved.load_state_dict(state)
            # the last weights are in memory already
            if progress.best_step not in (None, progress.step):
                best = load_checkpoint(self.run.checkpoints / f"step_{progress.best_step:08d}")
                self.saved.load_state_dict(best.model)
        return self.saved

    def _loop(self, report: Callable[[int, dict[str, float]], None]) -> None:
        """Steps, validations and checkpoints from `progress.step` to the end of the run."""
        settings = self.settings
        every = settings.valid_every or max(1, self.steps // 10)
        save_every = settings.checkpoint_every or every
        began, events = time.perf_counter(), 0
        self.model.train()

        with collecting() as stop:
            # on a resumed run the start was judged before, or some better model was found
            judge_start = self.judge_start and self.progress.best_step is None
            if judge_start and self._validate(self.progress.step):
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
                    # events a second since the last record, without the time that validations take
                    began, events = now, 0
                    self._log({"kind": "train", "step": step, **record})
                report(step, record)

                better = False
                if step % every == 0 or step == self.steps:
                    better = self._validate(step)
                    # the clock starts again: a validation is no training
                    began, events = time.perf_counter(), 0

                # all ranks end at the same step, or the others would wait for this one's gradients
                # for ever
                if self._stop_asked(stop) and not self.progress.stopped:
                    self.signal = stop[0] if stop else signal.SIGTERM  # which another rank got

                # a checkpoint at the end whatever its cause: nothing is lost, and --resume goes on
                # from it
                ends = step == self.steps or self.progress.stopped or self.signal is not None
                if better or step % save_every == 0 or ends:
                    self.save()

    def validate(self) -> dict[str, float]:
        """Figures of the validation split; empty without its events."""
        accelerator = self.accelerator
        # ranks have different numbers of batches, so sharded weights are gathered once, before
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
        # a third of the classes may have no target in the split; its recall is None then
        present = {name: figures[name] for name in FIGURES if figures[name] is not None}
        return present | {"cross_entropy": cross_entropy}

    def save(self) -> None:
        """Write a checkpoint: rank 0, or all ranks where the weights are sharded over them."""
        # DDP's wrapper stays out of the names of the weights
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        sharded = is_sharded(bare)
        if sharded or self.accelerator.is_main_process:
            snapshot = Snapshot(
                self.progress.step,
                bare.state_dict(),
                optimizer_tensors(self.optimizer, bare),
                self.loss.state_dict(),
                {"progress": vars(self.progress), "fingerprint": self.fingerprint},
            )
            write = save_sharded if sharded else save_checkpoint
            write(self.run.checkpoints, snapshot, self.settings.keep, self.progress.protected)

        # nobody goes on before the checkpoint is complete
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; the journal forgets what came after it."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        current = bare.state_dict()
        weights = {
            name: part_like(tensor, current[name]) if name in current else tensor
            for name, tensor in checkpoint.model.items()
        }
        bare.load_state_dict(weights)
        restore_optimizer(self.optimizer, bare, checkpoint.optimizer)
        self.loss.load_state_dict(checkpoint.loss)
        self.progress = Progress(**checkpoint.trainer["progress"])

        if self.progress.stopped == "signal":
            # in checkpoints of earlier versions; an early stop stays one
            self.progress.stopped = None

        if self.accelerator.is_main_process:
            # a run that was killed had gone on behind its last checkpoint
            self.run.journal.truncate_after(self.progress.step)
            forget_after(self.run.checkpoints, self.progress.step)
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

        # also those that cannot be chosen: the curve is of the whole run
        self._log({"kind": "valid", "step": step, **figures})

        # before `start` the loss is not yet what it will be, so its best model does not count
        settled = step / self.steps > self.loss.start or (step == 0 and self.judge_start)
        if self.settings.select == "last" or not settled:
            return False
        return self.progress.judge(figures, self.settings.select, self.settings.patience)

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.run.journal.append(record)
        figures = {f"{record['kind']}/{k}": v for k, v in record.items() if isinstance(v, float)}
        self.accelerator.log(figures, step=record["step"])

    def _stop_asked(self, stop: list[int]) -> bool:
        """Whether any rank got a signal; all ranks agree."""
        flag = torch.tensor(float(bool(stop)), device=self.accelerator.device)
        return bool(self._sum(flag) > 0)

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
