"""Global tables of the memory: what followed in the training split, in contexts that all users
share.

A context is a row of a compressed table: its most frequent followers, and how many events it had.
Counts are kept for each of eight folds of users, so that a training position can leave out its own
user's events: a table that contains the target of the position it is asked at would be trusted far
too much.

Shapes: C contexts of all kinds with E followers in all, K classes, G kinds of contexts, H places
of a hash table, a power of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner, kernel
from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import FIRST

GLOBAL = (
    "after_behavior",
    "after_two",
    "at_weekend_hour",
    "after_event_and_place",
    "after_behavior_at_hour",
)
CONTEXTS = (*GLOBAL, "at_place")  # with those that only the count baselines read
FOLDS = 8
FOLLOWERS = 128  # of a context that are kept, the most frequent ones
SLOTS = 48  # of a day, whatever the schema's
DAY = 1440  # minutes


class Columns(NamedTuple):
    """Flat columns (events,) of histories, each sorted by time."""

    behavior: np.ndarray  # int32 class, -1 unknown
    event: np.ndarray  # int32 id, 0 and 1 unknown
    location: np.ndarray  # int32 id, 0 and 1 unknown
    slot: np.ndarray  # int16 half hour of the day, 0 .. 47
    weekday: np.ndarray  # int16, 0 is Monday
    time: np.ndarray  # int64 seconds


class Tables(NamedTuple):
    """What followed in C contexts, E followers in all."""

    prior: np.ndarray  # (K,) float32 frequency in training, all positive, sums to 1
    locations: np.ndarray  # (1,) int64 ids of locations
    key: np.ndarray  # (H,) int64 hash table of contexts, -1 where free
    row: np.ndarray  # (H,) int32 row of a context
    # (C + 1,) int64 followers of row c: start[c] .. start[c + 1] - 1, the most frequent first
    start: np.ndarray
    follower: np.ndarray  # (E,) int32 classes
    counts: np.ndarray  # (E, FOLDS + 1) float32 events by fold, all of them last
    total: np.ndarray  # (C, FOLDS + 1) float32 events of a context, dropped followers included


class Counted(NamedTuple):
    """Which events of histories the tables count, and how they are divided into folds."""

    used: np.ndarray  # (events,) bool
    classes: int  # K
    folds: np.ndarray  # (users,) int64 fold of each user, or (events,) eras, see `fit_tables`
    # (events,) int64 the event that each follows, -1: none; None: the one before it of its user
    previous: np.ndarray | None = None


class Preceding(NamedTuple):
    """What stands before a position: what the global contexts are made of."""

    last: np.integer  # the last known class, -1 for none
    before: np.integer  # the known class before it, -1 for none
    event: np.integer  # of the last event, as in `Columns`
    location: np.integer
    slot: np.integer
    weekday: np.integer


def memory_columns(columns: Mapping[str, np.ndarray], slot_minutes: int) -> Columns:
    """The columns that are counted, from `behavior`, `event`, maybe `location` (vocabulary ids),
    `slot`, `weekday` and `time`.


    A log without places has place 0 everywhere.
    """
    location = columns.get("location", np.zeros(len(columns["event"]), np.int32))

    return Columns(
        # vocabulary id -> class: padding and unknown become -1
        behavior=np.maximum(np.asarray(columns["behavior"]).astype(np.int32) - FIRST, -1),
        event=np.asarray(columns["event"]).astype(np.int32),
        location=np.asarray(location).astype(np.int32),
        # half hours, whatever the length of the schema's slots
        slot=(np.asarray(columns["slot"]).astype(np.int32) * slot_minutes * SLOTS // DAY).astype(
            np.int16
        ),
        weekday=np.asarray(columns["weekday"]).astype(np.int16),
        time=np.asarray(columns["time"]).astype(np.int64),
    )


def store_columns(store: EventStore) -> Columns:
    """The columns of a prepared folder, in memory."""
    return memory_columns(
        {**store.columns, "behavior": store.column("behavior")}, store.schema.slot_minutes
    )


def fit_tables(
    columns: Columns,
    offsets: np.ndarray,
    counted: Counted,
    *,
    contexts: Sequence[str] = GLOBAL,
    followers: int = FOLLOWERS,
    by_time: bool = False,
) -> Tables:
    """Count what followed at each used event; user u owns offsets[u] .. offsets[u + 1] - 1.

    `by_time`: the folds are eras of events, and who leaves one out leaves out the later ones too.
    `contexts`: GLOBAL or CONTEXTS; `followers`: how many of a context are kept, the most frequent
    ones.
    """
    behavior, classes = columns.behavior, counted.classes
    wanted = counted.used & (behavior >= 0)  # (events,)

    # half an event of every class: none may be impossible, for logarithms are taken
    counts = np.bincount(behavior[wanted], minlength=classes)  # (K,)
    prior = (counts + 0.5) / (counts + 0.5).sum()

    wanted[offsets[:-1][np.diff(offsets) > 0]] = False  # a first event follows nothing
    previous = np.arange(-1, len(behavior) - 1) if counted.previous is None else counted.previous
    target = np.flatnonzero(wanted & (previous >= 0))  # (n,)
    locations = int(columns.location.max(initial=1)) + 1
    # at the event before each target: (targets, G)
    keys = keys_of_positions(columns, offsets, classes, locations, len(contexts))[previous[target]]
    fold = counted.folds if by_time else np.repeat(counted.folds, np.diff(offsets))
    follower, fold = behavior[target], fold[target]

    parts = [
        _followers(keys[:, g], follower, fold, classes, followers) for g in range(len(contexts))
    ]
    joined = _Followers(*map(np.concatenate, zip(*parts, strict=True)))
    if by_time:
        # without era e means without all that came later: sums from the last era backwards
        for table in (joined.total, joined.counts):
            table[:, :FOLDS] = table[:, FOLDS - 1 :: -1].cumsum(axis=1)[:, ::-1]

    table_key, table_row = hash_table(joined.key)
    return Tables(
        prior=prior.astype(np.float32),
        locations=np.array([locations]),
        key=table_key,
        row=table_row,
        start=np.append(0, np.cumsum(joined.kept)),
        follower=joined.follower.astype(np.int32),
        counts=joined.counts,
        total=joined.total,
    )


class _Followers(NamedTuple):
    """C contexts with E followers in all: by context, the most frequent first."""

    key: np.ndarray  # (C,) int64
    total: np.ndarray  # (C, FOLDS + 1) float32 events
    kept: np.ndarray  # (C,) followers of each
    follower: np.ndarray  # (E,) classes
    counts: np.ndarray  # (E, FOLDS + 1) float32


def _followers(
    key: np.ndarray, follower: np.ndarray, fold: np.ndarray, classes: int, most: int
) -> _Followers:
    """One kind of context from targets (n,): their keys, classes and folds.

    Targets with key -1 are in no context. At most `most` followers of a context are kept.
    """
    known = key >= 0  # (n,)
    context, of_context = np.unique(key[known], return_inverse=True)  # (C,), (n,)
    fold = fold[known]
    total = _by_fold(of_context, fold, len(context))

    # a context and what followed it, as one number
    pairs = of_context * classes + follower[known]
    # (E,), (E,), (n,)
    pair, earliest, of_pair = np.unique(pairs, return_index=True, return_inverse=True)
    counts = _by_fold(of_pair, fold, len(pair))  # (E, FOLDS + 1)

    of_context, follower = pair // classes, pair % classes

    # equally frequent ones by their first occurrence: no label may matter
    order = np.lexsort((earliest, -counts[:, -1], of_context))  # (E,)
    # place of a follower among those of its context
    rank = np.arange(len(pair)) - np.searchsorted(of_context, of_context)
    order = order[rank < most]

    kept = np.bincount(of_context[order], minlength=len(context))  # (C,)
    return _Followers(context, total, kept, follower[order], counts[order])


def _by_fold(row: np.ndarray, fold: np.ndarray, rows: int) -> np.ndarray:
    """Events (rows, FOLDS + 1) float32 of each fold, and of all last."""
    counts = np.bincount(row * (FOLDS + 1) + fold, minlength=rows * (FOLDS + 1)).reshape(
        rows, FOLDS + 1
    )
    counts[:, -1] = counts.sum(axis=1)
    return counts.astype(np.float32)


def with_classes(tables: Tables, events: int, more: int) -> Tables:
    """The tables of a log of so many `events` with `more` classes behind the others that it never
    had: half an event each, and in no context."""
    classes = len(tables.prior)
    whole = events + 0.5 * classes
    prior = np.append(tables.prior * whole, np.full(more, 0.5)) / (whole + 0.5 * more)

    # two classes are one number in the second kind of context: last * classes + before
    keys = np.empty(len(tables.total), np.int64)
    filled = tables.key >= 0
    keys[tables.row[filled]] = tables.key[filled]
    pair = (keys & 7) == 1
    last, before = np.divmod(keys[pair] >> 3, classes)
    keys[pair] = (last * (classes + more) + before) * 8 + 1

    key, row = hash_table(keys)
    return tables._replace(prior=prior.astype(np.float32), key=key, row=row)


def hash_table(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Open addressing at a load of a half at most: keys (H,) and the place of each in `keys` (H,)
    int32."""
    room = 1 << max(4, int(2 * len(keys)).bit_length())

    table, place = np.full(room, -1, np.int64), np.full(room, -1, np.int32)

    _fill(table, place, keys)

    return table, place


@kernel
def _fill(table: np.ndarray, place: np.ndarray, keys: np.ndarray) -> None:
    for i in range(len(keys)):
        index = find(table, keys[i])
        table[index], place[index] = keys[i], i


@inner
def find(table: np.ndarray, key: int) -> np.int64:
    """Where a key stands in an open-addressing table (H,) int64, H a power of two; where it would
    be put if absent."""
    mask = len(table) - 1
    # Fibonacci hashing: 2^64 over the golden ratio; the high bits are the well mixed ones
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    index = np.int64(mixed >> np.uint64(32)) & mask

    while table[index] != key and table[index] != -1:
        index = (index + 1) & mask

    return index


@inner
def global_keys(keys: np.ndarray, at: Preceding, classes: int, locations: int) -> None:
    """Keys (G,), by GLOBAL or CONTEXTS, of a position with this before it; -1: in no such context.

    The lowest three bits are the kind of context, so one hash table holds all kinds.
    """
    keys[:] = -1

    if at.last >= 0:
        keys[0] = at.last * 8
        keys[4] = (at.last * 12 + at.slot // 4) * 8 + 4  # twelve parts of the day, two hours each
        if at.before >= 0:
            keys[1] = (at.last * classes + at.before) * 8 + 1

    keys[2] = ((at.weekday >= 5) * 24 + at.slot // 2) * 8 + 2  # by hour, weekends apart

    # unknown events and places are not alike, so they are no context
    if at.event >= 2:
        keys[3] = (at.event * locations + at.location) * 8 + 3
    if at.location >= 2 and len(keys) > len(GLOBAL):
        keys[5] = at.location * 8 + 5


def keys_of_positions(
    columns: Columns, offsets: np.ndarray, classes: int, locations: int, contexts: int = len(GLOBAL)
) -> np.ndarray:
    """Keys (events, contexts) int64 of the contexts at every event."""
    keys = np.empty((len(columns.behavior), contexts), np.int64)
    _keys_of_positions(keys, columns, offsets, classes, locations)
    return keys


@kernel
def _keys_of_positions(
    keys: np.ndarray, columns: Columns, offsets: np.ndarray, classes: int, locations: int
) -> None:
    for user in range(len(offsets) - 1):
        last, before = np.int64(-1), np.int64(-1)

        for t in range(offsets[user], offsets[user + 1]):
            if columns.behavior[t] >= 0:
                last, before = columns.behavior[t], last
            at = Preceding(
                last,
                before,
                columns.event[t],
                columns.location[t],
                columns.slot[t],
                columns.weekday[t],
            )
            global_keys(keys[t], at, classes, locations)
