"""Counts of histories that go on: each generated event is taken up, and the next reading knows it.

Shapes: N histories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numba.typed import List

from behavegpt.data.compiled import kernel
from behavegpt.data.given import moved
from behavegpt.data.memory import JUDGED
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_counts import Counts, counted_columns, eras_of, memory_tensors
from behavegpt.data.memory_observe import ask, observe, take_up
from behavegpt.data.memory_past import EXPERTS, WEIGHTS, Past, new_past
from behavegpt.data.memory_read import Readings, filled, new_readings, read
from behavegpt.data.memory_state import Moments, moments_of
from behavegpt.data.memory_tables import Tables


class LiveMemory:
    """The pasts of N histories, as `MemorySource` reads them, one event after the other."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        begin: np.ndarray,
        end: np.ndarray,
        counts: Counts,
        steps: int,
    ) -> None:
        """Take up the events begin .. end - 1 (N,) of each, with room for `steps` more."""
        self.counts = counts
        known = counted_columns(columns, counts)
        eras = eras_of(known.time, counts.edges)

        if counts.given:
            # the columns may hold other histories between these: each ends by itself
            ends = np.unique(np.concatenate([[0], end]))
            known = Columns(**moved(known._asdict(), ends, counts.given))

        # numba's own list: a loop over pasts in Python would cost more than reading them
        self.pasts = List(new_past(int(events) + steps) for events in end - begin)
        # each may be asked again after any event, so the whole past is kept, not its reading
        _take_up(self.pasts, counts.tables, WEIGHTS, eras, begin, end, known)

    def ask(self, columns: Mapping[str, np.ndarray]) -> None:
        """Note what is given of the next event (N,) of each, before it is read or taken up."""
        new = counted_columns(columns, self.counts)
        _ask(self.pasts, self.counts.tables, moments_of(new, self.counts.given))

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Take up one event (N,) of each."""

        new, index = counted_columns(columns, self.counts), np.arange(len(self.pasts))
        if self.counts.given:
            self.ask(columns)
            # histories of one event
            each = np.arange(len(self.pasts) + 1)
            new = Columns(**moved(new._asdict(), each, self.counts.given))

        eras = eras_of(new.time, self.counts.edges)
        _take_up(self.pasts, self.counts.tables, WEIGHTS, eras, index, index + 1, new)

    def take(self, rows: np.ndarray) -> None:
        """Keep the histories rows (n,) only."""
        self.pasts = List(self.pasts[row] for row in rows.tolist())

    def tensors(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """What is known of the next event of the histories rows (n,): fields (n, ...) and (M, ...)
        of model/mixer.py's Memory."""
        # none of the tables is left out: what comes is no training event
        readings = new_readings(len(rows))
        _read(self.pasts, self.counts.tables, WEIGHTS, rows, readings)
        return memory_tensors(filled(readings), np.arange(len(rows)), self.counts.shares)


@kernel
def _take_up(
    pasts: List[Past],
    tables: Tables,
    weights: np.ndarray,
    eras: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    columns: Columns,
) -> None:
    chance = np.empty(len(EXPERTS))

    for i in range(len(pasts)):
        past = pasts[i]
        for t in range(begin[i], end[i]):
            # as `memory.py` reads: what is too long ago is counted, but nothing is judged by it
            if t < end[i] - 1 - JUDGED:
                take_up(past, tables, t, columns)
            else:
                observe(past, tables, weights, eras[t], chance, t, columns)


@kernel
def _ask(pasts: List[Past], tables: Tables, moments: Moments) -> None:
    for i in range(len(pasts)):
        ask(pasts[i], tables, moments.slot[i], moments.weekday[i], moments.location[i])


@kernel
def _read(
    pasts: List[Past], tables: Tables, weights: np.ndarray, rows: np.ndarray, readings: Readings
) -> None:
    place = np.full(len(tables.prior), -1, np.int32)
    for row in range(len(rows)):
        read(pasts[rows[row]], tables, weights, -1, place, readings, row)
