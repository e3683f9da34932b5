"""One run of the evaluator: the network trained on one task with one seed, scored after each of its
three epochs.

N clients that take part in the task, B of a batch, D dimensions of their vectors, O outputs of the
network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from behavegpt.challenge.network import UniversalModel
from behavegpt.challenge.scores import score
from behavegpt.challenge.step import training_step
from behavegpt.challenge.targets import Targets
from behavegpt.errors import DataError

EPOCHS, BATCH = 3, 128
# clients in a forward pass of the validation; only the last digits depend on it
PREDICTED_ROWS = {"cpu": 512}
MANY_ROWS = 16_384  # the same on other devices

Tick = Callable[[], None]


def train_and_score(
    vectors: np.ndarray,
    targets: Targets,
    seed: int,
    device: str = "cpu",
    tick: Tick = lambda: None,
    width: int | None = None,
) -> list[dict[str, float]]:
    """Metrics after each of the three epochs, for vectors (N, D) and the targets of the same
    clients.

    `tick` is called after each training batch. On a GPU everything stays there; only metrics come
    back. A network of another `width` than the organizers' is for small logs; its scores are
    comparable with each other alone.
    """
    chosen = _Resident(vectors, targets, torch.device(device))
    if not len(chosen.rows):
        raise DataError(
            f"{targets.task}: none of the entry's clients takes part; take clients of "
            "active_clients.npy."
        )

    # the organizers seed the weights alone: the order of clients is that of the entry
    model = UniversalModel(vectors.shape[1], targets.train.shape[1], seed, width).to(device)
    step = training_step(model)
    epochs = []
    for _ in range(EPOCHS):
        losses = []
        for start in range(0, len(chosen.rows), BATCH):
            some = slice(start, start + BATCH)
            # read when the epoch ends: a GPU need not wait for each number
            losses.append(step(chosen.vectors(some), chosen.train[some].float()))
            tick()

        metrics = score(predict(model, chosen), chosen.validation, targets.popularity)
        epochs.append({**metrics, "train_loss": torch.stack(losses).mean().item()})

    return epochs


class _Resident:
    """Vectors and targets of the clients that take part, where the network is; float16 until a
    batch is made."""

    def __init__(self, vectors: np.ndarray, targets: Targets, device: torch.device) -> None:
        rows = np.flatnonzero(targets.rows)  # (N,)
        if device.type != "cpu" and len(rows) < len(vectors):
            # what takes no part need not travel
            vectors, chosen = vectors[rows], np.arange(len(rows))
        else:
            chosen = rows

        with warnings.catch_warnings():
            # a memory map, only read
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            # float16 until a batch is made: half the memory of a device
            self._stored = torch.from_numpy(np.asarray(vectors)).to(device)

        self.rows = torch.from_numpy(chosen).to(device)
        self.train = torch.from_numpy(targets.train[rows]).to(device)  # (N, O) uint8
        self.validation = torch.from_numpy(targets.validation[rows]).to(device)  # (N, O) uint8

    def vectors(self, some: slice) -> Tensor:
        """(B, D) float32 of a range of the clients that take part."""
        return self._stored[self.rows[some]].float()


@torch.inference_mode()
def predict(model: UniversalModel, chosen: _Resident) -> Tensor:
    """Logits (N, O) of all clients that take part."""
    clients, outputs = chosen.train.shape
    logits = torch.empty(clients, outputs, device=chosen.train.device)  # (N, O)

    step = PREDICTED_ROWS.get(logits.device.type, MANY_ROWS)

    for start in range(0, clients, step):
        some = slice(start, start + step)
        logits[some] = model(chosen.vectors(some))
    return logits
