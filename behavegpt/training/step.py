"""One optimizer step on accelerate: forward, backward and update of one global batch.

The loss is a weighted sum. It is divided once, by the weight of the whole step over all
micro-batches and ranks, which is known before the first forward; so 8 x 1, 1 x 8 and two ranks give
the same gradient. Auxiliary heads have no weights: their sum is divided by the number of targets.
Data order, learning rate and dropout are pure functions of (seed, step).

Shape letters: K behaviors.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.data.loader import TrainingBatches
from behavegpt.data.store import EventStore
from behavegpt.errors import BehaveGPTError
from behavegpt.losses import Loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.precision import autocast, choose_precision
from behavegpt.training.memory import keep_freed_memory
from behavegpt.training.optimizer import build_optimizer, learning_rate
from behavegpt.training.run import RunFolder
from behavegpt.training.settings import TrainSettings
from behavegpt.training.setup import choose_kernels, training_batches
from behavegpt.training.sharding import no_sync, spread, whole


class OptimizerSteps:
    """A model with its loss, optimizer and batches on the ranks of a run; `step` makes one step."""

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
        # what is trained (wrapped by DDP, sharded by FSDP2), and what can be saved
        self.model, self.saved = spread(model, self.accelerator)
        # after `spread`: FSDP2 replaces the parameters
        fused = device.type in ("cpu", "cuda")
        self.optimizer = build_optimizer(model, settings, fused=fused)

        self._maker = ThreadPoolExecutor(1, "batches")
        self._ahead: dict[int, Future[list[PackedBatch]]] = {}  # step -> its batches, being made
        if device.type == "cpu":
            keep_freed_memory()

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns loss, cross_entropy (nats an event), lr, grad_norm and events
        of the global batch.

        Raises BehaveGPTError, before any weight moves, when loss or gradient are not finite.
        """
        self.loss.set_progress(step / self.steps)
        total, statistics = self._backward(step)
        norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip))

        value = float(total)
        if not np.isfinite(value) or not bool(torch.isfinite(norm)):
            self._refuse(step, value, float(norm))

        rate = self._descend(step)
        # only now: the loss's state is frozen within a step, so that all micro-batches and ranks
        # were weighted alike
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

        # before the first forward, and over all ranks: a mean of the micro-batches' means would
        # weight an event by the company it is in
        normalizer, targets = self._sum(self._mass(micro)).clamp(min=1e-12)

        # summed losses and events by class, for the loss's state
        statistics = torch.zeros(2, len(self.batches.store.behaviors.counts), device=device)
        total = torch.zeros((), device=device)
        for index, batch in enumerate(micro):
            # dropout and drawn negatives depend on the step alone, not on how the run got there
            torch.manual_seed(_mix(self.settings.seed, step, index, rank))

            # gradients travel between ranks once, with the last micro-batch
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
        accelerator = self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes

        def make(step: int) -> list[PackedBatch]:
            return list(self.batches.micro_batches(step, self.settings.micro_batches, rank, world))

        # on a CPU the thread would take the cores from the step itself
        if accelerator.device.type == "cpu":
            return make(step)

        made = self._ahead.pop(step, None)
        parts = make(step) if made is None else made.result()
        self._ahead = {step + 1: self._maker.submit(make, step + 1)}
        return parts

    def _mass(self, micro: list[PackedBatch]) -> torch.Tensor:
        """(2,) what this rank's sums are divided by: the weight of its targets, and their number
        for side losses."""
        asked = [batch.target[batch.target != IGNORED] for batch in micro]  # each (N,)
        weights = [self.loss.weight(target) for target in asked]
        # a target is a part of its basket, as in the loss
        weights = [
            weight if batch.baskets is None else weight * batch.baskets["share"]
            for weight, batch in zip(weights, micro, strict=True)
        ]
        weight = torch.stack([weight.sum() for weight in weights]).sum().float()
        return torch.stack([weight, weight.new_tensor(sum(len(target) for target in asked))])

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place; any shape."""
        if self.accelerator.num_processes > 1:
            dist.all_reduce(tensor)
        return tensor

    def _refuse(self, step: int, value: float, norm: float) -> None:
        """Stop before the update spoils the weights."""
        _, rows = self.batches.rows(step)
        epoch = step // self.batches.steps_per_epoch
        held = rows[rows >= 0]  # below 0: rows that fill up the last step of an epoch
        raise BehaveGPTError(
            f"step {step + 1}: the loss is {value} and the gradient's norm {norm}; the weights "
            f"were not changed. The batch is rows {held.min()}-{held.max()} of epoch {epoch} (seed "
            f"{self.settings.seed}). Lower train.lr, or resume from the last checkpoint in "
            f"{self.run.checkpoints} with --resume train.lr={self.settings.lr / 3:.1e}."
        )


def _mix(*parts: int) -> int:
    """A 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
