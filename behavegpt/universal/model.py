"""The universal model: a mixer's weights, and how it scores the rows of any log.

FOLDER/universal.safetensors   weights
FOLDER/universal.json          shape, experts, and how it was trained
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from behavegpt.data.memory import EXPERTS
from behavegpt.errors import CheckpointError
from behavegpt.io import write_json
from behavegpt.model.mixer import Mixer
from behavegpt.universal.reader import MemoryReader

FORMAT = 1
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class UniversalModel:
    """The mixer; it has no vocabulary, and the tables come with the reader of a log."""

    mixer: Mixer

    @torch.no_grad()
    def score(self, reader: MemoryReader, positions: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (positions (N,), logits (N, K)) of what follows; `positions` are flat indices, ascending."""
        log_prior = torch.log(torch.from_numpy(reader.tables.prior))
        for batch in reader.batches(positions):
            yield batch.position, self.mixer(batch.memory, log_prior)


def save_universal(model: UniversalModel, folder: Path, record: dict[str, Any]) -> None:
    """Write weights and description; `record` says how they were trained."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.mixer.state_dict().items()},
        folder / "universal.safetensors",
    )
    shape = {"hidden_size": model.mixer.gate.in_features, "summary_size": model.mixer.summary.out_features}
    write_json(folder / "universal.json", {"format": FORMAT, "experts": list(EXPERTS), "shape": shape} | record)


def load_universal(folder: Path = SHIPPED) -> UniversalModel:
    """Open the shipped weights, or others. Raises CheckpointError when the folder holds none, or of other experts."""
    try:
        described = json.loads((folder / "universal.json").read_text(encoding="utf-8"))
        if described["format"] != FORMAT or described["experts"] != list(EXPERTS):
            raise CheckpointError(
                f"{folder}: a universal model of other experts; use the version of behavegpt that made it, or train it "
                "again with: behavegpt pretrain-universal"
            )
        mixer = Mixer(len(EXPERTS), **described["shape"])
        mixer.load_state_dict(load_file(folder / "universal.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no universal model ({error}).") from None
    return UniversalModel(mixer.eval())
