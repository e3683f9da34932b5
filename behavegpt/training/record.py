"""What run.json tells of a run, and what must be the same for a checkpoint to be continued."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator

import behavegpt
from behavegpt.console import say
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.model import BehaveGPTConfig
from behavegpt.training.checkpoint import changes
from behavegpt.training.settings import SHAPE, RunSettings


def fingerprint_of(
    settings: RunSettings, store: EventStore, config: BehaveGPTConfig
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    shape = {name: getattr(config, name) for name in (*SHAPE, "field_sizes", "num_behaviors")}
    if not shape["given"]:  # checkpoints of earlier versions do not name it
        del shape["given"]

    return {
        "data": {
            "content_hash": store.manifest.content_hash,
            "schema": store.schema.model_dump(mode="json"),
            "vocabulary": {name: vocabulary.hash for name, vocabulary in store.vocabulary.items()},
        },
        "model": shape,
        "loss": settings.loss.model_dump(mode="json"),
        "train": {"seed": settings.train.seed, "batch_events": settings.train.batch_events},
    }


def targets_of(store: EventStore) -> dict[str, dict[str, int]]:
    """Split -> targets that are trained on or scored, and those left out because their label is
    unknown."""
    return {
        name: {"known": len(target_rows(store, split)), "unseen": count_unseen(store, split)}
        for name, split in SPLITS.items()
    }


def tell_unseen(valid: Mapping[str, int]) -> None:
    """Say how many validation targets are left out."""
    if valid["unseen"]:
        say(
            f"validation: {valid['unseen']:,} of {sum(valid.values()):,} targets have a behavior "
            "that training never saw, or none; its figures leave them out."
        )


def record_of(settings: RunSettings, store: EventStore, accelerator: Accelerator) -> dict[str, Any]:
    """What run.json tells of the command, the machine and the data."""
    libraries = {
        "torch": torch,
        "transformers": transformers,
        "accelerate": accelerate,
        "numpy": np,
    }

    return {
        "command": " ".join([_program(), *sys.argv[1:]]),
        "config": settings.model_dump(mode="json"),
        "seed": settings.train.seed,
        "versions": {"behavegpt": behavegpt.__version__, "python": platform.python_version()}
        | {name: module.__version__ for name, module in libraries.items()},
        "device": _device_name(accelerator),
        "processes": accelerator.num_processes,
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


def tell_changes(run: Path, facts: Mapping[str, Any]) -> None:
    """One line with the settings that a resumed run was begun with otherwise: they need not be
    meant."""
    try:
        before = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return

    changed = changes(before, facts["config"])
    if changed:
        listed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        say(f"resuming with changed settings: {listed}")


def _program() -> str:
    """The name of what was run, as one would type it: `python -m behavegpt` is `behavegpt`."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name
