"""The most probable next behaviors of users, as every kind of model answers with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.filters import TAKEN_OUT, Choice
from behavegpt.tabular import Tabular


@dataclass(frozen=True, repr=False)
class Predictions(Tabular):
    """The most probable next behaviors of U users, best first; with groups, those of each group
    side by side."""

    users: pa.StringArray  # (U,)
    labels: np.ndarray  # (U, C) object: behavior labels, None where filters leave fewer
    # (U, C) float32, of all behaviors together; NaN where filters leave fewer
    probabilities: np.ndarray
    unknown: dict[str, int]  # field -> events whose label the model never saw
    rejected: dict[str, int]  # reason -> rows that could not be used
    ranks: np.ndarray  # (C,) int64 from 1; with groups, within each
    groups: np.ndarray | None = None  # (C,) object

    def __len__(self) -> int:
        return len(self.users)

    @property
    def left(self) -> np.ndarray:
        """(U, C) bool: where there is a behavior."""
        return ~np.isnan(self.probabilities)

    @property
    def empty(self) -> int:
        """Users of whom filters leave no behavior; the table does not have them."""
        return int((~self.left.any(axis=1)).sum())

    def to_table(self) -> pa.Table:
        """Columns user, rank (from 1), behavior, probability, and group after the user where asked
        for; up to C rows a user."""
        user, column = np.nonzero(self.left)
        groups = (
            {} if self.groups is None else {"group": pa.array(self.groups[column], pa.string())}
        )
        return pa.table(
            {
                "user": self.users.take(pa.array(user)),
                **groups,
                "rank": self.ranks[column],
                "behavior": pa.array(self.labels[user, column], pa.string()),
                "probability": self.probabilities[user, column],
            }
        )

    def answers(self) -> list[list[dict[str, object]]]:
        """The same as lists of behaviors by user, as the service tells them."""
        names = ["behavior", "probability", *(["group"] if self.groups is not None else [])]
        rows = zip(
            self.labels.tolist(), self.probabilities.tolist(), self.left.tolist(), strict=True
        )
        groups = [None] * len(self.ranks) if self.groups is None else self.groups.tolist()
        return [
            [
                dict(zip(names, row, strict=False))
                for *row, there in zip(labels, shares, groups, left, strict=True)
                if there
            ]
            for labels, shares, left in rows
        ]


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
    choice: Choice,
    shift: torch.Tensor,
    on_user: Callable[[int, int], None] | None = None,
) -> Predictions:
    """The answer of users (n,) with logits (n, K), piece by piece.

    `shift` (K,) is what the decision rule subtracts, before anything is taken out; `on_user` is
    told how many of all users are done.
    """
    ranks, groups = choice.columns
    chosen = np.zeros((len(asked.users), len(ranks)), np.int64)
    probabilities = np.zeros((len(asked.users), len(ranks)), np.float32)

    done = 0
    for users, logits in pieces:
        # in place: the logits are this piece's own, and a copy would double the peak
        values, classes = choice.best(logits.sub_(shift).softmax(-1), users)
        chosen[users], probabilities[users] = classes.numpy(), values.numpy()
        done += len(users)
        if on_user:
            on_user(done, len(asked.users))

    labels, taken_out = tokenizer.labels(chosen), probabilities == TAKEN_OUT
    labels[taken_out], probabilities[taken_out] = None, np.nan
    return Predictions(
        asked.users, labels, probabilities, asked.unknown, asked.rejected, ranks, groups
    )
