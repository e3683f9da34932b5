"""A model that goes on: its vocabulary grown, its tables counted anew, some steps on new events."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from behavegpt.adapt.cross_domain import target_config
from behavegpt.adapt.mode_table import cells
from behavegpt.adapt.settings import AdaptSettings
from behavegpt.adapt.transfer import apply_transfer, plan_transfer
from behavegpt.console import progress
from behavegpt.data.collate import BatchFields
from behavegpt.data.given import in_order
from behavegpt.data.loader import TrainingBatches, row_length_for
from behavegpt.data.memory_counts import count_store
from behavegpt.data.pack import (
    RowPlan,
    Windows,
    evaluation_windows,
    pack_rows,
    training_windows,
)
from behavegpt.data.reencode import empty_vocabulary, new_labels, reencode
from behavegpt.data.store import VALID, EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.losses import build_loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.model_folder import Trained
from behavegpt.training.run import RunFolder
from behavegpt.training.settings import RunSettings
from behavegpt.training.step import OptimizerSteps
from behavegpt.updating.drift import with_split
from behavegpt.updating.settings import UpdateSettings

BATCH_EVENTS = 2048  # positions of a step, where the run's configuration names none


def grow(old: Trained, store: EventStore) -> tuple[Trained, EventStore]:
    """The model with the store's new labels behind its own, and the store in its ids.

    Known rows are copied, as `finetune` does it; new ones are fresh. The frequencies of the
    behaviors and the tables of a memory are those of the store's training split.
    """
    vocabulary = {
        field: known.grow(new_labels(known, store.vocabulary.get(field, empty_vocabulary())))
        for field, known in old.tokenizer.vocabulary.items()
    }
    encoded = reencode(store, vocabulary)
    tokenizer = EventTokenizer(
        old.tokenizer.event_schema, dict(encoded.vocabulary), old.tokenizer.max_length
    )
    # it reads of the users what it read before
    read = old.model.config.user_features or ()
    config = target_config(old.model.config, tokenizer, None, read)
    config.retired = old.model.config.retired  # ids stay what they are
    model = BehaveGPTForBehaviorPrediction(config)

    model.set_prior(torch.tensor(encoded.behaviors.counts))
    if config.memory:
        model.counts = count_store(encoded, in_order(config.given or ()))

    # frequencies have moved: biases move with them, as where a model meets data of its own
    row = cells("full", AdaptSettings(), grow=True) | {"prior": "fresh"}
    weights = {name: tensor.cpu() for name, tensor in old.model.state_dict().items()}
    plan = plan_transfer(row, weights, old.tokenizer, tokenizer, model)
    apply_transfer(plan, weights, model)
    return Trained(model, tokenizer), encoded


class UpdateBatches(TrainingBatches):
    """Rows of new events, each in the context of its user's past, and of earlier ones: `replay` of
    the targets, drawn anew for each pass over the new ones."""

    def __init__(
        self, store: EventStore, is_new: np.ndarray, replay: float, **options: Any
    ) -> None:
        """`store`: new events that are trained on are in its training split, as all earlier ones;
        `is_new` (events,) bool. `options`: of TrainingBatches."""
        split = np.asarray(store.columns["split"]).copy()
        # earlier events 0, new ones 1, held out ones 2: windows of each kind are cut by split
        split[is_new] += 1
        self.parts, self.replay = with_split(store, split), replay
        super().__init__(store, **options)

    def _make_plan(self, epoch: int) -> RowPlan:
        rng = np.random.default_rng([self.seed, epoch])
        new = evaluation_windows(self.parts, VALID, self.max_length)
        earlier = training_windows(self.parts, self.max_length, rng)

        # as many of the earlier windows as hold the share of the targets
        wanted = (new.length - new.score_from).sum() * self.replay / (1 - self.replay)
        order = rng.permutation(len(earlier))
        held = np.cumsum(earlier.length[order])
        drawn = earlier.take(order[: int(np.searchsorted(held, wanted))])

        # in one plan: each step has new and earlier events in about the drawn share
        both = Windows(
            *(np.concatenate(pair) for pair in zip(_parts(new), _parts(drawn), strict=True))
        )
        return pack_rows(both, self.row_length, rng)


def _parts(windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return windows.start, windows.length, windows.score_from


def train(
    model: BehaveGPTForBehaviorPrediction,
    store: EventStore,
    is_new: np.ndarray,
    run: RunSettings,
    settings: UpdateSettings,
    accelerator: Accelerator,
) -> float | None:
    """Make the steps, in place; returns the mean cross-entropy of the last tenth of them, None
    where there is none, or nothing to learn. Loss and optimizer are those of the run."""
    train = run.train.model_copy(
        update={
            "steps": settings.steps,
            "lr": run.train.lr * settings.rate,
            "mixer_lr": run.train.mixer_lr and run.train.mixer_lr * settings.rate,
            "seed": settings.seed,
        }
    )
    config, wanted = model.config, run.train.batch_events or BATCH_EVENTS
    batches = UpdateBatches(
        store,
        is_new,
        settings.replay,
        max_length=config.max_length,
        rows_per_step=-(-wanted // row_length_for(config.max_length)),
        seed=settings.seed,
        fields=BatchFields(
            config.columns, tuple(config.next_heads or ()), tuple(config.given or ())
        ),
        counts=model.counts,
    )
    if not settings.steps or not batches.rows(0)[0].rows:
        return None

    loss = build_loss(run.loss, torch.tensor(store.behaviors.counts))
    steps = OptimizerSteps(
        model, loss, store, train, RunFolder(accelerator), attention=run.attention, batches=batches
    )
    model.train()
    # the last tenth: the first losses are those of the model before
    last: list[float] = []
    with progress("update", settings.steps) as show:
        for step in range(settings.steps):
            record = steps.step(step)
            if step >= settings.steps - max(1, settings.steps // 10):
                last.append(record["cross_entropy"])
            show(step + 1, f"loss {record['cross_entropy']:.3f}")
    model.eval()
    return float(np.mean(last))
