"""The state of the memory: one user's past so far, in every context that an expert counts in.

Shapes: J experts; of one user's past: S classes, O own contexts in hash tables of size H, E list
entries, T decays; G global contexts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_keys import GLOBAL

OWN = ("after_behavior", "after_two", "at_hour", "at_place", "at_weekday_hour")
DECAYS = (2.0, 8.0, 30.0, 120.0)  # events after which a count has fallen to 1/e
EXPERTS = (
    "prior",
    *(f"global_{name}" for name in GLOBAL),
    "user",
    *(f"user_{name}" for name in OWN),
    *(f"user_recent_{decay:.0f}" for decay in DECAYS),
    "user_last",
)
# by event: reliability is the decayed mean log-probability of what came, about the last 12 events
FORGET = 0.92
WORST = -8.0  # floor of the log-probabilities in reliability: one surprise costs this much at most
# events that the shorter context is worth, by expert: the prior, global, user, own, decayed, last
WEIGHTS = np.array([0.0, *[5.0] * 5, 3.0, *[2.0] * 5, *[0.5] * 4, 1.0])

USER = EXPERTS.index("user")  # the own contexts follow it, then the decays, then `last`
# places in Past.number: known events, classes, list entries, times of the last event and the one
# before it
KNOWN, CLASSES, ENTRIES, LATEST, PREVIOUS = range(5)
TICK = 5  # of a past of baskets alone: their number
# places in Past.clock, of the last event; what is given of the next one takes their place
SLOT, WEEKDAY, EVENT, PLACE = range(4)

CLASS_ROW = len(OWN)  # of the hash tables: the one that finds classes
FADED = 1024  # ages from here on count as this one, of which exp(-1024 / 120) = 2e-4 is left

_G, _O, _J = len(GLOBAL), len(OWN), len(EXPERTS)


class Past(NamedTuple):
    """One user's counts so far. What followed an own context is a linked list of (slot, count)."""

    # (5,) int64 at KNOWN, CLASSES, ENTRIES, LATEST and PREVIOUS; of baskets also TICK
    number: np.ndarray
    clock: np.ndarray  # (4,) int64 at SLOT (half hours), WEEKDAY, EVENT and PLACE
    last: np.ndarray  # (2,) int64 the last two known classes, -1 for none
    # (O,) int64 keys of the own contexts that the next behavior follows, -1 for none
    waiting: np.ndarray
    waiting_row: np.ndarray  # (G,) int64 rows of the global ones
    # (J + 1,) float64 decayed sums of log-probabilities of what came, and of ones
    judged: np.ndarray
    slot_class: np.ndarray  # (S,) int32 classes in the order of their first occurrence
    slot_count: np.ndarray  # (S,) float64
    slot_recent: np.ndarray  # (S, T) float64 decayed counts when the class last occurred
    recent_total: np.ndarray  # (T,) float64 decayed counts of all classes
    fading: np.ndarray  # (1024, T) float64 what is left of a count by age in events
    slot_event: np.ndarray  # (S,) int64 number of known events when the class last occurred
    slot_time: np.ndarray  # (S,) int64 and the time
    newest: np.ndarray  # (S,) int32 slots, the most recent first
    key: np.ndarray  # (O + 1, H) int64 keys of the contexts, and of the classes; -1 where free
    head: np.ndarray  # (O + 1, H) int32 first list entry of a context; slot of a class
    total: np.ndarray  # (O + 1, H) float64 events of a context
    taken: np.ndarray  # (O + 1, S) int32 places in the hash tables that are not free
    taken_number: np.ndarray  # (O + 1,) int64
    entry_slot: np.ndarray  # (E,) int32
    entry_count: np.ndarray  # (E,) float64
    entry_next: np.ndarray  # (E,) int32, -1 at the end


def new_past(
    events: int,
    decays: Sequence[float] = DECAYS,
    contexts: int = _G,
    baskets: bool = False,
) -> Past:
    """An empty past with room for a number of events, which come one by one or in `baskets`.

    What the experts read has the default decays and global contexts.

    """
    # hash tables stay half empty, or `find` would walk far
    room = 1 << max(3, int(2 * events - 1).bit_length())

    return Past(
        number=np.zeros(TICK + baskets, np.int64),
        clock=np.zeros(4, np.int64),
        last=np.full(2, -1, np.int64),
        waiting=np.full(_O, -1, np.int64),
        waiting_row=np.full(contexts, -1, np.int64),
        judged=np.zeros(_J + 1),
        slot_class=np.zeros(events, np.int32),
        slot_count=np.zeros(events),
        slot_recent=np.zeros((events, len(decays))),
        recent_total=np.zeros(len(decays)),
        fading=_fading(tuple(decays)),
        slot_event=np.zeros(events, np.int64),
        slot_time=np.zeros(events, np.int64),
        newest=np.zeros(events, np.int32),
        key=np.full((_O + 1, room), -1, np.int64),
        head=np.full((_O + 1, room), -1, np.int32),
        total=np.zeros((_O + 1, room)),
        taken=np.zeros((_O + 1, events), np.int32),
        taken_number=np.zeros(_O + 1, np.int64),
        entry_slot=np.zeros(_O * events, np.int32),
        entry_count=np.zeros(_O * events),
        entry_next=np.zeros(_O * events, np.int32),
    )


@functools.lru_cache
def _fading(decays: tuple[float, ...]) -> np.ndarray:
    """(1024, T) float64, shared by all pasts."""
    return np.exp(-np.arange(FADED)[:, None] / np.asarray(decays, np.float64))


@inner
def clear(past: Past) -> None:
    """Empty a past for the next history."""
    # counts, times and lists need no clearing: `number` says how much of them is in use
    past.number[:] = 0
    past.last[:] = -1
    past.waiting[:] = -1
    past.waiting_row[:] = -1
    past.judged[:] = 0
    past.recent_total[:] = 0

    for o in range(_O + 1):  # not the whole tables: most histories are far shorter than the longest
        for i in range(past.taken_number[o]):
            past.key[o, past.taken[o, i]] = -1
    past.taken_number[:] = 0
