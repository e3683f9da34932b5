"""What was counted from a training split, and what it says at positions of a packed batch.

MODEL/memory.safetensors   the global tables, the experts' shares, slot_minutes, what is given

Shapes: N positions, M candidate classes of all of them, J experts; H spans of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from behavegpt.data.compiled import kernel
from behavegpt.data.given import Moment, moved
from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_columns import Columns, memory_columns, store_columns
from behavegpt.data.memory_read import Readings
from behavegpt.data.memory_shares import LENGTHS, fit_shares
from behavegpt.data.memory_tables import FOLDS, Counted, Tables, fit_tables
from behavegpt.data.store import TRAIN, EventStore

if TYPE_CHECKING:
    import torch  # what a graph is given is made without it


class Counts(NamedTuple):
    """What was counted from the training split of a log."""

    tables: Tables
    # (B, J) float32 of the experts in their mixture, by the length of the history
    shares: np.ndarray
    # (FOLDS,) int64 epoch seconds: where the eras of the split begin after the first, and end
    edges: np.ndarray
    slot_minutes: int  # of the schema
    given: tuple[str, ...] = ()  # of the event that is predicted; names of given.GIVEN


def count_events(
    columns: Columns,
    offsets: np.ndarray,
    used: np.ndarray,
    classes: int,
    slot_minutes: int,
    given: tuple[str, ...] = (),
) -> Counts:
    """Count the `used` (events,) bool events; user u owns offsets[u] .. offsets[u + 1] - 1.

    `given`: what is known of the event that is predicted.
    """
    if given:
        columns = Columns(**moved(columns._asdict(), offsets, given))

    edges = edges_of(columns, used)
    eras = np.minimum(np.searchsorted(edges, columns.time, side="right"), FOLDS - 1)  # (events,)

    tables = fit_tables(columns, offsets, Counted(used, classes, eras), by_time=True)
    shares = fit_shares(columns, offsets, used, classes)
    return Counts(tables, shares, edges, slot_minutes, given)


def edges_of(columns: Columns, used: np.ndarray) -> np.ndarray:
    """Where the eras of the `used` (events,) events begin after the first, and end: (FOLDS,) int64.

    Eras have equally many events: each leaves out what its own and later ones would give away.
    """
    time = columns.time[used & (columns.behavior >= 0)]  # (n,) of what is counted
    parts = np.arange(1, FOLDS + 1) / FOLDS
    return np.quantile(time, parts, method="lower") + 1 if len(time) else np.zeros(FOLDS, np.int64)


def eras_of(time: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Era (n,) int8 of epoch seconds (n,); -1 after the last one.

    The tables without an era and all later ones know what was before it, those of -1 know all.
    """
    era = np.searchsorted(edges, time, side="right").astype(np.int8)
    era[era == FOLDS] = -1
    return era


def count_store(store: EventStore, given: tuple[str, ...] = ()) -> Counts:
    """Count the training split of a prepared folder."""
    if store.baskets is not None:
        from behavegpt.data.memory_baskets import count_baskets  # which imports this module

        return count_baskets(store)
    used = np.asarray(store.columns["split"]) == TRAIN
    columns, classes = dated_columns(store), store.behaviors.classes
    return count_events(columns, store.offsets, used, classes, store.schema.slot_minutes, given)


def dated_columns(store: EventStore) -> Columns:
    """The columns of a prepared folder, with epoch seconds."""
    columns = store_columns(store)
    # a store counts its times from an origin of its own
    return columns._replace(time=columns.time + store.manifest.time_origin)


@dataclass(frozen=True)
class MemorySource:
    """Reads what the count experts say at events of histories; user u owns offsets[u] .. offsets[u
    + 1] - 1."""

    columns: Columns  # what is given of the next event moved to each, see given.py
    offsets: np.ndarray  # (users + 1,) int64
    counts: Counts
    # the tables hold what follows: read them as they were before the era of each position
    leave_out: bool = False

    @cached_property
    def eras(self) -> np.ndarray:
        """(events,) int8; what comes is judged by the tables from before its era."""
        return eras_of(self.columns.time, self.counts.edges)

    def at(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of model/mixer.py's Memory for flat positions (N,), in this order; each knows the
        events up to it."""
        return as_tensors(self.arrays(positions))

    def arrays(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The same as numpy arrays."""
        order = np.argsort(positions, kind="stable")  # (N,)
        ascending = positions[order]
        fold = self.eras[ascending] if self.leave_out else np.full(len(ascending), -1, np.int8)
        spans = spans_of(ascending, self.offsets, fold)._replace(eras=self.eras)
        readings = read_memory(self.columns, self.counts.tables, spans)

        # back into the order of the positions that were asked for
        index = np.empty_like(order)
        index[order] = np.arange(len(order))
        return memory_arrays(readings, index, self.counts.shares)


def spans_of(ascending: np.ndarray, offsets: np.ndarray, fold: np.ndarray) -> Spans:
    """Spans of ascending positions (N,) with their folds (N,), of users with these offsets."""
    user = np.searchsorted(offsets, ascending, side="right") - 1  # (N,)

    # A span ends where positions are not adjacent, or the user or the fold changes.
    breaks = (np.diff(ascending, prepend=-2) != 1) | (np.diff(user, prepend=-1) != 0)
    first = np.flatnonzero(breaks | (np.diff(fold, prepend=-2) != 0))  # (h,) where spans begin
    low = ascending[first]
    high = ascending[np.append(first[1:], len(ascending)) - 1] + 1 if len(first) else low
    return Spans(offsets[user[first]], low, high, fold[first])


def history_source(
    columns: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    counts: Counts,
    asked: Moment | None = None,
) -> MemorySource:
    """The source of histories (U,) in vocabulary ids, with epoch seconds.

    Nothing is left out: all that was counted may be known to them.
    `asked`: what is given of the event that follows each history.
    """
    known = moved(columns, offsets, counts.given, asked) if counts.given else columns
    return MemorySource(counted_columns(known, counts), offsets, counts)


def counted_columns(columns: Mapping[str, np.ndarray], counts: Counts) -> Columns:
    """Columns of a log in vocabulary ids as those that were counted."""
    counted = memory_columns(columns, counts.slot_minutes)
    if counts.tables.locations[0] == 1:  # the counted log had no places
        counted = counted._replace(location=np.zeros_like(counted.location))
    return counted


def memory_tensors(
    readings: Readings, index: np.ndarray, shares: np.ndarray
) -> dict[str, torch.Tensor]:
    """`memory_arrays` of positions index (N,) as tensors: fields of Memory, `rest` (N, J), say."""
    return as_tensors(memory_arrays(readings, index, shares))


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays by name as tensors of the same memory, (N, ...) and (M, ...) as in model/mixer.py."""
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def memory_arrays(
    readings: Readings, index: np.ndarray, shares: np.ndarray
) -> dict[str, np.ndarray]:
    """The readings of some positions (N,), with the mixture of the experts as the last one; fields
    of Memory."""
    # (N,) candidates of each position
    count = readings.start[index + 1] - readings.start[index]
    begin = np.cumsum(count) - count  # (N,) first candidate of each
    total, experts = int(count.sum()), readings.rest.shape[1] + 1

    bucket = np.searchsorted(LENGTHS, readings.context[index, 0], side="right")  # (N,)
    arranged = _Arranged(
        owner=np.empty(total, np.int64),
        classes=np.empty(total, np.int64),
        probability=np.empty((total, experts), np.float32),
        age=np.empty((total, 2), np.float32),
        rest=np.empty((len(index), experts), np.float32),
    )
    _arrange(readings, index, begin, shares, bucket, arranged)

    return arranged._asdict() | {
        "evidence": readings.evidence[index],
        "reliability": readings.reliability[index],
        "context": readings.context[index],
    }


class _Arranged(NamedTuple):
    """The fields of Memory with an expert more than Readings: the mixture, last of J + 1."""

    owner: np.ndarray  # (M,) int64 position of a candidate
    classes: np.ndarray  # (M,) int64
    probability: np.ndarray  # (M, J + 1) float32
    age: np.ndarray  # (M, 2) float32
    rest: np.ndarray  # (N, J + 1) float32


@kernel
def _arrange(
    readings: Readings,
    index: np.ndarray,
    begin: np.ndarray,
    shares: np.ndarray,
    bucket: np.ndarray,
    out: _Arranged,
) -> None:
    """Copy the readings of positions index (N,), whose candidates begin at `begin` (N,), and mix
    the experts by the shares of their length of history, `bucket` (N,)."""
    experts = shares.shape[1]

    for n in range(len(index)):
        row, share = index[n], shares[bucket[n]]
        mixed = np.float32(0)
        for j in range(experts):
            out.rest[n, j] = readings.rest[row, j]
            mixed += share[j] * readings.rest[row, j]
        out.rest[n, experts] = mixed

        m = begin[n]
        for source in range(readings.start[row], readings.start[row + 1]):
            out.owner[m], out.classes[m] = n, readings.classes[source]
            out.age[m, 0], out.age[m, 1] = readings.age[source, 0], readings.age[source, 1]
            mixed = np.float32(0)
            for j in range(experts):
                out.probability[m, j] = readings.probability[source, j]
                mixed += share[j] * readings.probability[source, j]
            out.probability[m, experts] = mixed
            m += 1
