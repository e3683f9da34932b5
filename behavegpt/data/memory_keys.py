"""Contexts as numbers: the keys of a position, and the hash table that finds their rows.

Shapes: G kinds of contexts, H places of a hash table, a power of two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner, kernel
from behavegpt.data.memory_columns import Columns

GLOBAL = (
    "after_behavior",
    "after_two",
    "at_weekend_hour",
    "after_event_and_place",
    "after_behavior_at_hour",
)
CONTEXTS = (*GLOBAL, "at_place")  # with those that only the count baselines read


class Preceding(NamedTuple):
    """What stands before a position: what the global contexts are made of."""

    last: np.integer  # the last known class, -1 for none
    before: np.integer  # the known class before it, -1 for none
    event: np.integer  # of the last event, as in `Columns`
    location: np.integer
    slot: np.integer
    weekday: np.integer


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
