"""One event more: the experts are judged by what came, then the event is counted in a user's past.

Shapes as in `memory_past.py`.
"""

from __future__ import annotations

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_past import CLASS_ROW, DECAYS, EXPERTS, FADED, FORGET, OWN, USER, WORST
from behavegpt.data.memory_tables import GLOBAL, find, global_keys

_G, _O, _T, _J = len(GLOBAL), len(OWN), len(DECAYS), len(EXPERTS)


@inner
def observe(past, tables, weights, fold, chance, t, columns):  # type: ignore[no-untyped-def]
    """Judge the experts by event t and take it up."""
    known = columns.behavior[t]
    if known >= 0 and past.number[0] > 0:
        _chances(past, tables, weights, fold, known, chance)
        for j in range(_J):
            past.judged[j] = FORGET * past.judged[j] + max(WORST, np.log(chance[j]))
        past.judged[_J] = FORGET * past.judged[_J] + 1
    take_up(past, tables, t, columns)


@inner
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
    clock = past.clock
    clock[0], clock[1] = columns.slot[t], columns.weekday[t]
    clock[2], clock[3] = columns.event[t], columns.location[t]
    _stand(past, tables)


@inner
def ask(past, tables, slot, weekday, location):  # type: ignore[no-untyped-def]
    """Stand in the contexts of an event to come, of which the time or the place is given (-1: not
    given)."""
    if slot >= 0:
        past.clock[0], past.clock[1] = slot, weekday
    if location >= 0:
        past.clock[3] = location
    if past.waiting[_O - 1] >= 0:  # nothing is counted behind what was before the first event
        _stand(past, tables)


@inner
def take(past, o, at, key):  # type: ignore[no-untyped-def]
    """Put a key at a free place of hash table o."""
    past.key[o, at] = key
    past.total[o, at] = 0
    past.taken[o, past.taken_number[o]] = at
    past.taken_number[o] += 1


@inner
def _count(past, known, time):  # type: ignore[no-untyped-def]
    """Add a known behavior to the user's counts and to those of the contexts that waited for it."""
    number = past.number
    at = find(past.key[CLASS_ROW], known)
    if past.key[CLASS_ROW, at] == -1:
        take(past, CLASS_ROW, at, known)
        slot = number[1]
        past.head[CLASS_ROW, at] = slot
        past.slot_class[slot] = known
        past.slot_count[slot] = 0
        past.slot_recent[slot] = 0
        past.slot_event[slot] = number[0]
        past.newest[slot] = slot
        number[1] += 1
    slot = past.head[CLASS_ROW, at]
    age = min(number[0] + 1 - past.slot_event[slot], FADED - 1)
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


@inner
def _move_to_front(newest, slot):  # type: ignore[no-untyped-def]
    at = 0
    while newest[at] != slot:
        at += 1
    while at > 0:
        newest[at] = newest[at - 1]
        at -= 1
    newest[0] = slot


@inner
def _follow(past, o, slot):  # type: ignore[no-untyped-def]
    """Count a class, by its slot, behind own context o."""
    at = find(past.key[o], past.waiting[o])
    if past.key[o, at] == -1:
        take(past, o, at, past.waiting[o])
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


@inner
def _stand(past, tables):  # type: ignore[no-untyped-def]
    """The contexts that the behavior after the last event will follow."""
    last, before, classes = past.last[0], past.last[1], len(tables.prior)
    slot, weekday, event, location = past.clock[0], past.clock[1], past.clock[2], past.clock[3]
    past.waiting[0] = last
    past.waiting[1] = last * classes + before if before >= 0 else -1
    past.waiting[2] = slot // 3
    past.waiting[3] = location if location >= 2 else -1
    past.waiting[4] = weekday * 8 + slot // 6
    rows = past.waiting_row
    global_keys(rows, last, before, event, location, slot, weekday, classes, tables.locations[0])
    for g in range(len(rows)):
        if rows[g] >= 0:
            at = find(tables.key, rows[g])
            rows[g] = tables.row[at] if tables.key[at] != -1 else -1


@inner
def _chances(past, tables, weights, fold, known, chance):  # type: ignore[no-untyped-def]
    """Probability (J,) that each expert gives one class."""
    prior = tables.prior[known]
    chance[0] = prior
    for g in range(_G):
        found, total = 0.0, 0.0
        row = past.waiting_row[g]
        if row >= 0:
            total = events_of(tables.total, row, fold)
            for entry in range(tables.start[row], tables.start[row + 1]):
                if tables.follower[entry] == known:
                    found = events_of(tables.counts, entry, fold)
                    break
        shorter = chance[1] if g == 1 else prior
        chance[1 + g] = smoothed(found, total, weights[1 + g], shorter)
    at = find(past.key[CLASS_ROW], known)
    slot = past.head[CLASS_ROW, at] if past.key[CLASS_ROW, at] != -1 else -1
    age = min(past.number[0] - past.slot_event[slot], FADED - 1) if slot >= 0 else 0
    count = past.slot_count[slot] if slot >= 0 else 0.0
    user = smoothed(count, past.number[0], weights[USER], prior)
    chance[USER] = user
    for o in range(_O):
        found, total = _followed(past, o, slot)
        chance[USER + 1 + o] = smoothed(found, total, weights[USER + 1 + o], user)
    for k in range(_T):
        j = USER + 1 + _O + k
        found = past.slot_recent[slot, k] * past.fading[age, k] if slot >= 0 else 0.0
        chance[j] = smoothed(found, past.recent_total[k], weights[j], user)
    is_last = 1.0 if past.last[0] == known else 0.0
    chance[_J - 1] = smoothed(is_last, 1.0 if past.last[0] >= 0 else 0.0, weights[_J - 1], prior)


@inner
def _followed(past, o, slot):  # type: ignore[no-untyped-def]
    """How often a class, by its slot, followed the own context o that waits, and how often any
    did."""
    if past.waiting[o] < 0:
        return 0.0, 0.0
    at = find(past.key[o], past.waiting[o])
    if past.key[o, at] == -1:
        return 0.0, 0.0
    entry = past.head[o, at]
    while entry >= 0 and past.entry_slot[entry] != slot:
        entry = past.entry_next[entry]
    return past.entry_count[entry] if entry >= 0 else 0.0, past.total[o, at]


@inner
def smoothed(count, total, weight, shorter):  # type: ignore[no-untyped-def]
    return (count + weight * shorter) / (total + weight)


@inner
def events_of(counts, row, fold):  # type: ignore[no-untyped-def]
    """Events of a row without those of a fold (-1: all)."""
    every = np.float64(counts[row, counts.shape[1] - 1])
    return every if fold < 0 else every - counts[row, fold]
