"""The counts of the memory where events come in baskets: what is in one follows what was before it,
never another part of it.

A basket counts each of its known behaviors once, ages are baskets, and a context that asks for the
last behaviors takes the last ones of the order that `prepare` draws by hash. What the experts say
is read once after each basket and told for all members of the next one.

Shapes: E events in M baskets; N positions that are read, J experts, B lengths of history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from behavegpt.data.baskets import Baskets, baskets_of
from behavegpt.data.compiled import kernel
from behavegpt.data.memory import JUDGED, Spans
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_counts import (
    Counts,
    as_tensors,
    counted_columns,
    dated_columns,
    edges_of,
    eras_of,
    memory_arrays,
    spans_of,
)
from behavegpt.data.memory_observe import judge, take_up_basket
from behavegpt.data.memory_past import EXPERTS, WEIGHTS, Past, clear, new_past
from behavegpt.data.memory_read import Readings, filled, new_readings, read
from behavegpt.data.memory_shares import EARLY, LATE, USERS, chance_of, fold_of, shares_of
from behavegpt.data.memory_tables import FOLDS, Counted, Tables, fit_tables
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.ragged import owners, ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

LAST = 10  # baskets of a user that shares are fitted on at most


@dataclass(frozen=True)
class BasketMemory:
    """Reads what the count experts say after baskets, as MemorySource does after events."""

    columns: Columns  # (E,), `behavior` -1 at events that are no targets
    baskets: Baskets
    counts: Counts
    leave_out: bool = False  # as of MemorySource

    @cached_property
    def eras(self) -> np.ndarray:
        """(M,) int8; what is in a basket is judged by the tables from before its era."""
        return eras_of(self.columns.time[self.baskets.begin[:-1]], self.counts.edges)

    def at(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of model/mixer.py's Memory after the baskets of events (N,), in this order."""
        read_once, index = np.unique(self.baskets.number_of(positions), return_inverse=True)
        fold = self.eras[read_once] if self.leave_out else np.full(len(read_once), -1, np.int8)
        spans = spans_of(read_once, self.baskets.offsets, fold)._replace(eras=self.eras)
        readings = read_baskets(self.columns, self.baskets.begin, self.counts.tables, spans)
        return as_tensors(memory_arrays(readings, index, self.counts.shares))


def count_baskets(store: EventStore) -> Counts:
    """Count the training split of a prepared folder of baskets."""
    baskets = store.baskets
    assert baskets is not None
    columns, classes = _targets_alone(dated_columns(store), baskets), store.behaviors.classes
    used = np.asarray(store.columns["split"]) == TRAIN

    edges = edges_of(columns, used)
    eras = np.minimum(np.searchsorted(edges, columns.time, side="right"), FOLDS - 1)  # (E,)
    counted = Counted(used, classes, eras, _previous(baskets))
    tables = fit_tables(columns, store.offsets, counted, by_time=True)
    shares = _fit_shares(columns, baskets, store.offsets, used, classes)
    return Counts(tables, shares, edges, store.schema.slot_minutes)


def store_memory(store: EventStore, counts: Counts, leave_out: bool) -> BasketMemory:
    """Reads the counts at the events of a prepared folder of baskets."""
    assert store.baskets is not None
    columns = _targets_alone(dated_columns(store), store.baskets)
    return BasketMemory(columns, store.baskets, counts, leave_out)


def history_memory(
    columns: Mapping[str, np.ndarray], offsets: np.ndarray, counts: Counts
) -> BasketMemory:
    """The same of histories (U,) in vocabulary ids, with epoch seconds; nothing is left out."""
    baskets = baskets_of(columns, offsets)
    return BasketMemory(_targets_alone(counted_columns(columns, counts), baskets), baskets, counts)


def read_baskets(columns: Columns, begin: np.ndarray, tables: Tables, spans: Spans) -> Readings:
    """Replay histories of baskets, which begin at events `begin` (M + 1,), and read the experts
    after those of each span, whose fields are baskets; as memory.read_memory."""
    readings = new_readings(int((spans.high - spans.low).sum()))
    longest = int((begin[spans.high] - begin[spans.begin]).max(initial=1))
    past = new_past(longest, baskets=True)
    _replay(columns, begin, tables, spans.compiled(), WEIGHTS, readings, past)
    return filled(readings)


def _targets_alone(columns: Columns, baskets: Baskets) -> Columns:
    """The columns in which each behavior of a basket is known once."""
    return columns._replace(behavior=np.where(baskets.is_target, columns.behavior, -1))


def _previous(baskets: Baskets) -> np.ndarray:
    """(E,) int64 the last event of the basket before each event's, -1 in a user's first."""
    before = baskets.begin[:-1] - 1  # (M,)
    before[baskets.offsets[:-1][np.diff(baskets.offsets) > 0]] = -1
    return baskets.of_events(before)


def _fit_shares(
    columns: Columns, baskets: Baskets, offsets: np.ndarray, used: np.ndarray, classes: int
) -> np.ndarray:
    """Shares (B, J) of the experts in their mixture, as memory_shares.fit_shares finds them of
    single events: of at most USERS users, the last LAST baskets."""
    early, late = np.quantile(columns.time[used], [EARLY, LATE]) if used.any() else (0, 0)
    folds = fold_of(np.arange(len(offsets) - 1))
    counted = Counted(used & (columns.time < early), classes, folds, _previous(baskets))
    tables = fit_tables(columns, offsets, counted)

    # the baskets before late ones
    first = baskets.begin[:-1]
    is_late = used[first] & (columns.time[first] >= late)
    is_late[baskets.offsets[:-1][np.diff(baskets.offsets) > 0]] = False
    source = np.flatnonzero(is_late) - 1
    user = np.searchsorted(baskets.offsets, source, side="right") - 1
    users, count = np.unique(user, return_counts=True)
    chosen = np.linspace(0, max(len(users) - 1, 0), min(len(users), USERS)).astype(int)
    newest = ranges(np.zeros_like(count), count) >= np.repeat(count - LAST, count)
    source = source[newest & np.isin(user, users[chosen])]

    spans = spans_of(source, baskets.offsets, np.full(len(source), -1, np.int8))
    readings = read_baskets(columns, baskets.begin, tables, spans)

    # each member of the next basket asks the reading of the one before
    size = baskets.begin[source + 2] - baskets.begin[source + 1]
    event = ranges(baskets.begin[source + 1], size)
    reading, target = owners(size), columns.behavior[event]
    reading, target = reading[target >= 0], target[target >= 0]
    chance = chance_of(readings, target, tables.prior, reading)
    return shares_of(chance, readings.context[reading, 0])


@kernel
def _replay(
    columns: Columns,
    begin: np.ndarray,
    tables: Tables,
    spans: Spans,
    weights: np.ndarray,
    readings: Readings,
    past: Past,
) -> None:
    place = np.full(len(tables.prior), -1, np.int32)  # of a class among the candidates
    chance = np.empty(len(EXPERTS))
    row = np.int64(0)  # as it is later: a literal would be compiled apart
    eras: np.ndarray = spans.eras  # type: ignore[assignment]  # an array by now

    for h in range(len(spans.begin)):
        first, low = spans.begin[h], spans.low[h]
        fold = spans.folds[h]  # type: ignore[index]  # an array by now
        if h > 0 and spans.begin[h - 1] == first and spans.high[h - 1] <= low:
            first = spans.high[h - 1]  # of the same user, and further on
        else:
            clear(past)

        for m in range(first, spans.high[h]):
            if m < low - JUDGED:  # too long ago to be judged by: only counted
                past.judged[:] = 0
            else:
                era = np.int64(eras[m]) if len(eras) else fold
                # before any of them is counted
                for t in range(begin[m], begin[m + 1]):
                    judge(past, tables, weights, era, chance, columns.behavior[t])

            take_up_basket(past, tables, begin[m], begin[m + 1], columns)
            if m >= low:
                read(past, tables, weights, fold, place, readings, row)
                row += 1
