"""The most probable next behaviors of users, as every kind of model answers with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.tabular import Tabular


@dataclass(frozen=True, repr=False)
class Predictions(Tabular):
    """The most probable next behaviors of U users, best first."""

    users: pa.StringArray  # (U,)
    labels: np.ndarray  # (U, k) object: behavior labels
    probabilities: np.ndarray  # (U, k) float32
    unknown: dict[str, int]  # field -> events whose label the model never saw
    rejected: dict[str, int]  # reason -> rows that could not be used

    def __len__(self) -> int:
        return len(self.users)

    def to_table(self) -> pa.Table:
        """Columns user, rank (from 1), behavior, probability; k rows a user."""
        top = self.labels.shape[1]
        return pa.table(
            {
                "user": self.users.take(pa.array(np.repeat(np.arange(len(self)), top))),
                "rank": np.tile(np.arange(1, top + 1), len(self)),
                "behavior": pa.array(self.labels.ravel().tolist(), pa.string()),
                "probability": self.probabilities.ravel(),
            }
        )


class Asked(Protocol):
    """Whose next behavior is asked for; see `EncodedHistories`."""

    @property
    def users(self) -> pa.StringArray: ...
    @property
    def unknown(self) -> dict[str, int]: ...
    @property
    def rejected(self) -> dict[str, int]: ...


def most_probable(
    pieces: Iterable[tuple[np.ndarray, torch.Tensor]],
    tokenizer: EventTokenizer,
    asked: Asked,
    top_k: int,
    shift: torch.Tensor,
    on_user: Callable[[int, int], None] | None = None,
) -> Predictions:
    """The answer of users (n,) with logits (n, K), piece by piece.

    `shift` (K,) is what the decision rule subtracts; `on_user` is told how many of all users are
    done.
    """
    top = min(top_k, tokenizer.behaviors.classes)
    chosen = np.zeros((len(asked.users), top), np.int64)
    probabilities = np.zeros((len(asked.users), top), np.float32)

    done = 0
    for users, logits in pieces:
        # in place: the logits are this piece's own, and a copy would double the peak
        best = logits.sub_(shift).softmax(-1).topk(top)
        chosen[users], probabilities[users] = best.indices.numpy(), best.values.numpy()
        done += len(users)
        if on_user:
            on_user(done, len(asked.users))

    return Predictions(
        asked.users, tokenizer.labels(chosen), probabilities, asked.unknown, asked.rejected
    )
