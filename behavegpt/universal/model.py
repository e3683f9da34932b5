"""The universal model: a mixer's weights, and how it scores the rows of any log.

FOLDER/universal.safetensors   weights
FOLDER/universal.json          shape, experts, and how it was trained
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from behavegpt.checksums import Damage, is_sealed, seal, verify
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.memory_tables import Tables
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.io import scratch, write_json
from behavegpt.model.mixer import Memory, Mixer
from behavegpt.universal.reader import MemoryReader

FORMAT = 1
WEIGHTS, DESCRIPTION = "universal.safetensors", "universal.json"
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class UniversalModel:
    """The mixer; it has no vocabulary, and the tables come with the reader of a log."""

    mixer: Mixer
    record: dict[str, Any] = field(default_factory=dict)  # how it was trained

    @torch.no_grad()
    def score(
        self, reader: MemoryReader, positions: np.ndarray
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (positions (N,), logits (N, K)) of what follows; `positions` are flat indices,
        ascending."""
        for batch in reader.batches(positions):
            yield batch.position, self.logits(batch.memory, reader.tables)

    @torch.no_grad()
    def logits(self, memory: Memory, tables: Tables) -> torch.Tensor:
        """Logits (N, K) of what follows N positions."""
        # the tables bring the log's own class frequencies; the weights know no class
        logits: torch.Tensor = self.mixer(memory, torch.log(torch.from_numpy(tables.prior)))
        return logits

    @torch.no_grad()
    def vectors(self, memory: Memory, tables: Tables, part: str) -> torch.Tensor:
        """Vectors (N, D): `last`, the mixer's hidden units, or `behaviors`, log-probabilities of
        what follows."""
        # knows no label, so that vectors of different logs are of one kind
        if part == "last":
            return self.mixer.situation(memory, len(tables.prior))
        return self.logits(memory, tables).log_softmax(1)


def save_universal(model: UniversalModel, folder: Path) -> None:
    """Write weights and description. Replaces a universal model, nothing else.

    Raises ConfigError for a folder of something else.
    """
    refuse_used(folder)
    with scratch(folder) as temporary:
        write_universal(model, temporary)
        seal(temporary)


def write_universal(model: UniversalModel, folder: Path) -> None:
    """Write weights and description into a folder that is sealed afterwards."""
    shape = {
        # read off the weights, so that the file cannot say anything else than they do
        "hidden_size": model.mixer.gate.in_features,
        "summary_size": model.mixer.summary.out_features,
    }
    # safetensors writes no views
    weights = {name: tensor.contiguous() for name, tensor in model.mixer.state_dict().items()}
    save_file(weights, folder / WEIGHTS)

    description = {"format": FORMAT, "experts": list(EXPERTS), "shape": shape}
    write_json(folder / DESCRIPTION, description | model.record)


def refuse_used(folder: Path) -> None:
    """Raise ConfigError for a folder that holds anything but a universal model."""
    # by the description: weights alone may be anybody's
    is_ours = (folder / DESCRIPTION).is_file()
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_ours and not is_empty:
        raise ConfigError(
            f"{folder}: exists and is not a universal model; choose another out=FOLDER."
        )


def load_universal(folder: Path = SHIPPED) -> UniversalModel:
    """Open the shipped weights, or others. Raises CheckpointError when the folder holds none, or of
    other experts."""
    if is_sealed(folder):
        verify(folder, Damage(CheckpointError, "put the folder's files back as they were written"))

    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        # the mixer's inputs are the experts in their order: other ones would be misread in silence
        if described["format"] != FORMAT or described["experts"] != list(EXPERTS):
            raise CheckpointError(
                f"{folder}: a universal model with other experts; use the version of "
                "behavegpt that wrote it, or train it again with: behavegpt "
                "pretrain-universal"
            )
        mixer = Mixer(len(EXPERTS) + 1, **described["shape"])
        mixer.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a universal model ({error}).") from None

    known = ("format", "experts", "shape")
    record = {name: value for name, value in described.items() if name not in known}
    return UniversalModel(mixer.eval(), record)
