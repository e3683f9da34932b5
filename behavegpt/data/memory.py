"""What counting says about the next behavior: a distribution in each of many contexts, over a user's whole past.

Every expert is a count in one context c, smoothed towards a shorter one:

    P(b|c) = (n(b,c) + w P(b|shorter)) / (n(c) + w)

Global experts count what followed in the training split for all users (`memory_tables.py`); own
experts count this user's whole past. A model mixes their log-probabilities (`model/mixer.py`).
A position t knows the events up to t alone.

Shapes: N positions that are read, M candidate classes of all of them, J experts, K classes; of one
user's past: S classes, O own contexts in hash tables of size H, E list entries, T decays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from behavegpt.data.memory_tables import GLOBAL, Columns, Tables, find, global_keys

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
CANDIDATES = 64
OWN_CANDIDATES = 48  # the most recent behaviors of the user
GLOBAL_CANDIDATES = 5  # the most frequent ones of each global context
FORGET = 0.92  # an event: reliability is the decayed mean log-probability of what came
WORST = -8.0  # of a log-probability that counts for reliability
WEIGHTS = np.array([0.0, *[5.0] * 5, 3.0, *[2.0] * 5, *[0.5] * 4, 1.0])  # of the shorter context, in events, by expert

_G, _O, _T, _J = len(GLOBAL), len(OWN), len(DECAYS), len(EXPERTS)
_USER = 1 + _G  # index of the expert `user`; the own contexts follow it, then the decays, then `last`
_CLASS = _O  # row of the hash tables that finds classes
_FADED = 1024  # events after which a decayed count is 0


class Readings(NamedTuple):
    """What the experts say at N positions."""

    start: np.ndarray  # (N + 1,) int64: position n has the candidates start[n] .. start[n + 1] - 1
    classes: np.ndarray  # (M,) int32 candidate classes, each once a position
    probability: np.ndarray  # (M, J) float32 of the candidates
    age: np.ndarray  # (M, 2) float32 known events and seconds since the class last occurred, -1 for never
    rest: np.ndarray  # (N, J) float32: an expert gives any other class b the probability rest * prior(b)
    evidence: np.ndarray  # (N, J) float32 events behind each expert
    reliability: (
        np.ndarray
    )  # (N, J + 1) float32 mean log-probability of what came so far; last: events that judge, <= 12.5
    context: np.ndarray  # (N, 5) float32: known events, classes, half hour, weekday, seconds since the event before


class Past(NamedTuple):
    """One user's counts so far. What followed an own context is a linked list of (slot, count)."""

    number: np.ndarray  # (5,) int64: known events, classes, list entries, time of the last event and of the one before
    clock: np.ndarray  # (2,) int64 half hour and weekday of the last event
    last: np.ndarray  # (2,) int64 the last two known classes, -1 for none
    waiting: np.ndarray  # (O,) int64 keys of the own contexts that the next behavior follows, -1 for none
    waiting_row: np.ndarray  # (G,) int64 rows of the global ones
    judged: np.ndarray  # (J + 1,) float64 decayed sums of log-probabilities of what came, and of ones
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


def new_past(events: int, decays: Sequence[float] = DECAYS, contexts: int = _G) -> Past:
    """An empty past with room for a number of events.

    What the experts read has the default decays and global contexts.
    """
    room = 1 << max(3, int(2 * events - 1).bit_length())
    return Past(
        number=np.zeros(5, np.int64),
        clock=np.zeros(2, np.int64),
        last=np.full(2, -1, np.int64),
        waiting=np.full(_O, -1, np.int64),
        waiting_row=np.full(contexts, -1, np.int64),
        judged=np.zeros(_J + 1),
        slot_class=np.zeros(events, np.int32),
        slot_count=np.zeros(events),
        slot_recent=np.zeros((events, len(decays))),
        recent_total=np.zeros(len(decays)),
        fading=np.exp(-np.arange(_FADED)[:, None] / np.asarray(decays, np.float64)),
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


def new_readings(count: int) -> Readings:
    """Room for N = count positions; what no candidate is written to costs no memory."""
    return Readings(
        start=np.zeros(count + 1, np.int64),
        classes=np.empty(count * CANDIDATES, np.int32),
        probability=np.empty((count * CANDIDATES, _J), np.float32),
        age=np.empty((count * CANDIDATES, 2), np.float32),
        rest=np.empty((count, _J), np.float32),
        evidence=np.empty((count, _J), np.float32),
        reliability=np.empty((count, _J + 1), np.float32),
        context=np.empty((count, 5), np.float32),
    )


def filled(readings: Readings) -> Readings:
    """Readings without the room that was not needed."""
    end = int(readings.start[-1])
    return readings._replace(
        classes=readings.classes[:end].copy(),
        probability=readings.probability[:end].copy(),
        age=readings.age[:end].copy(),
    )


def read_memory(
    columns: Columns,
    tables: Tables,
    begin: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    folds: np.ndarray | None = None,
    weights: np.ndarray = WEIGHTS,
) -> Readings:
    """Replay histories (h,) and read the experts at positions low .. high - 1 of each, in that order.

    `begin`, `low`, `high` are flat indices: position t knows the events begin .. t. `folds` (h,):
    whose events the global tables leave out, as they must at training positions; None: none.
    """
    readings = new_readings(int((high - low).sum()))
    left_out = np.full(len(begin), -1, np.int64) if folds is None else folds.astype(np.int64)
    longest = int((high - begin).max(initial=1))
    _replay(columns, tables, begin, low, high, left_out, weights, readings, new_past(longest))
    return filled(readings)


@njit(nogil=True, cache=True)
def _replay(columns, tables, begin, low, high, folds, weights, readings, past):  # type: ignore[no-untyped-def]
    place = np.full(len(tables.prior), -1, np.int32)  # of a class among the candidates
    chance = np.empty(_J)
    row = 0
    for h in range(len(begin)):
        clear(past)
        for t in range(begin[h], high[h]):
            observe(past, tables, weights, folds[h], chance, t, columns)
            if t >= low[h]:
                read(past, tables, weights, folds[h], place, readings, row)
                row += 1


@njit(nogil=True, cache=True)
def clear(past):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True, inline="always")
def _take(past, o, at, key):  # type: ignore[no-untyped-def]
    past.key[o, at] = key
    past.total[o, at] = 0
    past.taken[o, past.taken_number[o]] = at
    past.taken_number[o] += 1


@njit(nogil=True, cache=True)
def observe(past, tables, weights, fold, chance, t, columns):  # type: ignore[no-untyped-def]
    """Judge the experts by event t and take it up."""
    known = columns.behavior[t]
    if known >= 0 and past.number[0] > 0:
        _chances(past, tables, weights, fold, known, chance)
        for j in range(_J):
            past.judged[j] = FORGET * past.judged[j] + max(WORST, np.log(chance[j]))
        past.judged[_J] = FORGET * past.judged[_J] + 1
    take_up(past, tables, t, columns)


@njit(nogil=True, cache=True, inline="always")
def take_up(past, tables, t, columns):  # type: ignore[no-untyped-def]
    """Count event t and stand in the contexts that it makes."""
    known = columns.behavior[t]
    number = past.number
    if known >= 0:
        _count(past, known, columns.time[t])
        past.last[1] = past.last[0]
        past.last[0] = known
    number[4] = number[3] if number[0] > (known >= 0) else columns.time[t]
    number[3] = columns.time[t]
    _stand(past, tables, t, columns)


@njit(nogil=True, cache=True)
def _count(past, known, time):  # type: ignore[no-untyped-def]
    """Add a known behavior to the user's counts and to those of the contexts that waited for it."""
    number = past.number
    at = find(past.key[_CLASS], known)
    if past.key[_CLASS, at] == -1:
        _take(past, _CLASS, at, known)
        slot = number[1]
        past.head[_CLASS, at] = slot
        past.slot_class[slot] = known
        past.slot_count[slot] = 0
        past.slot_recent[slot] = 0
        past.slot_event[slot] = number[0]
        past.newest[slot] = slot
        number[1] += 1
    slot = past.head[_CLASS, at]
    age = min(number[0] + 1 - past.slot_event[slot], _FADED - 1)
    past.slot_count[slot] += 1
    for k in range(len(past.recent_total)):
        past.slot_recent[slot, k] = past.slot_recent[slot, k] * past.fading[age, k] + 1
        past.recent_total[k] = past.recent_total[k] * past.fading[1, k] + 1
    number[0] += 1
    past.slot_event[slot] = number[0]
    past.slot_time[slot] = time
    _move_to_front(past.newest, slot)
    for o in range(_O):
        if past.waiting[o] >= 0:
            _follow(past, o, slot)


@njit(nogil=True, cache=True)
def _move_to_front(newest, slot):  # type: ignore[no-untyped-def]
    at = 0
    while newest[at] != slot:
        at += 1
    while at > 0:
        newest[at] = newest[at - 1]
        at -= 1
    newest[0] = slot


@njit(nogil=True, cache=True)
def _follow(past, o, slot):  # type: ignore[no-untyped-def]
    """Count a class, by its slot, behind own context o."""
    at = find(past.key[o], past.waiting[o])
    if past.key[o, at] == -1:
        _take(past, o, at, past.waiting[o])
        past.head[o, at] = -1
    past.total[o, at] += 1
    entry = past.head[o, at]
    while entry >= 0 and past.entry_slot[entry] != slot:
        entry = past.entry_next[entry]
    if entry < 0:
        entry = past.number[2]
        past.number[2] += 1
        past.entry_slot[entry] = slot
        past.entry_count[entry] = 0
        past.entry_next[entry] = past.head[o, at]
        past.head[o, at] = entry
    past.entry_count[entry] += 1


@njit(nogil=True, cache=True)
def _stand(past, tables, t, columns):  # type: ignore[no-untyped-def]
    """The contexts that the behavior after event t will follow."""
    last, before, classes = past.last[0], past.last[1], len(tables.prior)
    slot, weekday, location = columns.slot[t], columns.weekday[t], columns.location[t]
    past.clock[0], past.clock[1] = slot, weekday
    past.waiting[0] = last
    past.waiting[1] = last * classes + before if before >= 0 else -1
    past.waiting[2] = slot // 3
    past.waiting[3] = location if location >= 2 else -1
    past.waiting[4] = weekday * 8 + slot // 6
    rows = past.waiting_row
    global_keys(rows, last, before, columns.event[t], location, slot, weekday, classes, tables.locations[0])
    for g in range(len(rows)):
        if rows[g] >= 0:
            at = find(tables.key, rows[g])
            rows[g] = tables.row[at] if tables.key[at] != -1 else -1


@njit(nogil=True, cache=True)
def _chances(past, tables, weights, fold, known, chance):  # type: ignore[no-untyped-def]
    """Probability (J,) that each expert gives one class."""
    prior = tables.prior[known]
    chance[0] = prior
    for g in range(_G):
        found, total = 0.0, 0.0
        row = past.waiting_row[g]
        if row >= 0:
            total = _events(tables.total, row, fold)
            for entry in range(tables.start[row], tables.start[row + 1]):
                if tables.follower[entry] == known:
                    found = _events(tables.counts, entry, fold)
                    break
        shorter = chance[1] if g == 1 else prior
        chance[1 + g] = _smoothed(found, total, weights[1 + g], shorter)
    at = find(past.key[_CLASS], known)
    slot = past.head[_CLASS, at] if past.key[_CLASS, at] != -1 else -1
    age = min(past.number[0] - past.slot_event[slot], _FADED - 1) if slot >= 0 else 0
    count = past.slot_count[slot] if slot >= 0 else 0.0
    user = _smoothed(count, past.number[0], weights[_USER], prior)
    chance[_USER] = user
    for o in range(_O):
        found, total = _followed(past, o, slot)
        chance[_USER + 1 + o] = _smoothed(found, total, weights[_USER + 1 + o], user)
    for k in range(_T):
        j = _USER + 1 + _O + k
        found = past.slot_recent[slot, k] * past.fading[age, k] if slot >= 0 else 0.0
        chance[j] = _smoothed(found, past.recent_total[k], weights[j], user)
    is_last = 1.0 if past.last[0] == known else 0.0
    chance[_J - 1] = _smoothed(is_last, 1.0 if past.last[0] >= 0 else 0.0, weights[_J - 1], prior)


@njit(nogil=True, cache=True)
def _followed(past, o, slot):  # type: ignore[no-untyped-def]
    """How often a class, by its slot, followed the own context o that waits, and how often any did."""
    if past.waiting[o] < 0:
        return 0.0, 0.0
    at = find(past.key[o], past.waiting[o])
    if past.key[o, at] == -1:
        return 0.0, 0.0
    entry = past.head[o, at]
    while entry >= 0 and past.entry_slot[entry] != slot:
        entry = past.entry_next[entry]
    return past.entry_count[entry] if entry >= 0 else 0.0, past.total[o, at]


@njit(nogil=True, cache=True)
def _smoothed(count, total, weight, shorter):  # type: ignore[no-untyped-def]
    return (count + weight * shorter) / (total + weight)


@njit(nogil=True, cache=True)
def _events(counts, row, fold):  # type: ignore[no-untyped-def]
    """Events of a row without those of a fold (-1: all)."""
    every = np.float64(counts[row, counts.shape[1] - 1])
    return every if fold < 0 else every - counts[row, fold]


@njit(nogil=True, cache=True)
def read(past, tables, weights, fold, place, readings, row):  # type: ignore[no-untyped-def]
    """Write what the experts say of the next behavior into row `row`; `place` (K,) is -1 and is left so."""
    begin = readings.start[row]
    classes = readings.classes[begin : begin + CANDIDATES]
    number = _candidates(past, tables, fold, place, classes)
    followed = np.zeros((_G + _O, number), np.float32)
    total = np.zeros(_G + _O)
    _gather(past, tables, fold, place, followed, total)
    _evidence(past, weights, total, readings, row)
    readings.start[row + 1] = begin + number
    probability, age = readings.probability[begin : begin + number], readings.age[begin : begin + number]
    for d in range(number):
        known = classes[d]
        place[known] = -1
        prior = np.float64(tables.prior[known])
        out = probability[d]
        out[0] = prior
        for g in range(_G):
            shorter = np.float64(out[1]) if g == 1 else prior
            out[1 + g] = _smoothed(followed[g, d], total[g], weights[1 + g], shorter)
        at = find(past.key[_CLASS], known)
        slot = past.head[_CLASS, at] if past.key[_CLASS, at] != -1 else -1
        count = past.slot_count[slot] if slot >= 0 else 0.0
        user = _smoothed(count, past.number[0], weights[_USER], prior)
        out[_USER] = user
        for o in range(_O):
            j = _USER + 1 + o
            out[j] = _smoothed(followed[_G + o, d], total[_G + o], weights[j], user)
        since = 0
        age[d] = -1
        if slot >= 0:
            since = past.number[0] - past.slot_event[slot]
            age[d, 0], age[d, 1] = since, past.number[3] - past.slot_time[slot]
        for k in range(_T):
            j = _USER + 1 + _O + k
            recent = past.slot_recent[slot, k] * past.fading[min(since, _FADED - 1), k] if slot >= 0 else 0.0
            out[j] = _smoothed(recent, past.recent_total[k], weights[j], user)
        is_last = 1.0 if past.last[0] == known else 0.0
        out[_J - 1] = _smoothed(is_last, 1.0 if past.last[0] >= 0 else 0.0, weights[_J - 1], prior)


@njit(nogil=True, cache=True)
def _candidates(past, tables, fold, place, classes):  # type: ignore[no-untyped-def]
    """The user's most recent classes, then the most frequent followers of each global context; returns how many.

    Followers are ranked without the fold: one that only the fold's users showed would give the target away.
    """
    best = np.empty(GLOBAL_CANDIDATES, np.int64)
    events = np.empty(GLOBAL_CANDIDATES)
    number = min(past.number[1], OWN_CANDIDATES)
    for d in range(number):
        classes[d] = past.slot_class[past.newest[d]]
        place[classes[d]] = d
    for g in range(_G):
        row = past.waiting_row[g]
        if row < 0:
            continue
        for i in range(_most_frequent(tables, row, fold, best, events)):
            known = tables.follower[best[i]]
            if place[known] < 0 and number < CANDIDATES:
                classes[number] = known
                place[known] = number
                number += 1
    return number


@njit(nogil=True, cache=True)
def _most_frequent(tables, row, fold, best, events):  # type: ignore[no-untyped-def]
    """Entries of the followers of a row with the most events without a fold, into `best`; returns how many."""
    number, most = 0, len(best)
    for entry in range(tables.start[row], tables.start[row + 1]):
        if number == most and tables.counts[entry, tables.counts.shape[1] - 1] < events[most - 1]:
            break  # the rest have no more even with the fold
        found = _events(tables.counts, entry, fold)
        if found <= 0:
            continue
        at = number
        while at > 0 and _is_ahead(tables, entry, found, best[at - 1], events[at - 1]):
            at -= 1
        if at == most:
            continue
        number = min(number + 1, most)
        for i in range(number - 1, at, -1):
            best[i], events[i] = best[i - 1], events[i - 1]
        best[at], events[at] = entry, found
    return number


@njit(nogil=True, cache=True)
def _is_ahead(tables, entry, found, other, most):  # type: ignore[no-untyped-def]
    """Whether a follower comes before another: by events, then by frequency, for their order may know the fold."""
    if found != most:
        return found > most
    return tables.prior[tables.follower[entry]] > tables.prior[tables.follower[other]]


@njit(nogil=True, cache=True)
def _gather(past, tables, fold, place, followed, total):  # type: ignore[no-untyped-def]
    """Counts (G + O, D) of the candidates in the global and own contexts, and the contexts' events (G + O,)."""
    for g in range(_G):
        row = past.waiting_row[g]
        if row < 0:
            continue
        total[g] = _events(tables.total, row, fold)
        for entry in range(tables.start[row], tables.start[row + 1]):
            at = place[tables.follower[entry]]
            if at >= 0:
                followed[g, at] = _events(tables.counts, entry, fold)
    for o in range(_O):
        if past.waiting[o] < 0:
            continue
        context = find(past.key[o], past.waiting[o])
        if past.key[o, context] == -1:
            continue
        total[_G + o] = past.total[o, context]
        entry = past.head[o, context]
        while entry >= 0:
            at = place[past.slot_class[past.entry_slot[entry]]]
            if at >= 0:
                followed[_G + o, at] = past.entry_count[entry]
            entry = past.entry_next[entry]


@njit(nogil=True, cache=True)
def _evidence(past, weights, total, readings, row):  # type: ignore[no-untyped-def]
    """What depends on no candidate: evidence, the rest that is left, reliability, the moment."""
    evidence, rest = readings.evidence[row], readings.rest[row]
    evidence[0] = 0
    for i in range(_G):
        evidence[1 + i] = total[i]
    evidence[_USER] = past.number[0]
    for i in range(_O):
        evidence[_USER + 1 + i] = total[_G + i]
    for i in range(_T):
        evidence[_USER + 1 + _O + i] = past.recent_total[i]
    evidence[_J - 1] = 1 if past.last[0] >= 0 else 0
    for j in range(_J):
        shorter = rest[1] if j == 2 else (rest[_USER] if _USER < j < _J - 1 else 1.0)
        rest[j] = shorter * (weights[j] / (evidence[j] + weights[j]) if j > 0 else 1.0)
    judged = readings.reliability[row]
    for j in range(_J):
        judged[j] = past.judged[j] / max(past.judged[_J], 1.0)
    judged[_J] = past.judged[_J]
    context = readings.context[row]
    context[0], context[1] = past.number[0], past.number[1]
    context[2], context[3] = past.clock[0], past.clock[1]
    context[4] = past.number[3] - past.number[4]
