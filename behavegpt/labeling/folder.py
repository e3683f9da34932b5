"""Whether a folder is that of a model with a label head, told without importing such models."""

from __future__ import annotations

from pathlib import Path

from behavegpt.errors import CheckpointError
from behavegpt.io import read_json
from behavegpt.paths import local_path

MODEL_TYPE = "behavegpt_label"


def label_folder(folder: str | Path) -> Path:
    path = local_path(folder)
    # a run and its model both stand for it, as everywhere
    inside = path / "model"
    return inside if not (path / "config.json").is_file() and inside.is_dir() else path


def holds_label_model(folder: str | Path) -> bool:
    """Whether a folder, or its `model`, is a model with a label head."""
    config = label_folder(folder) / "config.json"
    try:
        facts = read_json(config, CheckpointError, "restore it") if config.is_file() else {}
    # a damaged config: whoever opens the folder says so
    except CheckpointError:
        return False
    return facts.get("model_type") == MODEL_TYPE
