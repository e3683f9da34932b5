"""What the members that train a network on sequences have in common: settings, and how a fitted
network is written, opened and asked for vectors.

FOLDER/network.safetensors        the weights of the best state
FOLDER/vocabularies.safetensors   what the ids mean
FOLDER/training.json              steps, epochs and their losses
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from behavegpt.console import progress
from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.devices import choose_device
from behavegpt.io import write_json
from behavegpt.profiles.fields import SequenceSettings, Vocabularies, parse_field
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.profiles.task import Task, TrainingSettings
from behavegpt.profiles.training import train
from behavegpt.user_embeddings import UserEmbeddings

WEIGHTS = "network.safetensors"
VOCABULARIES = "vocabularies.safetensors"
FACTS = "training.json"

N = TypeVar("N", bound=nn.Module)


class NetworkSettings(MemberSettings):
    """What is read, and how long the network trains on it."""

    fields: tuple[str, ...] = Field(
        description="name, name:TOP or name:minN, for example [week, event, sku:5000]"
    )
    events: tuple[EventName, ...] = Field(EVENTS, description="event types that are merged")
    clients: Literal["asked", "all"] = Field(
        "asked", description="whose histories are learned from"
    )
    training: TrainingSettings = TrainingSettings()

    @property
    def names(self) -> tuple[str, ...]:
        """The fields without their limits."""
        return tuple(parse_field(text).name for text in self.fields)

    @property
    def sequence(self) -> SequenceSettings:
        """What the sequence store must hold."""
        raise NotImplementedError


def fit_network(
    context: Context,
    settings: NetworkSettings,
    folder: Path,
    vocabularies: Vocabularies,
    task: Task,
    network: nn.Module,
    kept: nn.Module | None = None,
) -> None:
    """Train a network and write its best state, or that of the part `kept`, which makes the
    vectors."""
    report = train(network, task, settings.training, context.seed, context.work(settings))
    save_network(network if kept is None else kept, folder)
    vocabularies.save(folder / VOCABULARIES)
    write_json(folder / FACTS, report)


def open_network(
    context: Context,
    settings: NetworkSettings,
    folder: Path,
    build: Callable[[Vocabularies], N],
) -> tuple[N, SequenceStore]:
    """A fitted network on its device, and the histories of the asked clients in its ids."""
    vocabularies = Vocabularies.load(folder / VOCABULARIES)
    network = build(vocabularies)
    load_network(network, folder)
    network.to(choose_device(context.device))
    return network, context.sequences(settings.sequence, vocabularies, asked=True)


def embed_store(
    store: SequenceStore, settings: NetworkSettings, encode: Callable[[np.ndarray], Tensor]
) -> UserEmbeddings:
    """The vectors (U, D) of a store's clients by `encode(rows) -> (B, D)`."""
    rows = np.arange(len(store.clients))
    vectors = embed_rows(encode, rows, store.lengths, settings.training.batch, settings.kind)
    return UserEmbeddings(store.clients, vectors)


@torch.no_grad()
def embed_rows(
    encode: Callable[[np.ndarray], Tensor],
    rows: np.ndarray,
    lengths: np.ndarray,
    batch: int,
    label: str,
) -> np.ndarray:
    """Vectors (N, D) float32 of `rows` (N,) by `encode(rows) -> (B, D)`, in batches of similar
    length."""
    # the longest first: what does not fit fails at once
    order = np.argsort(lengths, kind="stable")[::-1]

    vectors: np.ndarray | None = None
    with progress(label, len(rows)) as tell:
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]  # (B,) positions in `rows`
            encoded = encode(rows[chosen]).float().cpu().numpy()
            # the width is known once the first batch is encoded
            if vectors is None:
                vectors = np.empty((len(rows), encoded.shape[1]), np.float32)
            vectors[chosen] = encoded
            tell(start + len(chosen), "")

    return np.zeros((0, 0), np.float32) if vectors is None else vectors


def save_network(network: nn.Module, folder: Path) -> None:
    """Write the weights, network.safetensors."""
    from safetensors.torch import save_file

    # copies: safetensors takes no two tensors that share their memory
    state = network.state_dict()
    tensors = {name: value.cpu().contiguous().clone() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS)


def load_network(network: nn.Module, folder: Path) -> None:
    """Read what `save_network` wrote into a network of the same shape, ready to embed."""
    from safetensors.torch import load_file

    network.load_state_dict(load_file(folder / WEIGHTS))
    network.eval()
