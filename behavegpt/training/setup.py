"""What a run is set up with: device, precision, tracking, and the rows it trains on."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from transformers import PreTrainedModel

from behavegpt.console import say
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import TrainingBatches, row_length_for
from behavegpt.data.memory_counts import Counts
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.errors import ConfigError, DataError, MissingExtraError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.attention import choose_backend
from behavegpt.training.ranks import tell_ranks
from behavegpt.training.settings import TrainSettings
from behavegpt.training.sharding import sharding_asked

# of accelerate, those that `spread` in sharding.py knows
STRATEGIES = (
    DistributedType.NO,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_CPU,
    DistributedType.FSDP,
)


def make_accelerator(train: TrainSettings) -> Accelerator:
    """This process among the ranks, with the trackers asked for. ConfigError for a strategy that is
    not supported."""
    if train.wandb:
        _need_wandb()

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        # train.precision decides, whatever the user's accelerate profile says
        mixed_precision="no",
        log_with="wandb" if train.wandb else None,
    )

    if accelerator.distributed_type not in STRATEGIES:
        raise ConfigError(
            f"accelerate's {accelerator.distributed_type.value} is not supported; launch with "
            "MULTI_GPU or FSDP, for example --config_file configs/accelerate/multi_gpu.yaml."
        )

    # refuses the first version of FSDP, before anything is built
    sharding_asked()
    tell_ranks(accelerator)

    # after all that may be refused: a tracker's run cannot be taken back
    if train.wandb:
        accelerator.init_trackers(train.wandb, config=train.model_dump(mode="json"))
    return accelerator


def leave(accelerator: Accelerator) -> None:
    """End trackers and process group, once no rank waits for another one any more.

    gloo resets its connections when a group is destroyed, so a rank may only do that when all have
    come out of the last barrier: they say so through the store, whose host (rank 0) hears everybody
    before it goes.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # torch offers no public way to the store
        store = dist.distributed_c10d._get_default_store()
        if accelerator.is_main_process:
            store.set("behavegpt/host_is_out", "")
            while store.add("behavegpt/others_are_out", 0) < accelerator.num_processes - 1:
                # a poll: the store can count, but not wait for a number
                time.sleep(0.001)
        else:
            store.wait(["behavegpt/host_is_out"])
            store.add("behavegpt/others_are_out", 1)
    accelerator.end_training()


def _need_wandb() -> None:
    if importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("wandb", "wandb")
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if not has_key and "WANDB_MODE" not in os.environ and not netrc.exists():
        # wandb would ask for a login, and a job in a queue would wait for the answer for ever
        os.environ["WANDB_MODE"] = "offline"
        say(
            "wandb: no API key found, logging offline; upload the run later with: wandb "
            "sync wandb/offline-run-*"
        )


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile makes faster kernels here: with Triton, on a GPU that it knows (1.5 x
    on an H200)."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere


def choose_kernels(
    model: BehaveGPTForBehaviorPrediction,
    attention: str,
    train: TrainSettings,
    device: torch.device,
    precision: str,
) -> None:
    """Attention back end, activation checkpointing and compilation of a model. ConfigError where it
    has no blocks."""
    # before the model is wrapped or sharded: both would hide the blocks
    compiled = train.compile or (train.compile is None and can_compile(device))
    best = choose_backend(device, precision == "bf16", model.config.max_length)
    if compiled and best == "by_history":
        best = "sdpa"  # each batch has other lengths, and would be compiled anew
    model.set_attn_implementation(best if attention == "auto" else attention)

    if train.activation_checkpointing:
        _checkpoint_activations(model)

    if compiled:
        compile_blocks(model)


def _checkpoint_activations(model: BehaveGPTForBehaviorPrediction) -> None:
    try:
        model.activation_checkpointing_enable()
    except ValueError:  # transformers found no layer that recomputes its activations
        kind = getattr(
            model.config, "architecture", f"model of {model.config.num_hidden_layers} blocks"
        )
        raise ConfigError(
            f"train.activation_checkpointing: a {kind} has no transformer blocks whose activations "
            "could be recomputed; set it to false."
        ) from None


def compile_blocks(model: PreTrainedModel) -> None:
    """torch.compile each transformer block in place, or the whole of a model that has none.

    The blocks are alike, so that one compilation serves all; the prediction layer, whose shapes
    depend on the data, stays out. Names of weights do not change.
    """
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    # in place: a wrapper would change the names of the weights
    for module in blocks or [model]:
        module.compile()


def training_batches(
    store: EventStore, config: BehaveGPTConfig, train: TrainSettings, counts: Counts | None = None
) -> TrainingBatches:
    """The training rows of a prepared folder for a model's window and fields. DataError if there is
    no target.

    `counts`: of a model with memory.
    """
    events = int(np.asarray(store.manifest.split["events"])[TRAIN])
    if not events:
        raise DataError(
            f"{store.path}: no training events; prepare the data again with another --split."
        )

    if not len(target_rows(store, TRAIN)):
        raise DataError(
            f"{store.path}: nothing to learn from: every history has 0 or 1 training "
            "events with a known behavior, and a prediction needs an earlier event. Use "
            "longer histories, or another --split."
        )

    # a basket is a position, as an event is without
    if store.baskets is not None:
        events = int((store.baskets.columns["split"] == TRAIN).sum())
    # a 32nd of the events: about 32 steps an epoch, until a step holds 8,192 events
    wanted = train.batch_events or min(8192, max(1024, events // 32))
    return TrainingBatches(
        store,
        max_length=config.max_length,
        # rounded up: the smallest step has a row
        rows_per_step=-(-wanted // row_length_for(config.max_length)),
        seed=train.seed,
        fields=BatchFields(
            config.columns, tuple(config.next_heads or ()), tuple(config.given or ())
        ),
        counts=counts,
    )


def reporter(show: Callable[[int, str], None]) -> Callable[[int, dict[str, float]], None]:
    """Tells a progress bar the loss and the rate of each step."""
    rate = ""

    def report(step: int, record: dict[str, float]) -> None:
        nonlocal rate
        # not every step measures it: the last rate stays
        if "events_per_second" in record:
            rate = f"{record['events_per_second']:,.0f} events/s"
        show(step, f"loss {record['cross_entropy']:.3f} · {rate}")

    return report
