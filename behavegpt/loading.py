"""Open a model by its folder, or by the name of one that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from behavegpt.collector import paused_collector
from behavegpt.shipped import UNIVERSAL, is_universal
from behavegpt.universal.counted import is_counted, read_counted
from behavegpt.universal.model import load_universal
from behavegpt.zero_shot import UniversalPredictor

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor


@paused_collector()
def load(
    folder: str | Path, device: str | torch.device | None = None
) -> Predictor | UniversalPredictor:
    """Open a model folder (see trained_folder.py), or a shipped model by its name, `universal`
    or `demo`."""
    # first: it needs neither torch's network nor transformers, which take seconds to import
    if is_universal(folder):
        return load_zero_shot(folder)
    from behavegpt.trained_folder import load as load_trained  # takes seconds to import

    return load_trained(folder, device)


def load_zero_shot(name: str | Path = UNIVERSAL) -> UniversalPredictor:
    """The universal model by name or folder; it predicts once it has counted a log.

    A folder that `UniversalPredictor.save` wrote has counted one. Raises CheckpointError.
    """
    path = Path(name)
    # the name of the shipped weights, unless a folder is called so
    if not path.is_dir():
        return UniversalPredictor(load_universal())
    model = load_universal(path)
    return UniversalPredictor(model, read_counted(path) if is_counted(path) else None)
