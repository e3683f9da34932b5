"""From histories to what the count experts say of them, in batches that bound the memory.

Shapes: N positions, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import moved
from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_columns import Columns, memory_columns
from behavegpt.data.memory_counts import memory_tensors
from behavegpt.data.memory_past import Past
from behavegpt.data.memory_read import Readings
from behavegpt.data.memory_shares import fit_shares, fold_of
from behavegpt.data.memory_state import Moments, read_pasts
from behavegpt.data.memory_tables import Counted, Tables, fit_tables
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.model.mixer import Memory
from behavegpt.ragged import ranges

POSITIONS = 4096  # read at a time
CELLS = 4_000_000  # logits that a batch may have


class MemoryBatch(NamedTuple):
    """Positions whose next behavior is asked for."""

    memory: Memory
    position: np.ndarray  # (N,) flat index of the last event that is known


@dataclass(frozen=True)
class MemoryReader:
    """Histories with their global tables; user u owns the events offsets[u] .. offsets[u + 1] -
    1."""

    columns: Columns
    offsets: np.ndarray  # (users + 1,) int64
    tables: Tables
    # (B, J) float32 of the experts in their mixture, by the length of the history
    shares: np.ndarray

    @property
    def classes(self) -> int:
        """K."""
        return len(self.tables.prior)

    def target(self, position: np.ndarray) -> torch.Tensor:
        """Classes (N,) int64 of the events after positions (N,)."""
        return torch.from_numpy(self.columns.behavior[position + 1].astype(np.int64))

    def batches(self, positions: np.ndarray, *, training: bool = False) -> Iterator[MemoryBatch]:
        """Batches of positions (flat indices of events, ascending), each of which knows the events
        up to itself.

        `training`: what follows them is in the tables, so each leaves out its user's fold.
        """
        if not len(positions):
            return

        # each user's asked span, first to last position: a history is read once, from its beginning
        user = np.searchsorted(self.offsets, positions, side="right") - 1
        first = np.flatnonzero(np.diff(user, prepend=-1))
        low, high = positions[first], positions[np.append(first[1:], len(positions)) - 1] + 1
        user = user[first]

        # whole users at a time, of about POSITIONS positions together
        chunk = (np.cumsum(high - low) - 1) // POSITIONS
        for number in np.unique(chunk):
            part = np.flatnonzero(chunk == number)
            folds = fold_of(user[part]) if training else None
            spans = Spans(self.offsets[user[part]], low[part], high[part], folds)
            readings = read_memory(self.columns, self.tables, spans)

            # all positions of the spans were read; of them those that were asked for, in pieces
            position = ranges(low[part], high[part] - low[part])
            asked = np.flatnonzero(np.isin(position, positions))
            pieces = max(1, -(-len(asked) * self.classes // CELLS))
            for piece in np.array_split(asked, pieces):
                yield MemoryBatch(take(readings, piece, self.shares), position[piece])

    def batches_of_pasts(
        self, pasts: Sequence[Past], moments: Moments | None = None
    ) -> Iterator[MemoryBatch]:
        """Batches of pasts that stand for histories; `position` is the index among them.

        `moments`: what is given of what follows each.
        """
        most = max(1, min(POSITIONS, CELLS // self.classes))
        for begin in range(0, len(pasts), most):
            part = pasts[begin : begin + most]
            index = np.arange(len(part))
            asked = moments and Moments(*(values[begin : begin + most] for values in moments))
            readings = read_pasts(part, self.tables, asked)
            yield MemoryBatch(take(readings, index, self.shares), begin + index)


def make_reader(
    columns: Columns,
    offsets: np.ndarray,
    used: np.ndarray,
    classes: int,
    given: tuple[str, ...] = (),
) -> MemoryReader:
    """The reader of histories, with tables of the `used` (events,) bool events: a split by time, or
    all of them.

    `given`: what is known of the event that follows a position.
    """

    if given:
        # what is given of an event stands one event earlier, where it is asked for
        columns = Columns(**moved(columns._asdict(), offsets, given))

    # folds of users: a training row leaves its own fold out of the tables
    folds = fold_of(np.arange(len(offsets) - 1))
    tables = fit_tables(columns, offsets, Counted(used, classes, folds))
    shares = fit_shares(columns, offsets, used, classes)
    return MemoryReader(columns, offsets, tables, shares)


def take(readings: Readings, index: np.ndarray, shares: np.ndarray) -> Memory:
    """The readings of some positions (N,), as tensors, with the mixture of the experts as the last
    one."""
    return Memory(**memory_tensors(readings, index, shares))


def store_reader(
    store: EventStore,
    roles: Mapping[str, str] | None = None,
    given: tuple[str, ...] = (),
) -> MemoryReader:
    """The reader of a prepared folder, with tables of its training split.

    `roles` gives another column as `behavior`, `event` or `location`: another question to the same
    log. `given`: what is known of the event that follows. Raises ConfigError for baskets.
    """
    refuse_baskets(store.schema, "the universal model")

    roles = dict(roles or {})
    named = {role: store.column(roles.get(role, role)) for role in ("behavior", "event")}
    place = roles.get("location", "location")
    if place in store.columns:
        named["location"] = store.columns[place]

    clock = {name: store.columns[name] for name in ("slot", "weekday", "time")}
    columns = memory_columns(named | clock, store.schema.slot_minutes)

    # classes are those of the column that is asked about
    classes = store.behaviors.classes
    if "behavior" in roles:
        classes = store.vocabulary[roles["behavior"]].classes
    trained = np.asarray(store.columns["split"]) == TRAIN
    return make_reader(columns, store.offsets, trained, classes, given)
