"""One run from settings to a model folder: what pretraining and fine-tuning share; they differ in their `Work`.

RUN/run.json       command, versions, seeds, data, parameters, result
RUN/config.yaml    the settings, resolved
RUN/log.jsonl      the journal
RUN/ckpt/          checkpoints
RUN/model/         weights, config and tokenizer: `behavegpt.load("RUN/model")`
"""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import Field

from behavegpt.config import Settings, dump_settings
from behavegpt.console import progress as progress_bar
from behavegpt.console import say
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.io import check_output, write_json, write_text
from behavegpt.losses import Loss, LossSettings, build_loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.attention import choose_backend
from behavegpt.paths import PathText
from behavegpt.training.checkpoint import Checkpoint, changes, load_checkpoint, load_latest, refuse_mismatch
from behavegpt.training.evaluate import evaluate
from behavegpt.training.journal import Journal, run_lock
from behavegpt.training.loop import Progress, Trainer, TrainSettings
from behavegpt.training.optimizer import build_optimizer
from behavegpt.training.run_folder import save_model, start_record
from behavegpt.training.setup import choose_precision, leave, make_accelerator, reporter, training_batches
from behavegpt.training.sharding import gathered, is_sharded, spread, whole_state

SHAPE = (
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "head_size",
    "max_length",
    "position_encoding",
    "dropout",
    "initializer_range",
    "history_head",
    "memory",
    "tied_head",
    "next_heads",
)


class DataSettings(Settings):
    """Which prepared folder to train on."""

    path: PathText = Field(description="folder written by `behavegpt prepare`")


class RunSettings(Settings):
    """What every run has."""

    out: PathText = Field(description="run folder; made if absent")
    data: DataSettings
    attention: str = Field("auto", description="auto, or a back end of model/attention.py")
    loss: LossSettings = Field(default_factory=LossSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)


def _as_it_is(model: BehaveGPTForBehaviorPrediction, run: Path) -> BehaveGPTForBehaviorPrediction:
    return model


@dataclass(frozen=True)
class Work:
    """What a run trains, on what, and what it makes of the trained weights."""

    name: str  # of the progress bar
    store: EventStore
    tokenizer: EventTokenizer
    model: BehaveGPTForBehaviorPrediction  # at its start; parameters without gradient stay as they are
    parameters: dict[str, int]  # count_parameters of the model that is saved
    fingerprint: dict[str, Any] = field(default_factory=dict)  # what else must be the same for a run to go on
    record: dict[str, Any] = field(default_factory=dict)  # what else run.json says
    inherit: Callable[[Loss], None] = lambda loss: None  # gives the loss what another run knew of the classes
    finish: Callable[[BehaveGPTForBehaviorPrediction, Path], BehaveGPTForBehaviorPrediction] = _as_it_is
    # writes further files of RUN/model
    beside: Callable[[BehaveGPTForBehaviorPrediction, Path], None] = lambda model, folder: None
    judge_start: bool = False  # the model as it starts may be the best one


def execute(settings: RunSettings, begin: Callable[[], Work], *, resume: bool = False) -> Path:
    """Train what `begin()` makes and write RUN/model; returns RUN. Goes on from the latest checkpoint with `resume`.

    Raises BehaveGPTError on bad settings or data, a run folder in use, a checkpoint of other data, or a bad loss.
    """
    run = Path(settings.out)
    check_output(run, "into")
    accelerator = make_accelerator(settings.train)
    if not accelerator.is_main_process:
        return _execute(settings, run, accelerator, begin, resume)
    run.mkdir(parents=True, exist_ok=True)
    with run_lock(run):
        return _execute(settings, run, accelerator, begin, resume)


def _execute(
    settings: RunSettings, run: Path, accelerator: Accelerator, begin: Callable[[], Work], resume: bool
) -> Path:
    train = settings.train
    _refuse_used_folder(run, resume)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    precision = choose_precision(train.precision, accelerator.device)
    torch.manual_seed(train.seed)
    work = begin()
    chosen = choose_backend(accelerator.device, precision == "bf16")
    work.model.set_attn_implementation(chosen if settings.attention == "auto" else settings.attention)
    if train.activation_checkpointing:
        _checkpoint_activations(work.model)
    batches = training_batches(work.store, work.model.config, train, work.model.counts)
    steps = train.steps or max(1, round(train.epochs * batches.steps_per_epoch))
    loss = build_loss(settings.loss, torch.tensor(work.store.behaviors.counts))
    work.inherit(loss)
    loss.to(accelerator.device)
    prepared, saved = spread(work.model, accelerator)
    optimizer = build_optimizer(
        work.model, train.lr, train.weight_decay, train.betas, fused=accelerator.device.type in ("cpu", "cuda")
    )
    fingerprint = _fingerprint(work, settings)
    checkpoint = _latest(run, fingerprint) if resume else None
    facts = start_record(settings.model_dump(mode="json"), train.seed, work.store, work.parameters, steps, accelerator)
    facts |= work.record | {"targets": _targets(work.store)}
    if accelerator.is_main_process:
        if checkpoint is not None:
            _tell_changes(run, facts)
        write_json(run / "run.json", facts)
        write_text(run / "config.yaml", dump_settings(settings))
        _tell_unseen(facts["targets"]["valid"])
    compiled: torch.nn.Module = torch.compile(prepared) if train.compile else prepared  # type: ignore[assignment]
    with progress_bar(work.name, steps) as show:
        trainer = Trainer(
            model=compiled,
            loss=loss,
            optimizer=optimizer,
            batches=batches,
            settings=train,
            steps=steps,
            accelerator=accelerator,
            journal=Journal(run / "log.jsonl"),
            checkpoints=run / "ckpt",
            fingerprint=fingerprint,
            validate=_validator(work, precision, accelerator),
            precision=precision,
            on_step=reporter(show),
            judge_start=work.judge_start,
        )
        _begin(trainer, checkpoint)
        progress = trainer.run()
    if is_sharded(work.model):
        state = whole_state(work.model)  # of all ranks
        if accelerator.is_main_process:
            saved.load_state_dict(state)
    if accelerator.is_main_process and trainer.signal is None:
        _finish(run, trainer, replace(work, model=saved), facts)
    leave(accelerator)
    if trainer.signal is not None:
        if accelerator.is_main_process:
            say(f"stopped by a signal at step {progress.step}; saved. Go on with --resume.")
        raise SystemExit(128 + (trainer.signal if trainer.signal == signal.SIGINT else signal.SIGTERM))
    return run


def _fingerprint(work: Work, settings: RunSettings) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    config = work.model.config
    return {
        "data": {
            "content_hash": work.store.manifest.content_hash,
            "schema": work.store.schema.model_dump(mode="json"),
            "vocabulary": {name: vocabulary.hash for name, vocabulary in work.tokenizer.vocabulary.items()},
        },
        "model": {name: getattr(config, name) for name in (*SHAPE, "field_sizes", "num_behaviors")},
        "loss": settings.loss.model_dump(mode="json"),
        "train": {"seed": settings.train.seed, "batch_events": settings.train.batch_events},
        **work.fingerprint,
    }


def _targets(store: EventStore) -> dict[str, dict[str, int]]:
    """Split -> targets that are trained on or scored, and those left out because their label is unknown."""
    return {
        name: {"known": len(target_rows(store, split)), "unseen": count_unseen(store, split)}
        for name, split in SPLITS.items()
    }


def _tell_unseen(valid: dict[str, int]) -> None:
    if valid["unseen"]:
        say(
            f"validation: {valid['unseen']:,} of {sum(valid.values()):,} targets have a behavior that training never "
            "saw, or none; its figures leave them out."
        )


def _checkpoint_activations(model: BehaveGPTForBehaviorPrediction) -> None:
    try:
        model.activation_checkpointing_enable()
    except ValueError:  # transformers found no layer that recomputes its activations
        kind = getattr(model.config, "architecture", f"model of {model.config.num_hidden_layers} blocks")
        raise ConfigError(
            f"train.activation_checkpointing: a {kind} has no transformer blocks whose activations could be recomputed;"
            " set it to false."
        ) from None


def _validator(work: Work, precision: str, accelerator: Accelerator) -> Callable[[], dict[str, float]]:
    def validate() -> dict[str, float]:
        with gathered(work.model):
            metrics, cross_entropy = evaluate(
                work.model,
                work.store,
                SPLITS["valid"],
                max_length=work.model.config.max_length,
                fields=work.model.config.columns,
                precision=precision,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
            )
        if not metrics.rows:
            return {}
        figures = metrics.compute(work.store.behaviors.counts)
        names = ("rec_w", "rec_m", "prec_w", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")
        return {name: figures[name] for name in names if figures[name] is not None} | {"cross_entropy": cross_entropy}

    return validate


def _refuse_used_folder(run: Path, resume: bool) -> None:
    used = (run / "ckpt").is_dir() and any((run / "ckpt").glob("step_*"))
    if used and not resume:
        raise CheckpointError(f"{run} holds a run already; go on with --resume, or choose another out=FOLDER.")


def _latest(run: Path, fingerprint: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint to go on from; None if the run never reached its first."""
    checkpoint = load_latest(run / "ckpt")
    if checkpoint is not None:
        refuse_mismatch(checkpoint.trainer["fingerprint"], fingerprint)
    elif any((run / "ckpt").glob("step_*")):
        raise CheckpointError(f"{run / 'ckpt'}: no checkpoint is sound; move the folder away to start anew.")
    return checkpoint


def _tell_changes(run: Path, facts: dict[str, Any]) -> None:
    """One line with the settings that a resumed run was begun with otherwise: they need not be meant."""
    try:
        before = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return
    found = changes(before, facts["config"])
    if found:
        said = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in found.items())
        say(f"resuming with changed settings: {said}")


def _begin(trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    """Go on from a checkpoint; without one, drop what a run wrote that never reached its first."""
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if trainer.accelerator.is_main_process:
            say(f"resumed from step {trainer.progress.step}")
    elif trainer.accelerator.is_main_process:
        trainer.journal.truncate_after(0)


def _finish(run: Path, trainer: Trainer, work: Work, facts: dict[str, Any]) -> None:
    """Write RUN/model from the best checkpoint, in one rename, and close run.json."""
    progress: Progress = trainer.progress
    if progress.best_step is not None and progress.best_step != progress.step:
        work.model.load_state_dict(load_checkpoint(run / "ckpt" / f"step_{progress.best_step:08d}").model)
    save_model(work.finish(work.model, run), work.tokenizer, run / "model", work.beside)
    finished = datetime.datetime.now(datetime.UTC)
    began = datetime.datetime.fromisoformat(facts["started"])
    facts |= {
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - began).total_seconds(), 1),
        "best_step": progress.step if progress.best_step is None else progress.best_step,
        "stopped": progress.stopped,
    }
    write_json(run / "run.json", facts)
