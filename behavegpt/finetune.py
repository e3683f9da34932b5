"""Fine-tuning from a pretrained model folder: the composition that finetune.py and
`behavegpt finetune` run.

The run folder is that of pretraining (training/run.py); with mode=lora also

RUN/adapter/       PEFT's files; `behavegpt.load("RUN/adapter")` and `PeftModel.from_pretrained`
                   open it
RUN/base/          the model the adapter belongs to, where it is not `base` itself (new labels,
                   fresh parts)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from behavegpt.adapt.cross_domain import schema_remarks, target_config, target_tokenizer
from behavegpt.adapt.mode_table import cells
from behavegpt.adapt.modes import Mode
from behavegpt.adapt.new_behavior import merge_new_rows, refuse_nothing_new, train_new_rows
from behavegpt.adapt.settings import AdaptSettings
from behavegpt.adapt.transfer import (
    Counts,
    TensorPlan,
    apply_transfer,
    count_transfer,
    is_unchanged,
    match_scale,
    plan_transfer,
)

# so that their folders open, and are refused
from behavegpt.baselines import network as _baselines  # noqa: F401
from behavegpt.config import PathText
from behavegpt.console import say, table
from behavegpt.data.baskets import check_baskets
from behavegpt.data.given import check_schema, in_order
from behavegpt.data.memory_counts import count_store
from behavegpt.data.pack import target_counts
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST
from behavegpt.decision import thresholds_of
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.generation.constraints import links_of
from behavegpt.losses import Loss, build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.size import count_parameters
from behavegpt.shipped import shipped_folder
from behavegpt.training.checkpoint import load_latest
from behavegpt.training.model_folder import Trained, open_model, save_model
from behavegpt.training.run import open_run
from behavegpt.training.settings import RunSettings
from behavegpt.training.trainer import Trainer

if TYPE_CHECKING:
    from peft import PeftModel


# the trained model and the run's folder -> the model to save
Finish = Callable[[BehaveGPTForBehaviorPrediction, Path], BehaveGPTForBehaviorPrediction]


class FinetuneSettings(RunSettings):
    """One fine-tuning run."""

    base: PathText = Field(description="pretrained model folder, for example runs/mine/model")
    mode: Mode = Field(
        description="what is transferred and what is trained: the table in adapt/mode_table.py"
    )
    adapt: AdaptSettings = Field(default_factory=AdaptSettings)

    @property
    def base_folder(self) -> Path:
        """The base's folder, which may be one that ships with the package."""
        return shipped_folder(self.base) or Path(self.base)


def finetune(
    settings: FinetuneSettings, *, resume: bool = False, store: EventStore | None = None
) -> Path:
    """Adapt a model and write RUN/model; returns RUN. Goes on from the latest checkpoint with
    `resume`.

    `store`: opened data instead of those in `data.path`. Raises BehaveGPTError on a base, data or
    options that do not go together, besides what training raises.
    """
    with open_run(settings, "finetune", resume=resume) as run:
        adapted = adapt_model(settings, store)
        loss = build_loss(settings.loss, torch.tensor(target_counts(adapted.store)))
        # before the trainer: a checkpoint that the run goes on from comes over it
        adapted.inherit(loss)

        trainer = Trainer(
            adapted.model, loss, adapted.store, settings.train, run, attention=settings.attention
        )
        trainer.fit(origin=adapted.origin, facts=adapted.facts)

        # all ranks ask, as sharded weights are gathered; one writes
        best = trainer.best_model()
        if run.accelerator.is_main_process:
            run.save(
                adapted.finish(best, run.path),
                adapted.tokenizer,
                links_of(adapted.store),
                thresholds_of(adapted.store, adapted.tokenizer, settings.decision),
            )
    return run.path


@dataclass(frozen=True)
class Adapted:
    """An adapted model before its first step, with what goes with it."""

    model: BehaveGPTForBehaviorPrediction  # parameters without gradient stay as they are
    store: EventStore  # the data in the ids of the model's vocabulary
    tokenizer: EventTokenizer
    origin: dict[str, Any]  # what must be the same for a run to go on
    facts: dict[str, Any]  # what run.json tells
    inherit: Callable[[Loss], None]  # gives the loss what the base's run knew of the classes
    finish: Finish


def _open_base(folder: Path) -> Trained:
    """The model that is adapted. Raises ConfigError for a baseline."""
    base = open_model(folder)
    if base.model.config.model_type != BehaveGPTConfig.model_type:
        raise ConfigError(
            f"{folder}: a {base.model.config.architecture}, but the modes transfer parts "
            "of a BehaveGPT. Name the folder of a BehaveGPT."
        )
    return base


def adapt_model(settings: FinetuneSettings, store: EventStore | None = None) -> Adapted:
    """The base's parts in a model for the data of `store` (default: settings.data), as
    settings.mode says."""
    store = store or open_store(settings.data.path)
    # mistakes first: nothing is built for data that the base cannot read
    base, old = _open_base(settings.base_folder)
    check_schema(base.config.given or (), store.schema)
    check_baskets(base.config.baskets, store.schema)

    options, grow = settings.adapt, _grows(settings)
    row = cells(settings.mode, options, grow)
    new, encoded = target_tokenizer(old, store, options, grow)
    if settings.mode == "new_behavior":
        refuse_nothing_new(old, new)
    remarks = schema_remarks(base.config, old, store)

    model = _fresh_model(base.config, new, encoded, options.dropout)

    weights = base.state_dict()
    plan = plan_transfer(row, weights, old, new, model, options.same_labels)
    if options.scale == "base":
        match_scale(plan, weights, model)
    apply_transfer(plan, weights, model)

    # before LoRA and the frozen rows change what the model is made of
    counts, parameters = count_transfer(plan, model), count_parameters(model)
    finish: Finish
    if settings.mode == "lora":
        counts, finish = _with_adapter(settings, plan, model, new, counts)
    else:
        train_new_rows(model, plan)
        finish = _merged
    show_transfer(settings.mode, counts, remarks)

    inherit = _class_losses(settings.base_folder, old, new) if settings.mode != "scratch" else None
    return Adapted(
        model=model,
        store=encoded,
        tokenizer=new,
        origin=_origin(settings),
        facts={
            "transfer": [count._asdict() for count in counts],
            "remarks": remarks,
            "parameters": parameters["total"],
            "parameters_by_part": parameters,
        },
        inherit=inherit or (lambda loss: None),
        finish=finish,
    )


def _grows(settings: FinetuneSettings) -> bool:
    """Whether the vocabulary is the base's with new labels appended, not one of the data alone."""
    vocabulary = settings.adapt.vocabulary
    return vocabulary == "grow" or (vocabulary == "auto" and settings.mode == "new_behavior")


def _origin(settings: FinetuneSettings) -> dict[str, Any]:
    """What else must be the same for a run to go on: the base by its weights, mode and options."""
    # by their hash, not their path: the base may have moved, and must not have changed
    from behavegpt.adapt.peft import weights_hash

    return {
        "base": weights_hash(settings.base_folder),
        "mode": settings.mode,
        "adapt": settings.adapt.model_dump(mode="json"),
    }


def _fresh_model(
    base: BehaveGPTConfig, tokenizer: EventTokenizer, store: EventStore, dropout: float | None
) -> BehaveGPTForBehaviorPrediction:
    """A new model of the target's shape; what the mode transfers is copied over it."""
    model = BehaveGPTForBehaviorPrediction(target_config(base, tokenizer, dropout))
    model.set_prior(torch.tensor(target_counts(store)))
    if model.config.memory:  # the habits of these data
        model.counts = count_store(store, in_order(model.config.given or ()))
    return model


def show_transfer(mode: str, counts: list[Counts], remarks: list[str]) -> None:
    """Print what was reused, what is new and what trains, by part."""
    # by the launcher's word, as the process group need not be there yet
    if int(os.environ.get("RANK", 0)):
        return

    total = Counts(
        "all",
        "",
        sum(count.reused for count in counts),
        sum(count.new for count in counts),
        sum(count.trained for count in counts),
    )
    rows = []
    for count in (*counts, total):
        numbers = (count.reused, count.new, count.trained)
        rows.append([count.part, count.cell, *(f"{number:,}" for number in numbers)])

    table(("part", "how", "reused", "new", "trained"), rows, f"mode {mode}: parameters")
    for remark in remarks:
        say(remark)


def _merged(model: BehaveGPTForBehaviorPrediction, run: Path) -> BehaveGPTForBehaviorPrediction:
    """The trained model with its new rows in its tables; a copy, as the run may go on."""
    return merge_new_rows(copy.deepcopy(model))


def _with_adapter(
    settings: FinetuneSettings,
    plan: list[TensorPlan],
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    counts: list[Counts],
) -> tuple[list[Counts], Finish]:
    """Put LoRA into the model; returns the counts with LoRA's, and what to write at the end."""
    from behavegpt.adapt.peft import adapter_counts, attach, save_adapter

    # PEFT keeps what was added alone, so the model it was added to must be kept where it is new
    start = None if is_unchanged(plan) else copy.deepcopy(model)
    adapter: PeftModel = attach(model, plan, settings.adapt.lora)

    def finish(
        trained: BehaveGPTForBehaviorPrediction, run: Path
    ) -> BehaveGPTForBehaviorPrediction:
        base = settings.base_folder
        if start is not None:
            base = run / "base"
            save_model(start, tokenizer, base)
        save_adapter(adapter, run / "adapter", base)

        # RUN/model has LoRA in its weights, so that it opens without PEFT
        merged: Any = copy.deepcopy(adapter).merge_and_unload()
        return merged

    return adapter_counts(counts, model), finish


def _class_losses(
    base: Path, old: EventTokenizer, new: EventTokenizer
) -> Callable[[Loss], None] | None:
    """Gives a DRO loss the class losses of the base's last checkpoint, if it still lies beside the
    base."""
    folder = base.parent / "ckpt"
    try:
        checkpoint = load_latest(folder) if folder.is_dir() else None
    except CheckpointError:
        return None

    # absent with another loss, of another length where the checkpoint is not the base's
    state = checkpoint.loss if checkpoint is not None else {}
    if len(state.get("class_loss", ())) != old.behaviors.classes:
        return None

    rows = torch.from_numpy(old.behaviors.encode(new.behaviors.values)) - FIRST  # (K,)
    return lambda loss: loss.inherit(state, torch.where(rows < 0, -1, rows))
