"""Facts about this machine and about a model folder, for people who ask why something does not
work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from behavegpt.batch import IGNORED
from behavegpt.checksums import MANIFEST, Damage, damaged_files, is_sealed
from behavegpt.data.digest import hash_folder
from behavegpt.data.store import open_store
from behavegpt.errors import BehaveGPTError, DataError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.attention import choose_backend
from behavegpt.model.size import count_parameters
from behavegpt.trained_folder import load, model_folder
from behavegpt.training.checkpoint import TRAINER, load_checkpoint
from behavegpt.user_embeddings import ENTRY, UserEmbeddings

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "pyarrow",
    "duckdb",
    "peft",
    "wandb",
    "flash-attn",
)
SELF_TEST_STEPS = 10


def examine(folder: Path) -> dict[str, Any]:
    """Versions, device, kernels, disk and a short training; `ok` is False when something is
    broken."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}

    # by their metadata: one that is installed but broken must not stop the others' report
    for name in LIBRARIES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed (optional)"

    gpu = device.type == "cuda"
    facts["device"] = torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores"
    # the window of a long model: short ones take SDPA everywhere
    facts["attention in bf16"] = choose_backend(device, half=True, window=1024)
    # of the disk that the run would write to, which may not be that of the package
    facts["free disk"] = f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB"
    facts["writable"] = _writable(folder)

    facts["self-test"] = self_test(device)
    facts["ok"] = facts["writable"] == "yes" and facts["self-test"].startswith("ok")
    return facts


def check_folders(root: Path) -> dict[str, Any]:
    """Read every byte of the prepared folders, models, checkpoints and entries in `root`; folder ->
    what is wrong.

    `ok` is False when something is. Raises DataError when there is nothing to check.
    """
    # older versions wrote no manifest of checksums, so their own files count as marks
    marks = (MANIFEST, "dataset.json", ENTRY)  # files that tell such a folder
    # one folder may have two marks, and is checked once
    folders = sorted({path.parent for name in marks for path in root.rglob(name)})
    if not folders:
        raise DataError(
            f"{root}: contains no prepared folder, model, checkpoint or entry; name one, "
            "or a folder that contains some."
        )

    faults = {folder: _faults(folder) for folder in folders}
    facts: dict[str, Any] = {
        str(folder): "; ".join(lines) or "sound" for folder, lines in faults.items()
    }

    return facts | {"ok": not any(faults.values())}


def _faults(folder: Path) -> list[str]:
    """What is wrong with a folder, a line each; folders of earlier versions are checked by what
    they have."""
    try:
        # the strictest check that a folder has something for; a checkpoint has all
        if (folder / TRAINER).exists():
            load_checkpoint(folder)
            return []
        if is_sealed(folder):
            return damaged_files(folder, Damage(DataError, "write the folder again"))
        if (folder / ENTRY).exists():
            UserEmbeddings.load(folder)
            return []

        manifest = open_store(folder).manifest
        digest = hash_folder(
            folder, manifest.event_schema, manifest.vocabulary, list(manifest.columns)
        )
        if digest != manifest.content_hash:
            return [
                f"{folder}: the events are not those of its content hash; prepare the data again."
            ]
    except (BehaveGPTError, OSError, ValueError) as error:
        return [str(error)]
    return []


def self_test(device: torch.device) -> str:
    """Train a tiny model for ten steps on one batch: the loss must fall."""
    began = time.perf_counter()

    # some seeds would fall by chance, or not fall
    torch.manual_seed(0)

    # no dropout: ten steps must go down without luck
    config = BehaveGPTConfig(
        embedding_size=8, num_hidden_layers=2, num_attention_heads=2, num_behaviors=5, dropout=0.0
    )
    model = BehaveGPTForBehaviorPrediction(config)
    torch.nn.Module.to(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    ids = {"input_ids": 3, "location_ids": 3, "weekday_ids": 7, "slot_ids": 48}
    # (B, R)
    inputs = {name: torch.randint(size, (8, 64), device=device) for name, size in ids.items()}
    labels = torch.randint(5, (8, 64), device=device)
    # positions without a target, which the loss must leave out
    labels[:, ::7] = IGNORED

    losses = []
    for _ in range(SELF_TEST_STEPS):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    # not by how much: that depends on the kernel that is tested
    fell = losses[-1] < losses[0]
    word = "ok" if fell else "FAILED"
    return (
        f"{word}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {time.perf_counter() - began:.1f} s"
    )


def describe_model(folder: Path) -> dict[str, Any]:
    """Shape, parameters, vocabulary and schema of a model folder."""
    folder = model_folder(folder)

    predictor = load(folder, device="cpu")
    config, tokenizer = predictor.model.config, predictor.tokenizer

    counts = count_parameters(predictor.model)

    facts: dict[str, Any] = {
        "parameters": f"{counts['total']:,}",
        "without embeddings": f"{counts['without_embeddings']:,}",
        "layers x width": f"{config.num_hidden_layers} x {config.hidden_size}",
        "heads": config.num_attention_heads,
        "looks back": f"{config.max_length} events",
        "fields": ", ".join(
            f"{name} ({config.field_sizes[name]} ids)" for name in config.field_order
        ),
        "features of users": ", ".join(
            f"{name} ({ids} ids)" for name, ids in (config.user_features or {}).items()
        )
        or "none",
        "behaviors": config.num_behaviors,
        "memory": config.memory,
        "history head": config.history_head,
        "tied head": config.tied_head,
        "time zone": tokenizer.event_schema.tz,
        "slot": f"{tokenizer.event_schema.slot_minutes} minutes",
        "columns": json.dumps(
            tokenizer.event_schema.model_dump(
                include={"user", "time", "event", "location", "behavior"}
            )
        ),
        "vocabulary hash": tokenizer.hash[:16],
    }

    run = folder.parent / "run.json"
    if run.is_file():
        # absent for a model that was copied out of its run
        facts["trained on"] = json.loads(run.read_text(encoding="utf-8"))["data"]["path"]
    return facts


def _writable(folder: Path) -> str:
    """`yes`, or why not; tried, as permissions alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return "yes"
    except OSError as error:
        return f"no ({error.strerror})"
