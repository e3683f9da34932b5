"""From a prepared folder to packed rows: windows of histories, side by side in rows of one length.

A window of n events starting at flat index s feeds events s .. s+n-1 and asks, at each, for the
behavior of the next event: targets s+1 .. s+n.

Everything here is a pure function of the data and (seed, epoch). Shapes: W windows, U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.ragged import owners, positions


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


class Histories(Protocol):
    """What is cut into windows: the events of a store, or its baskets."""

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """`split` of each."""

    @property
    def offsets(self) -> np.ndarray: ...

    def column(self, name: str) -> np.ndarray: ...


def target_rows(store: EventStore, split: int) -> np.ndarray:
    """Flat indices, ascending, of the events whose behavior is asked for in a split.

    Left out: each user's first event (nothing is known before it) and unknown or missing behaviors.
    Of baskets: the whole first one, and further events of a behavior in one basket.
    """
    if store.baskets is not None:
        asked = store.baskets.of_events(_followers(store.baskets, split))
        return np.flatnonzero(asked & store.baskets.is_target)
    return np.flatnonzero(
        _followers(store, split) & (np.asarray(store.column("behavior")) >= FIRST)
    )


def target_counts(store: EventStore) -> np.ndarray:
    """(K,) int64 training events of each class; of baskets those that hold it."""
    if store.baskets is None:
        return store.behaviors.counts
    counted = store.baskets.is_target & (np.asarray(store.columns["split"]) == TRAIN)
    classes = store.column("behavior")[counted].astype(np.int64) - FIRST
    return np.bincount(classes, minlength=store.behaviors.classes)


def count_unseen(store: EventStore, split: int) -> int:
    """Events of a split that `target_rows` leaves out although something precedes them: the label
    is unknown."""
    if store.baskets is not None:
        asked = store.baskets.of_events(_followers(store.baskets, split))
        return int((asked & (store.baskets.behavior < FIRST)).sum())
    return int((_followers(store, split) & (np.asarray(store.column("behavior")) < FIRST)).sum())


def _followers(store: Histories, split: int) -> np.ndarray:
    """(events,) bool: events of a split with an earlier event of their user."""
    wanted = np.asarray(store.columns["split"]) == split
    wanted[store.offsets[:-1][np.diff(store.offsets) > 0]] = False  # first events of users
    return wanted


def training_windows(store: Histories, max_length: int, rng: np.random.Generator) -> Windows:
    """All training targets exactly once, long histories cut into windows of at most `max_length`
    events.

    The remainder of a cut history stands at a random place, so that epochs cut it differently while
    the number of windows of each length, and so the number of rows, stays the same.
    """
    first, events = _range_of(store, TRAIN)
    inputs = np.maximum(events - 1, 0)  # (U,) the last event is only a target

    full, rest = np.divmod(inputs, max_length)  # (U,)
    pieces = full + (rest > 0)  # (U,) windows of each user
    user, index = owners(pieces), positions(pieces)  # (W,) of each window

    # which piece of a history is the remainder; the full ones after it begin that much earlier
    remainder = (rng.random(len(inputs)) * (full + 1)).astype(np.int64)
    is_short = (rest[user] > 0) & (index == remainder[user])
    is_after = (rest[user] > 0) & (index > remainder[user])

    start = first[user] + index * max_length - np.where(is_after, max_length - rest[user], 0)
    length = np.where(is_short, rest[user], max_length)
    return Windows(start, length, np.zeros_like(start))


def evaluation_windows(store: Histories, split: int, max_length: int) -> Windows:
    """Every target of a split once, with the user's earlier events of any split as context, never
    later ones.

    Histories longer than `max_length` are read in windows that overlap by half, so that every
    target sees at least `max_length // 2` earlier events, or all there are.
    """
    first, events = _range_of(store, split)
    begin = store.offsets[:-1]
    low = np.maximum(first, begin + 1)  # the first event of a user has no past
    high = first + events  # targets of a user: low .. high - 1

    # a history that fits into one window is read in one; others advance by half a window
    fits = high - 1 - begin <= max_length  # (U,)
    stride = np.where(fits, np.maximum(high - low, 1), max(max_length // 2, 1))  # (U,)
    pieces = np.where(high > low, -(-(high - low) // stride), 0)  # (U,)
    user = owners(pieces)  # (W,)

    # each window ends before its last target and reaches back as far as it may
    low_target = low[user] + positions(pieces) * stride[user]  # (W,)
    high_target = np.minimum(low_target + stride[user], high[user])  # (W,)
    length = np.minimum(max_length, high_target - 1 - begin[user])  # (W,)
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

    # windows of one length are interchangeable: a queue of each, in random order
    shuffled = rng.permutation(count) if rng is not None else np.arange(count)  # (W,)
    queue = shuffled[np.argsort(windows.length[shuffled], kind="stable")]  # (W,) by length
    histogram = np.bincount(windows.length, minlength=row_length + 1)  # (row_length + 1,)
    taken = np.cumsum(histogram) - histogram  # where the queue of each length stands

    # One pattern of lengths fills as many rows as the histogram holds it, so the loop runs over
    # patterns, not over rows.
    row = np.empty(count, np.int64)
    offset = np.empty(count, np.int64)
    rows = 0
    while histogram.any():
        pattern = _fill(histogram, row_length)
        repeat = min(int(histogram[length]) // copies for length, copies in pattern)
        place = 0  # in the row
        for length, copies in pattern:
            chosen = queue[taken[length] : taken[length] + repeat * copies]
            row[chosen] = rows + np.repeat(np.arange(repeat), copies)
            offset[chosen] = place + np.tile(np.arange(copies) * length, repeat)
            taken[length] += repeat * copies
            histogram[length] -= repeat * copies
            place += copies * length
        rows += repeat

    # the rows of one pattern are alike: a batch should not be all of one
    if rng is not None:
        row = rng.permutation(rows)[row]

    order = np.lexsort((offset, row))  # (W,) by row and place
    pointer = np.searchsorted(row[order], np.arange(rows + 1))
    return RowPlan(windows.take(order), offset[order], pointer)


def _range_of(store: Histories, split: int) -> tuple[np.ndarray, np.ndarray]:
    """First flat index and number of events of each user in a split; a user's events of a split are
    contiguous."""
    # sums before each event (events + 1,): their differences at the offsets are counts of users
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
