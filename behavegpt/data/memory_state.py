"""One user's past that grows event by event, is read without its history, and is packed to be kept.

The packed form does not depend on how the past grew, so equal histories give equal bytes.

Shapes: N states that are read, K classes, J experts; of one past as it is packed: S classes, C
contexts of all tables, E list entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import kernel
from behavegpt.data.given import moved
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_keys import find
from behavegpt.data.memory_observe import ask, observe, take
from behavegpt.data.memory_past import (
    CLASSES,
    ENTRIES,
    EXPERTS,
    OWN,
    PLACE,
    SLOT,
    WEEKDAY,
    WEIGHTS,
    Past,
    new_past,
)
from behavegpt.data.memory_read import Readings, filled, new_readings, read
from behavegpt.data.memory_tables import Tables

ROOM = 8  # events of a new past; doubled when it is full
# fields of a Past as they are packed
FIXED = ("number", "clock", "last", "waiting", "waiting_row", "judged", "recent_total")
# (S, ...)
BY_CLASS = ("slot_class", "slot_count", "slot_recent", "slot_event", "slot_time", "newest")
BY_ENTRY = ("entry_slot", "entry_count", "entry_next")  # (E,)
CONTEXTS = ("key", "head", "total")  # (C,), table by table; table o has `contexts`[o]
_J = len(EXPERTS)


class Moments(NamedTuple):
    """What is given of N events to come, each (N,) int64; -1: not given."""

    slot: np.ndarray  # half hour of the day
    weekday: np.ndarray
    location: np.ndarray


def moments_of(columns: Columns, given: Sequence[str]) -> Moments:
    """What is given of events (N,)."""
    unknown = np.full(len(columns.slot), -1, np.int64)
    slot, weekday = (columns.slot, columns.weekday) if "time" in given else (unknown, unknown)
    location = columns.location if "location" in given else unknown
    return Moments(*(values.astype(np.int64) for values in (slot, weekday, location)))


def extend(
    past: Past,
    tables: Tables,
    columns: Columns,
    eras: np.ndarray | None = None,
    given: Sequence[str] = (),
) -> Past:
    """Take up events in their order, in O(experts) each. Returns the past, a larger one where it
    was full.

    `eras` (events,) int8: what the tables leave out where they are judged by an event; None:
    nothing. `given`: what is known of each event before it comes.
    """
    if given and len(columns.behavior):
        # the first event is asked for; the columns tell each later one with the event before it
        first = Columns(*(column[:1] for column in columns))
        _ask(past, tables, moments_of(first, given))
        ends = np.array([0, len(columns.behavior)])
        columns = Columns(**moved(columns._asdict(), ends, given))

    # doubled, so that n events take O(n) copies in all
    needed = _used(past) + len(columns.behavior)
    if needed > len(past.slot_class):
        past = unpack(pack(past), max(needed, 2 * len(past.slot_class)))

    if eras is None:
        eras = np.full(len(columns.behavior), -1, np.int8)

    _extend(past, tables, WEIGHTS, eras, np.empty(_J), columns)
    return past


def _used(past: Past) -> int:
    """Events that classes, contexts and list entries take up the room of."""
    entries = -(-past.number[ENTRIES] // len(OWN))  # a new past has room for one of each context
    return int(max(past.number[CLASSES], past.taken_number.max(), entries))


@kernel
def _extend(
    past: Past,
    tables: Tables,
    weights: np.ndarray,
    eras: np.ndarray,
    chance: np.ndarray,
    columns: Columns,
) -> None:
    for t in range(len(columns.behavior)):
        observe(past, tables, weights, np.int64(eras[t]), chance, t, columns)


@kernel
def _ask(past: Past, tables: Tables, moments: Moments) -> None:
    ask(past, tables, moments.slot[0], moments.weekday[0], moments.location[0])


def read_pasts(pasts: Sequence[Past], tables: Tables, moments: Moments | None = None) -> Readings:
    """What the experts say of what follows each of N pasts, which stay as they are.

    `moments`: what is given of the event that follows each.
    """
    readings = new_readings(len(pasts))
    place = np.full(len(tables.prior), -1, np.int32)

    for row, past in enumerate(pasts):
        if moments is None:
            _read(past, tables, WEIGHTS, place, readings, row)
        else:
            given = Moments(*(values[row : row + 1] for values in moments))
            _read_given(past, tables, WEIGHTS, place, readings, row, given)

    return filled(readings)


@kernel
def _read_given(
    past: Past,
    tables: Tables,
    weights: np.ndarray,
    place: np.ndarray,
    readings: Readings,
    row: int,
    given: Moments,
) -> None:
    # what is given stands in for the last event's own, which is put back afterwards
    slot, weekday, location = past.clock[SLOT], past.clock[WEEKDAY], past.clock[PLACE]
    ask(past, tables, given.slot[0], given.weekday[0], given.location[0])
    read(past, tables, weights, np.int64(-1), place, readings, row)
    ask(past, tables, slot, weekday, location)


@kernel
def _read(
    past: Past,
    tables: Tables,
    weights: np.ndarray,
    place: np.ndarray,
    readings: Readings,
    row: int,
) -> None:
    read(past, tables, weights, np.int64(-1), place, readings, row)


def pack(past: Past) -> dict[str, np.ndarray]:
    """The arrays to keep: FIXED, BY_CLASS (S, ...), BY_ENTRY (E,), CONTEXTS (C,), and `contexts`
    (O + 1,), the places in use of each hash table."""
    classes, entries = int(past.number[CLASSES]), int(past.number[ENTRIES])
    kept = {name: getattr(past, name) for name in FIXED}
    kept |= {name: getattr(past, name)[:classes] for name in BY_CLASS}
    kept |= {name: getattr(past, name)[:entries] for name in BY_ENTRY}

    # the hash tables, without the free places, in the order in which the others were taken
    table = np.repeat(np.arange(len(past.taken_number)), past.taken_number)  # (C,)
    # (C,)
    place = np.concatenate([past.taken[o, :used] for o, used in enumerate(past.taken_number)])
    kept |= {name: getattr(past, name)[table, place] for name in CONTEXTS}

    kept["contexts"] = past.taken_number
    return {name: array.copy() for name, array in kept.items()}


def unpack(kept: dict[str, np.ndarray], room: int = 0) -> Past:
    """The past that `pack` kept, with room for `room` events in all, or for a few more than it
    has."""
    needed = max(
        len(kept["slot_class"]),
        int(kept["contexts"].max()),
        -(-len(kept["entry_slot"]) // len(OWN)),
    )

    past = new_past(max(room, needed + ROOM))
    for name in (*FIXED, *BY_CLASS, *BY_ENTRY):
        array = kept[name]
        getattr(past, name)[: len(array)] = array

    _put(past, kept["contexts"], kept["key"], kept["head"], kept["total"])
    return past


@kernel
def _put(
    past: Past, contexts: np.ndarray, key: np.ndarray, head: np.ndarray, total: np.ndarray
) -> None:
    """Fill the hash tables again, in the order in which they were filled."""
    i = np.int64(0)
    for o in range(len(contexts)):
        for _ in range(contexts[o]):
            place = find(past.key[o], key[i])
            take(past, o, place, key[i])
            past.head[o, place], past.total[o, place] = head[i], total[i]
            i += 1
