"""What a run leaves beside its checkpoints: run.json and the model folder."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForTokenClassification
from transformers.utils.logging import disable_progress_bar

import behavegpt
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.storage import discard, remove_stale, temporary_name

if TYPE_CHECKING:
    from accelerate import Accelerator


WEIGHTS = "model.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder's weights: one, or the shards that `save_pretrained` makes of large models."""
    return sorted(folder.glob("model-*-of-*.safetensors")) or [folder / WEIGHTS]


def save_model(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    folder: Path,
    beside: Callable[[BehaveGPTForBehaviorPrediction, Path], None] = lambda model, folder: None,
) -> None:
    """Weights, config and tokenizer as a folder for `from_pretrained`; an existing one is replaced at the end.

    `beside(model, folder)` adds files before the folder gets its name.
    """
    disable_progress_bar()  # transformers shows one for writing a file
    remove_stale(folder.parent)
    temporary = temporary_name(folder, "new")
    model.save_pretrained(temporary)
    tokenizer.save(temporary)
    beside(model, temporary)
    if folder.exists():
        discard(folder)
    os.rename(temporary, folder)


def open_model(folder: Path) -> tuple[BehaveGPTForBehaviorPrediction, EventTokenizer]:
    """What `save_model` wrote, on the CPU. Raises CheckpointError when the folder is not a model, or is damaged."""
    weights = "model.safetensors.index.json" if (folder / "model.safetensors.index.json").is_file() else WEIGHTS
    for name in ("config.json", weights, "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: not a model folder ({name} is missing); give the `model` folder of a run."
            )
    disable_progress_bar()
    try:
        # the class by the folder's model_type: BehaveGPT, or a baseline where those are imported
        model = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True)
        tokenizer = EventTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]}).") from None
    if model.config.tokenizer_hash not in (None, tokenizer.hash):
        raise CheckpointError(
            "the model's config.json and preprocessor_config.json do not belong together (vocabulary hash "
            f"{model.config.tokenizer_hash} and {tokenizer.hash}); restore the folder as it was written."
        )
    return model, tokenizer


def start_record(
    config: dict[str, Any],
    seed: int,
    store: EventStore,
    parameters: dict[str, int],
    steps: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    import accelerate
    import numpy
    import transformers

    libraries = {"torch": torch, "transformers": transformers, "accelerate": accelerate, "numpy": numpy}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": config,
        "seed": seed,
        "versions": {"behavegpt": behavegpt.__version__, "python": platform.python_version()}
        | {name: module.__version__ for name, module in libraries.items()},
        "device": _device_name(accelerator),
        "processes": accelerator.num_processes,
        "parameters": parameters["total"],
        "parameters_by_part": parameters,
        "steps": steps,
        "data": {
            "path": store.path.name,
            "content_hash": store.manifest.content_hash,
            "events": store.manifest.events,
            "users": store.manifest.users,
            "behaviors": store.behaviors.classes,
        },
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seconds": None,
    }


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    return f"CPU, {torch.get_num_threads()} threads"
