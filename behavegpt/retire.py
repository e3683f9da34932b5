"""Behaviors that a trained model predicts no more, without training: they are still read in
histories."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from behavegpt import decision
from behavegpt.errors import ConfigError
from behavegpt.filters import classes_of
from behavegpt.generation import constraints
from behavegpt.trained_folder import model_folder
from behavegpt.training.model_folder import open_model, save_model

BESIDE = (decision.FILE, constraints.FILE)  # of the same vocabulary, so they stay right


def retire(model: str | Path, labels: Collection[object], out: Path) -> dict[str, int]:
    """Write the model of a folder to `out`, which never predicts these behaviors again, nor those
    retired before; what is left shares their probability.

    Returns how many behaviors are retired, and how many there are. Raises ConfigError for labels
    that are none, and where nothing would be left, CheckpointError for no model folder.
    """
    folder = model_folder(model)
    trained, tokenizer = open_model(folder)

    named = classes_of(labels, tokenizer, "retire").tolist()
    # in the config, not in the weights: `vocabulary add` brings them back as they were
    retired = sorted({*(trained.config.retired or ()), *named})
    known = tokenizer.behaviors.classes
    if len(retired) == known:
        raise ConfigError(f"retire: none of the {known:,} behaviors would be left; retire fewer.")
    trained.config.retired = retired

    def copy_beside(_: Any, place: Path) -> None:
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)

    save_model(trained, tokenizer, out, copy_beside)
    return {"retired": len(retired), "behaviors": known}
