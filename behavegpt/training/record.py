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
from behavegpt.errors import CheckpointError
from behavegpt.model import BehaveGPTConfig
from behavegpt.training.settings import SHAPE, RunSettings


def fingerprint_of(
    settings: RunSettings, store: EventStore, config: BehaveGPTConfig
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    # not the learning rate, the number of steps or of ranks: those may change on purpose
    shape = {name: getattr(config, name) for name in (*SHAPE, "field_sizes", "num_behaviors")}
    for name in ("given", "gap"):
        if not shape[name]:  # checkpoints of earlier versions do not name it
            del shape[name]
    if config.user_features:
        shape["user_features"] = config.user_features

    return {
        "data": {
            "content_hash": store.manifest.content_hash,
            "schema": store.schema.model_dump(mode="json"),
            # a hash of the labels, which number the rows of embeddings and the classes
            "vocabulary": {name: vocabulary.hash for name, vocabulary in store.vocabulary.items()},
        },
        "model": shape,
        "loss": settings.loss.model_dump(mode="json"),
        # data order and dropout are functions of these and the step
        "train": {"seed": settings.train.seed, "batch_events": settings.train.batch_events},
    }


def refuse_mismatch(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise CheckpointError, listing every difference, unless two fingerprints (nested mappings)
    are the same."""
    # all of them: mending one difference after the other would cost a start each
    lines = [
        f"{name}: checkpoint {was}, now {becomes}"
        for name, (was, becomes) in changes(saved, current).items()
    ]
    if lines:
        listed = "\n  ".join(["the checkpoint belongs to another run:", *lines])
        raise CheckpointError(
            f"{listed}\nResume with the data and settings of the checkpoint, or start a new run "
            "with another out=."
        )


def changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted name -> value before and now, shortened, wherever two nested mappings differ."""
    # through JSON, as the saved one came: tuples become lists
    before, now = _flat(saved), _flat(json.loads(json.dumps(current)))

    return {
        name: (_short(before, name), _short(now, name))
        for name in dict.fromkeys([*before, *now])
        if name not in before or name not in now or before[name] != now[name]
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(values: Mapping[str, Any], name: str) -> str:
    """A value as text; long ones, such as hashes, by their beginning."""
    text = str(values.get(name, "absent"))
    return text if len(text) <= 40 else f"{text[:12]}…"


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
            f"validation: {valid['unseen']:,} of {sum(valid.values()):,} targets have a "
            "behavior that was never seen in training, or none; they are left out of the "
            "validation metrics."
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
            # without its folder: a run is handed on, and nobody else has this machine's folders
            "path": store.path.name,
            "content_hash": store.manifest.content_hash,
            "events": store.manifest.events,
            "users": store.manifest.users,
            "behaviors": store.behaviors.classes,
        },
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # filled at the end; a run that was killed has none
        "finished": None,
        "seconds": None,
    }


def _device_name(accelerator: Accelerator) -> str:
    """What the run was computed on, for people who compare run times."""
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def tell_changes(run: Path, facts: Mapping[str, Any]) -> None:
    """One line with the settings that a resumed run was begun with otherwise: they need not be
    meant."""
    try:
        before = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return  # the run never wrote it, or somebody else did

    changed = changes(before, facts["config"])
    # told and not refused: a lower learning rate is what --resume is often for
    if changed:
        listed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        say(f"resuming with changed settings: {listed}")


def _program() -> str:
    """The name of what was run, as one would type it: `python -m behavegpt` is `behavegpt`."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name
