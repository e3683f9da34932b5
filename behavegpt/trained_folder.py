"""The folder of a trained model, of an adapter or of a run -> `Predictor`."""

from __future__ import annotations

from pathlib import Path

import torch

from behavegpt.baselines import network as _baselines  # noqa: F401 - so that their folders open too
from behavegpt.decision import load_thresholds
from behavegpt.devices import choose_device
from behavegpt.generation.constraints import load_links
from behavegpt.model.attention import choose_backend
from behavegpt.model.precision import choose_precision
from behavegpt.paths import local_path
from behavegpt.predictor import Predictor
from behavegpt.shipped import shipped_folder
from behavegpt.timing.files import load_gaps
from behavegpt.training.model_folder import open_model

# folder of a run -> what it holds
MODEL_FILES = {"model": "config.json", "adapter": "adapter_config.json"}


def model_folder(folder: str | Path) -> Path:
    """The `model` or `adapter` folder of a run's, the folder of a model that ships; any other
    folder as it is."""
    folder = shipped_folder(folder) or Path(folder)
    inside = {name: folder / name / file for name, file in MODEL_FILES.items()}

    # a run is recognized by its parts, so that a model folder may hold a folder `model` itself
    if any((folder / file).is_file() for file in MODEL_FILES.values()):
        return folder
    return next((path.parent for path in inside.values() if path.is_file()), folder)


def load(folder: str | Path, device: str | torch.device | None = None) -> Predictor:
    """Open a model folder, an adapter's, a run's, or the model that ships as `demo`; `device`
    defaults to a GPU where there is one.

    Raises CheckpointError when the folder is none of these, or is damaged, ConfigError for a device
    that is not there.
    """
    folder = model_folder(local_path(folder))
    if (folder / "adapter_config.json").is_file():
        from behavegpt.adapt.peft import open_adapter

        model, tokenizer = open_adapter(folder)
    else:
        model, tokenizer = open_model(folder)

    # bf16 and the fastest attention where the device has them
    place = choose_device(device)
    torch.nn.Module.to(model, place)
    half = choose_precision("auto", place) == "bf16"
    model.set_attn_implementation(choose_backend(place, half, model.config.max_length))
    thresholds, timing = load_thresholds(folder, tokenizer), load_gaps(folder, tokenizer)
    return Predictor(model, tokenizer, load_links(folder), thresholds, timing=timing)
