"""Pretraining from settings to a model folder: the composition that train.py and `behavegpt train` run.

RUN/run.json       command, versions, seeds, data, parameters, result
RUN/config.yaml    the settings, resolved
RUN/log.jsonl      the journal
RUN/ckpt/          checkpoints
RUN/model/         weights, config and tokenizer: `behavegpt.load("RUN/model")`
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from pydantic import Field, field_validator

from behavegpt.config import Settings, closest, dump_settings
from behavegpt.console import progress as progress_bar
from behavegpt.console import say
from behavegpt.data.loader import TrainingBatches, row_length_for
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.files import write_json, write_text
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.attention import choose_backend
from behavegpt.training.checkpoint import Checkpoint, load_checkpoint, load_latest, refuse_mismatch
from behavegpt.training.evaluate import evaluate
from behavegpt.training.journal import Journal, run_lock
from behavegpt.training.loop import Progress, Trainer, TrainSettings
from behavegpt.training.optimizer import build_optimizer
from behavegpt.training.run_folder import save_model, start_record

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
    "tied_head",
    "next_heads",
)


class DataSettings(Settings):
    """Which prepared folder to train on."""

    path: str = Field(description="folder written by `behavegpt prepare`")


class PretrainSettings(Settings):
    """One pretraining run."""

    out: str = Field(description="run folder; made if absent")
    data: DataSettings
    model: dict[str, Any] = Field(default_factory=dict, description="BehaveGPTConfig: " + ", ".join(SHAPE))
    attention: str = Field("auto", description="auto, or a back end of model/attention.py")
    loss: LossSettings = Field(default_factory=LossSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)

    @field_validator("model")
    @classmethod
    def _known_shape(cls, value: dict[str, Any]) -> dict[str, Any]:
        # transformers accepts and saves any name
        for name in value:
            if name not in SHAPE:
                raise ValueError(f"unknown setting {name!r}. {closest(name, SHAPE)}")
        return value


def model_config(settings: PretrainSettings, store: EventStore) -> BehaveGPTConfig:
    """The model's shape for a prepared folder; raises ConfigError on a contradiction."""
    try:
        return BehaveGPTConfig(
            field_sizes=store.field_sizes(),
            num_behaviors=store.behaviors.classes,
            behavior_is_event=store.schema.behavior_is_event,
            tokenizer_hash=EventTokenizer.from_store(store, 1).hash,
            **settings.model,
        )
    except Exception as error:  # huggingface_hub wraps every violation in types of its own
        raise ConfigError(f"model: {str(error).strip().splitlines()[-1].strip()}") from None


def pretrain(settings: PretrainSettings, *, resume: bool = False) -> Path:
    """Train a model and write RUN/model; returns RUN. Continues from the latest checkpoint with `resume`.

    Raises BehaveGPTError on bad settings or data, a run folder in use, a checkpoint of other data, or a bad loss.
    """
    run = Path(settings.out)
    accelerator = _accelerator(settings.train)
    if not accelerator.is_main_process:
        return _pretrain(settings, run, accelerator, resume)
    run.mkdir(parents=True, exist_ok=True)
    with run_lock(run):
        return _pretrain(settings, run, accelerator, resume)


def _pretrain(settings: PretrainSettings, run: Path, accelerator: Accelerator, resume: bool) -> Path:
    train = settings.train
    store = open_store(settings.data.path)
    if not store.manifest.split["events"][SPLITS["train"]]:
        raise DataError(f"{settings.data.path}: no training events; prepare the data again with another --split.")
    _refuse_used_folder(run, resume)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    precision = choose_precision(train.precision, accelerator.device)
    config = model_config(settings, store)
    tokenizer = EventTokenizer.from_store(store, config.max_length)
    torch.manual_seed(train.seed)
    model = BehaveGPTForBehaviorPrediction(config)
    model.head.set_prior(torch.tensor(store.behaviors.counts))
    chosen = choose_backend(accelerator.device, precision == "bf16")
    model.set_attn_implementation(chosen if settings.attention == "auto" else settings.attention)
    if train.activation_checkpointing:
        model.activation_checkpointing_enable()
    fields = config.columns
    batches = training_batches(store, config, train)
    steps = train.steps or max(1, round(train.epochs * batches.steps_per_epoch))
    loss = build_loss(settings.loss, torch.tensor(store.behaviors.counts)).to(accelerator.device)
    optimizer = build_optimizer(
        model, train.lr, train.weight_decay, train.betas, fused=accelerator.device.type in ("cpu", "cuda")
    )
    prepared = accelerator.prepare_model(model)
    fingerprint = _fingerprint(store, tokenizer, config, settings)
    checkpoint = _latest(run, fingerprint) if resume else None
    facts = start_record(settings.model_dump(mode="json"), train.seed, store, model, steps, accelerator)
    if accelerator.is_main_process:
        write_json(run / "run.json", facts)
        write_text(run / "config.yaml", dump_settings(settings))
    compiled: torch.nn.Module = torch.compile(prepared) if train.compile else prepared  # type: ignore[assignment]
    with progress_bar("pretrain", steps) as show:
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
            validate=_validator(model, store, config, fields, precision, accelerator),
            precision=precision,
            on_step=_reporter(show),
        )
        _begin(trainer, checkpoint)
        progress = trainer.run()
    if accelerator.is_main_process and progress.stopped != "signal":
        _finish(run, trainer, tokenizer, facts)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if progress.stopped == "signal":
        if accelerator.is_main_process:
            say(f"stopped by a signal at step {progress.step}; saved. Go on with --resume.")
        raise SystemExit(143)
    return run


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32 or bf16: `auto` takes bf16 autocast only where the device computes in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "fp32"


def _accelerator(train: TrainSettings) -> Accelerator:
    if train.wandb:
        _need_wandb()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # train.precision decides, whatever the user's accelerate profile says
        log_with="wandb" if train.wandb else None,
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ConfigError(
            f"accelerate's {accelerator.distributed_type.value} is not supported yet; launch with MULTI_GPU: "
            "--config_file configs/accelerate/multi_gpu.yaml."
        )
    if train.wandb:
        accelerator.init_trackers(train.wandb, config=train.model_dump(mode="json"))
    return accelerator


def _need_wandb() -> None:
    import importlib.util

    from behavegpt.errors import MissingExtraError

    if importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("wandb", "wandb")
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    if not os.environ.get("WANDB_API_KEY") and "WANDB_MODE" not in os.environ and not netrc.exists():
        os.environ["WANDB_MODE"] = "offline"
        say("wandb: no key found, logging offline; send it later with: wandb sync wandb/offline-run-*")


def training_batches(store: EventStore, config: BehaveGPTConfig, train: TrainSettings) -> TrainingBatches:
    """The training rows of a prepared folder for a model's window and fields."""
    events = train.batch_events or min(8192, max(1024, int(np.asarray(store.manifest.split["events"])[0]) // 32))
    return TrainingBatches(
        store,
        max_length=config.max_length,
        rows_per_step=-(-events // row_length_for(config.max_length)),
        seed=train.seed,
        fields=config.columns,
        next_fields=tuple(config.next_heads or ()),
    )


def _fingerprint(
    store: EventStore, tokenizer: EventTokenizer, config: BehaveGPTConfig, settings: PretrainSettings
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    shape = {name: getattr(config, name) for name in (*SHAPE, "field_sizes", "num_behaviors")}
    return {
        "data": {
            "content_hash": store.manifest.content_hash,
            "schema": store.schema.model_dump(mode="json"),
            "vocabulary": {name: vocabulary.hash for name, vocabulary in tokenizer.vocabulary.items()},
        },
        "model": shape,
        "loss": settings.loss.model_dump(mode="json"),
        "train": {"seed": settings.train.seed, "batch_events": settings.train.batch_events},
    }


def _validator(
    model: BehaveGPTForBehaviorPrediction,
    store: EventStore,
    config: BehaveGPTConfig,
    fields: tuple[str, ...],
    precision: str,
    accelerator: Accelerator,
) -> Callable[[], dict[str, float]]:
    def validate() -> dict[str, float]:
        metrics, cross_entropy = evaluate(
            model,
            store,
            SPLITS["valid"],
            max_length=config.max_length,
            fields=fields,
            precision=precision,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        if not metrics.rows:
            return {}
        figures = metrics.compute(store.behaviors.counts)
        names = ("rec_w", "rec_m", "prec_w", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")
        return {name: figures[name] for name in names if figures[name] is not None} | {"cross_entropy": cross_entropy}

    return validate


def _reporter(show: Callable[[int, str], None]) -> Callable[[int, dict[str, float]], None]:
    rate = ""

    def report(step: int, record: dict[str, float]) -> None:
        nonlocal rate
        if "events_per_second" in record:
            rate = f"{record['events_per_second']:,.0f} events/s"
        show(step, f"loss {record['cross_entropy']:.3f} · {rate}")

    return report


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


def _begin(trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    """Go on from a checkpoint; without one, drop what a run wrote that never reached its first."""
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if trainer.accelerator.is_main_process:
            say(f"resumed from step {trainer.progress.step}")
    elif trainer.accelerator.is_main_process:
        trainer.journal.truncate_after(0)


def _finish(run: Path, trainer: Trainer, tokenizer: EventTokenizer, facts: dict[str, Any]) -> None:
    """Write RUN/model from the best checkpoint, in one rename, and close run.json."""
    progress: Progress = trainer.progress
    bare = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if progress.best_step is not None and progress.best_step != progress.step:
        bare.load_state_dict(load_checkpoint(run / "ckpt" / f"step_{progress.best_step:08d}").model)
    save_model(bare, tokenizer, run / "model")
    finished = datetime.datetime.now(datetime.UTC)
    began = datetime.datetime.fromisoformat(facts["started"])
    facts |= {
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - began).total_seconds(), 1),
        "best_step": progress.best_step or progress.step,
        "stopped": progress.stopped,
    }
    write_json(run / "run.json", facts)
