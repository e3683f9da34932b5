"""One user's past that grows event by event, is read without its history, and is kept in a compact
form.

What is kept does not depend on how the past grew, so equal histories give equal bytes.

Shapes: N states that are read, K classes, J experts; of one past as it is kept: S classes, C
contexts of all tables, E list entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from behavegpt.data.compiled import kernel
from behavegpt.data.memory_observe import observe, take
from behavegpt.data.memory_past import EXPERTS, OWN, WEIGHTS, Past, new_past
from behavegpt.data.memory_read import Readings, filled, new_readings, read
from behavegpt.data.memory_tables import Columns, Tables, find

ROOM = 8  # events of a new past; doubled when it is full
FIXED = ("number", "clock", "last", "waiting", "waiting_row", "judged", "recent_total")
# (S, ...)
BY_CLASS = ("slot_class", "slot_count", "slot_recent", "slot_event", "slot_time", "newest")
BY_ENTRY = ("entry_slot", "entry_count", "entry_next")  # (E,)
CONTEXTS = ("key", "head", "total")  # (C,), table by table; table o has `contexts`[o]
_J = len(EXPERTS)


def extend(past: Past, tables: Tables, columns: Columns, eras: np.ndarray | None = None) -> Past:
    """Take up events in their order: one of O(experts) each. Returns the past, a larger one where
    it was full.

    `eras` (events,) int8: what the tables leave out where they are judged by an event; None:
    nothing.
    """
    needed = _used(past) + len(columns.behavior)
    if needed > len(past.slot_class):
        past = unpack(pack(past), max(needed, 2 * len(past.slot_class)))
    if eras is None:
        eras = np.full(len(columns.behavior), -1, np.int8)
    _extend(past, tables, WEIGHTS, eras, np.empty(_J), columns)
    return past


def _used(past: Past) -> int:
    """Events that the room in use would have been made for."""
    return int(max(past.number[1], past.taken_number.max(), -(-past.number[2] // len(OWN))))


@kernel
def _extend(past, tables, weights, eras, chance, columns):  # type: ignore[no-untyped-def]
    for t in range(len(columns.behavior)):
        observe(past, tables, weights, np.int64(eras[t]), chance, t, columns)


def read_pasts(pasts: Sequence[Past], tables: Tables) -> Readings:
    """What the experts say of what follows each of N pasts."""
    readings = new_readings(len(pasts))
    place = np.full(len(tables.prior), -1, np.int32)
    for row, past in enumerate(pasts):
        _read(past, tables, WEIGHTS, place, readings, row)
    return filled(readings)


@kernel
def _read(past, tables, weights, place, readings, row):  # type: ignore[no-untyped-def]
    read(past, tables, weights, np.int64(-1), place, readings, row)


def pack(past: Past) -> dict[str, np.ndarray]:
    """The arrays to keep: FIXED, BY_CLASS (S, ...), BY_ENTRY (E,), CONTEXTS (C,), and `contexts` (O
    + 1,)."""
    classes, entries = int(past.number[1]), int(past.number[2])
    kept = {name: getattr(past, name) for name in FIXED}
    kept |= {name: getattr(past, name)[:classes] for name in BY_CLASS}
    kept |= {name: getattr(past, name)[:entries] for name in BY_ENTRY}
    tables = [(o, past.taken[o, :number]) for o, number in enumerate(past.taken_number)]
    kept |= {
        name: np.concatenate([getattr(past, name)[o, at] for o, at in tables]) for name in CONTEXTS
    }
    return {name: array.copy() for name, array in kept.items()} | {
        "contexts": past.taken_number.copy()
    }


def unpack(kept: dict[str, np.ndarray], room: int = 0) -> Past:
    """The past that `pack` kept, with room for events like `room` in all, or a little more than it
    needs."""
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
def _put(past, contexts, key, head, total):  # type: ignore[no-untyped-def]
    """Fill the hash tables again."""
    i = np.int64(0)
    for o in range(len(contexts)):
        for _ in range(contexts[o]):
            at = find(past.key[o], key[i])
            take(past, o, at, key[i])
            past.head[o, at], past.total[o, at] = head[i], total[i]
            i += 1
