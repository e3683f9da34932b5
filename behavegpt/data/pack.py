"""From a prepared folder to packed batches: windows of histories, rows of windows, tensors of rows.

A window of n events starting at flat index s feeds events s .. s+n-1 and asks, at each, for the
behavior of the next event: targets s+1 .. s+n. This is the one place where a target is made.

Everything here is a pure function of the data and (seed, epoch). Shapes: W windows, R positions a
row, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from behavegpt.batch import IGNORED, PADDING, PackedBatch
from behavegpt.data.memory_counts import MemorySource
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.ragged import positions, ranges

GAP_BUCKETS = 56  # half octaves of 1 + seconds: the last one begins at 6 years


@dataclass(frozen=True)
class Windows:
    """W pieces of histories; each array (W,) int64."""

    start: np.ndarray  # flat index of the first input event
    length: np.ndarray  # number of input events
    # first position whose target is asked for; the ones before are context only
    score_from: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: np.ndarray) -> Windows:
        return Windows(self.start[index], self.length[index], self.score_from[index])


@dataclass(frozen=True)
class RowPlan:
    """Windows laid out in rows: windows `pointer[r]:pointer[r + 1]` stand in row r at `offset`."""

    windows: Windows  # sorted by row
    offset: np.ndarray  # (W,) position of the window's first event in its row
    pointer: np.ndarray  # (rows + 1,)

    @property
    def rows(self) -> int:
        return len(self.pointer) - 1


def target_rows(store: EventStore, split: int) -> np.ndarray:
    """Flat indices, ascending, of the events whose behavior is asked for in a split.

    Left out: each user's first event (nothing is known before it) and unknown or missing behaviors.
    """
    return np.flatnonzero(
        _followers(store, split) & (np.asarray(store.column("behavior")) >= FIRST)
    )


def count_unseen(store: EventStore, split: int) -> int:
    """Events of a split that `target_rows` leaves out although something precedes them: the label
    is unknown."""
    return int((_followers(store, split) & (np.asarray(store.column("behavior")) < FIRST)).sum())


def _followers(store: EventStore, split: int) -> np.ndarray:
    """(events,) bool: events of a split with an earlier event of their user."""
    wanted = np.asarray(store.columns["split"]) == split
    wanted[store.offsets[:-1][np.diff(store.offsets) > 0]] = False
    return wanted


def training_windows(store: EventStore, max_length: int, rng: np.random.Generator) -> Windows:
    """All training targets exactly once, long histories cut into windows of at most `max_length`
    events.

    The remainder of a cut history stands at a random place, so that epochs cut it differently while
    the number of windows of each length, and so the number of rows, stays the same.
    """
    first, events = _range_of(store, TRAIN)
    tokens = np.maximum(events - 1, 0)
    full, rest = np.divmod(tokens, max_length)
    pieces = full + (rest > 0)
    user = np.repeat(np.arange(len(tokens)), pieces)
    index = positions(pieces)
    at = (rng.random(len(tokens)) * (full + 1)).astype(np.int64)  # which piece is the remainder
    short = (rest[user] > 0) & (index == at[user])
    after = (rest[user] > 0) & (index > at[user])
    start = first[user] + index * max_length - np.where(after, max_length - rest[user], 0)
    length = np.where(short, rest[user], max_length)
    return Windows(start, length, np.zeros_like(start))


def evaluation_windows(store: EventStore, split: int, max_length: int) -> Windows:
    """Every target of a split once, with the user's earlier events of any split as context, never
    later ones.

    Histories longer than `max_length` are read in windows that overlap by half, so that every
    target sees at least `max_length // 2` earlier events, or all there are.
    """
    first, events = _range_of(store, split)
    begin = store.offsets[:-1]
    low = np.maximum(first, begin + 1)  # the first event of a user has no past
    high = first + events
    fits = high - 1 - begin <= max_length
    stride = np.where(fits, np.maximum(high - low, 1), max(max_length // 2, 1))
    pieces = np.where(high > low, -(-(high - low) // stride), 0)
    user = np.repeat(np.arange(len(begin)), pieces)
    low_target = low[user] + positions(pieces) * stride[user]
    high_target = np.minimum(low_target + stride[user], high[user])
    length = np.minimum(max_length, high_target - 1 - begin[user])
    start = high_target - 1 - length
    return Windows(start, length, low_target - 1 - start)


def pack_rows(windows: Windows, row_length: int, rng: np.random.Generator | None = None) -> RowPlan:
    """Lay windows side by side into rows of `row_length` positions: best fit on the histogram of
    lengths.

    With `rng`, windows of equal length and the rows are shuffled. Raises ValueError for a window
    longer than a row.
    """
    count = len(windows)
    if count and int(windows.length.max()) > row_length:
        raise ValueError(
            f"a window of {int(windows.length.max())} events does not fit a row of {row_length}"
        )
    shuffled = rng.permutation(count) if rng is not None else np.arange(count)
    queue = shuffled[np.argsort(windows.length[shuffled], kind="stable")]
    histogram = np.bincount(windows.length, minlength=row_length + 1)
    taken = np.cumsum(histogram) - histogram  # where the queue of each length stands
    row = np.empty(count, np.int64)
    offset = np.empty(count, np.int64)
    rows = 0
    while histogram.any():
        pattern = _fill(histogram, row_length)
        repeat = min(int(histogram[length]) // copies for length, copies in pattern)
        at = 0
        for length, copies in pattern:
            chosen = queue[taken[length] : taken[length] + repeat * copies]
            row[chosen] = rows + np.repeat(np.arange(repeat), copies)
            offset[chosen] = at + np.tile(np.arange(copies) * length, repeat)
            taken[length] += repeat * copies
            histogram[length] -= repeat * copies
            at += copies * length
        rows += repeat
    if rng is not None:
        row = rng.permutation(rows)[row]
    order = np.lexsort((offset, row))
    pointer = np.searchsorted(row[order], np.arange(rows + 1))
    return RowPlan(windows.take(order), offset[order], pointer)


def collate(
    columns: Mapping[str, np.ndarray],
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: tuple[str, ...],
    next_fields: tuple[str, ...] = (),
    memory: MemorySource | None = None,
    given: tuple[str, ...] = (),
) -> PackedBatch:
    """Tensors of the given rows (B,) of a plan; row -1 is an empty row. One gather per column.

    `columns` are the store's, with `behavior` and (for `gap`) `time`; `fields` become `inputs`,
    `event` as `input_ids`. `memory` tells what the counts say at the positions with a target, and
    `given` names the fields of the targets that the model may know.
    """
    layout = layout_of(plan, rows, row_length)
    source = layout.source
    behavior = columns["behavior"][source + 1].astype(np.int64)
    asked = layout.scored & (behavior >= FIRST)

    following: dict[str, torch.Tensor] = {}
    for name in next_fields:
        values = columns["time" if name == "gap" else name][source + 1].astype(np.int64)
        if name == "gap":
            values = gap_buckets(values - columns["time"][source].astype(np.int64))
        following[name] = layout.spread(np.where(asked, values, IGNORED), IGNORED)
    targets = source[asked] + 1
    known = {name: torch.from_numpy(columns[name][targets].astype(np.int64)) for name in given}
    return _inputs(columns, layout, fields)._replace(
        target=layout.spread(np.where(asked, behavior - FIRST, IGNORED), IGNORED),
        row=layout.spread(np.where(asked, source + 1, -1), -1),
        next_fields=following,
        memory=None if memory is None else memory.at(source[asked]),
        given=known or None,
    )


def collate_inputs(
    columns: Mapping[str, np.ndarray],
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: tuple[str, ...],
) -> PackedBatch:
    """As `collate`, where nothing is asked: no position has a target."""
    return _inputs(columns, layout_of(plan, rows, row_length), fields)


def argument_name(field: str) -> str:
    """The model's argument for a field: `input_ids` for the event (transformers' main input), else
    `FIELD_ids`."""
    return "input_ids" if field == "event" else f"{field}_ids"


def _range_of(store: EventStore, split: int) -> tuple[np.ndarray, np.ndarray]:
    """First flat index and number of events of each user in a split; a user's events of a split are
    contiguous."""
    inside = np.concatenate([[0], np.cumsum(np.asarray(store.columns["split"]) == split)])
    earlier = np.concatenate([[0], np.cumsum(np.asarray(store.columns["split"]) < split)])
    begin, end = store.offsets[:-1], store.offsets[1:]
    return begin + earlier[end] - earlier[begin], inside[end] - inside[begin]


def _fill(histogram: np.ndarray, row_length: int) -> list[tuple[int, int]]:
    """(length, copies) of one row, the longest windows that still fit first."""
    left, pattern = row_length, []
    while left:
        available = np.flatnonzero(histogram[1 : left + 1])
        if not len(available):
            break
        length = int(available[-1]) + 1
        copies = min(int(histogram[length]), left // length)
        pattern.append((length, copies))
        left -= length * copies
        # all windows of this length are in the row already: look at shorter ones
        if left >= length:
            histogram = histogram.copy()
            histogram[length] = 0
    return pattern


class Layout(NamedTuple):
    """The E events of some rows; each array (E,)."""

    source: np.ndarray  # flat index in the columns
    place: np.ndarray  # in the batch, row by row
    position: np.ndarray
    document: np.ndarray
    scored: np.ndarray  # bool: whether its target is asked for
    shape: tuple[int, int]  # of the batch

    def spread(self, values: np.ndarray, fill: int) -> torch.Tensor:
        """(B, R) int64 of the values (E,), `fill` where there is no event."""
        flat = np.full(self.shape[0] * self.shape[1], fill, np.int64)
        flat[self.place] = values
        return torch.from_numpy(flat.reshape(self.shape))


def layout_of(plan: RowPlan, rows: np.ndarray, row_length: int) -> Layout:
    real = np.flatnonzero(rows >= 0)
    held = plan.pointer[rows[real] + 1] - plan.pointer[rows[real]]
    window = ranges(plan.pointer[rows[real]], held)
    base = np.repeat(real, held) * row_length + plan.offset[window]

    length = plan.windows.length[window]
    position = positions(length)
    return Layout(
        source=np.repeat(plan.windows.start[window], length) + position,
        place=np.repeat(base, length) + position,
        position=position,
        document=np.repeat(positions(held), length),
        scored=position >= np.repeat(plan.windows.score_from[window], length),
        shape=(len(rows), row_length),
    )


def _inputs(
    columns: Mapping[str, np.ndarray], layout: Layout, fields: tuple[str, ...]
) -> PackedBatch:
    """A batch without targets."""
    return PackedBatch(
        inputs={argument_name(f): layout.spread(columns[f][layout.source], 0) for f in fields},
        document=layout.spread(layout.document, PADDING),
        position=layout.spread(layout.position, 0),
        target=torch.full(layout.shape, IGNORED),
        row=torch.full(layout.shape, -1),
        next_fields={},
    )


def gap_buckets(seconds: np.ndarray) -> np.ndarray:
    """Buckets, int64 in [0, GAP_BUCKETS), of times between events in seconds (padding may make them
    negative)."""
    return half_octaves(seconds, GAP_BUCKETS)


def half_octaves(values: np.ndarray, buckets: int) -> np.ndarray:
    """Buckets of equal width on a logarithmic scale, two for each doubling of 1 + value; int64 in
    [0, buckets)."""
    return np.minimum((2 * np.log2(1 + np.maximum(values, 0))).astype(np.int64), buckets - 1)
