"""Taking up one event: judge the experts by it, then count it in the user's past.

Shapes as in `memory_past.py`.
"""

from __future__ import annotations

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_keys import GLOBAL, Preceding, find, global_keys
from behavegpt.data.memory_past import (
    CLASS_ROW,
    CLASSES,
    DECAYS,
    ENTRIES,
    EVENT,
    EXPERTS,
    FADED,
    FORGET,
    KNOWN,
    LATEST,
    OWN,
    PLACE,
    PREVIOUS,
    SLOT,
    TICK,
    USER,
    WEEKDAY,
    WORST,
    Past,
)
from behavegpt.data.memory_tables import Tables

_G, _O, _T, _J = len(GLOBAL), len(OWN), len(DECAYS), len(EXPERTS)


@inner
def observe(
    past: Past,
    tables: Tables,
    weights: np.ndarray,
    fold: int,
    chance: np.ndarray,
    t: int,
    columns: Columns,
) -> None:
    """Judge the experts by event t, without the counts of a fold (-1: with all), and take it up.

    `chance` (J,) is room for their probabilities.
    """
    judge(past, tables, weights, fold, chance, columns.behavior[t])
    take_up(past, tables, t, columns)


@inner
def judge(
    past: Past, tables: Tables, weights: np.ndarray, fold: int, chance: np.ndarray, known: int
) -> None:
    """Judge the experts by a behavior that came, -1 where it is not known."""
    # before the first known behavior there is nothing that an expert could have said
    if known >= 0 and past.number[KNOWN] > 0:
        _chances(past, tables, weights, fold, known, chance)
        for j in range(_J):
            past.judged[j] = FORGET * past.judged[j] + max(WORST, np.log(chance[j]))
        # of ones: early judgements are means of few events, and must not look weak for it
        past.judged[_J] = FORGET * past.judged[_J] + 1


@inner
def take_up_basket(past: Past, tables: Tables, low: int, high: int, columns: Columns) -> None:
    """Count events low .. high - 1, a set at one moment, and stand in the contexts that it makes:
    what is in it follows what was before it, not another part of it, and ages are baskets."""
    number = past.number
    # of the user's first basket nothing came before
    is_first = number[KNOWN] == 0 and number[TICK] == 0

    number[TICK] += 1
    # one tick of age for the whole basket
    for k in range(len(past.recent_total)):
        past.recent_total[k] *= past.fading[1, k]

    for t in range(low, high):
        known = columns.behavior[t]
        if known >= 0:
            slot = _slot_for(past, known)
            age = min(number[TICK] - past.slot_event[slot], FADED - 1)
            for k in range(len(past.recent_total)):
                past.slot_recent[slot, k] = past.slot_recent[slot, k] * past.fading[age, k] + 1
                past.recent_total[k] += 1
            number[KNOWN] += 1
            past.slot_event[slot] = number[TICK]
            _note(past, slot, columns.time[t])
            past.last[1] = past.last[0]
            past.last[0] = known

    number[PREVIOUS] = columns.time[low] if is_first else number[LATEST]
    _stand_at(past, tables, high - 1, columns)


@inner
def take_up(past: Past, tables: Tables, t: int, columns: Columns) -> None:
    """Count event t and stand in the contexts that it makes."""
    known = columns.behavior[t]
    number = past.number

    if known >= 0:
        _count(past, known, columns.time[t])
        past.last[1] = past.last[0]
        past.last[0] = known

    # the time of the event before; of the first event, its own
    number[PREVIOUS] = number[LATEST] if number[KNOWN] > (known >= 0) else columns.time[t]
    _stand_at(past, tables, t, columns)


@inner
def _stand_at(past: Past, tables: Tables, t: int, columns: Columns) -> None:
    """Note the moment of event t, and the contexts that it makes."""
    past.number[LATEST] = columns.time[t]

    clock = past.clock
    clock[SLOT], clock[WEEKDAY] = columns.slot[t], columns.weekday[t]
    clock[EVENT], clock[PLACE] = columns.event[t], columns.location[t]

    _stand(past, tables)


@inner
def ask(past: Past, tables: Tables, slot: int, weekday: int, location: int) -> None:
    """Stand in the contexts of an event to come, of which the time or the place is given (-1: not
    given)."""
    if slot >= 0:
        past.clock[SLOT], past.clock[WEEKDAY] = slot, weekday
    if location >= 0:
        past.clock[PLACE] = location

    if past.waiting[_O - 1] >= 0:  # nothing is counted behind what was before the first event
        _stand(past, tables)


@inner
def take(past: Past, o: int, at: int, key: int) -> None:
    """Put a key at a free place of hash table o."""
    past.key[o, at] = key
    past.total[o, at] = 0
    past.taken[o, past.taken_number[o]] = at
    past.taken_number[o] += 1


@inner
def _count(past: Past, known: int, time: int) -> None:
    """Add a known behavior to the user's counts and to those of the contexts that waited for it."""
    number = past.number
    slot = _slot_for(past, known)

    # a class's decayed counts are those of its last event: they fade when it comes again, not with
    # every event of another class
    age = min(number[KNOWN] + 1 - past.slot_event[slot], FADED - 1)
    for k in range(len(past.recent_total)):
        past.slot_recent[slot, k] = past.slot_recent[slot, k] * past.fading[age, k] + 1
        past.recent_total[k] = past.recent_total[k] * past.fading[1, k] + 1

    number[KNOWN] += 1
    past.slot_event[slot] = number[KNOWN]
    _note(past, slot, time)


@inner
def _slot_for(past: Past, known: int) -> int:
    """The slot of a known behavior that came once more, a new one for the user's first."""
    number = past.number
    place = find(past.key[CLASS_ROW], known)

    if past.key[CLASS_ROW, place] == -1:  # the user's first event of this class: a new slot
        take(past, CLASS_ROW, place, known)
        slot = number[CLASSES]
        past.head[CLASS_ROW, place] = slot
        past.slot_class[slot] = known
        past.slot_count[slot] = 0
        past.slot_recent[slot] = 0
        past.slot_event[slot] = number[KNOWN]
        past.newest[slot] = slot
        number[CLASSES] += 1

    slot = past.head[CLASS_ROW, place]
    past.slot_count[slot] += 1
    return int(slot)


@inner
def _note(past: Past, slot: int, time: int) -> None:
    """Note that a class came, by its slot, also behind the contexts that waited for it."""
    past.slot_time[slot] = time
    _move_to_front(past.newest, slot)

    for o in range(_O):
        if past.waiting[o] >= 0:
            _follow(past, o, slot)


@inner
def _move_to_front(newest: np.ndarray, slot: int) -> None:
    # as many steps as other classes came since: few, most of the time
    index = 0
    while newest[index] != slot:
        index += 1

    while index > 0:
        newest[index] = newest[index - 1]
        index -= 1
    newest[0] = slot


@inner
def _follow(past: Past, o: int, slot: int) -> None:
    """Count a class, by its slot, behind own context o."""
    place = find(past.key[o], past.waiting[o])
    if past.key[o, place] == -1:
        take(past, o, place, past.waiting[o])
        past.head[o, place] = -1
    past.total[o, place] += 1

    # a list, not a table: few classes follow one context of one user
    entry = past.head[o, place]
    while entry >= 0 and past.entry_slot[entry] != slot:
        entry = past.entry_next[entry]

    if entry < 0:  # the class never followed this context: a new entry at the head of its list
        entry = past.number[ENTRIES]
        past.number[ENTRIES] += 1
        past.entry_slot[entry] = slot
        past.entry_count[entry] = 0
        past.entry_next[entry] = past.head[o, place]
        past.head[o, place] = entry

    past.entry_count[entry] += 1


@inner
def _stand(past: Past, tables: Tables) -> None:
    """Note the contexts, own and global, that the behavior after the last event will follow."""
    clock, classes = past.clock, len(tables.prior)
    at = Preceding(
        past.last[0], past.last[1], clock[EVENT], clock[PLACE], clock[SLOT], clock[WEEKDAY]
    )

    # own contexts, in the order of OWN; those of an unknown behavior or place do not exist
    past.waiting[0] = at.last
    past.waiting[1] = at.last * classes + at.before if at.before >= 0 else -1
    past.waiting[2] = at.slot // 3  # parts of the day of 1.5 hours
    past.waiting[3] = at.location if at.location >= 2 else -1
    past.waiting[4] = at.weekday * 8 + at.slot // 6  # of 3 hours, by weekday

    # global contexts: keys first, then their rows in the tables, -1 where training never saw one
    rows = past.waiting_row
    global_keys(rows, at, classes, tables.locations[0])
    for g in range(len(rows)):
        if rows[g] >= 0:
            place = find(tables.key, rows[g])
            rows[g] = tables.row[place] if tables.key[place] != -1 else -1


@inner
def ticks(past: Past) -> np.int64:
    """What ages are counted in: known events so far, or baskets."""
    return past.number[TICK] if len(past.number) > TICK else past.number[KNOWN]


@inner
def _chances(
    past: Past, tables: Tables, weights: np.ndarray, fold: int, known: int, chance: np.ndarray
) -> None:
    """Probability (J,) that each expert gives one class: the equation of `memory.py`."""
    prior = tables.prior[known]
    chance[0] = prior

    for g in range(_G):
        count, total = 0.0, 0.0
        row = past.waiting_row[g]
        if row >= 0:
            total = events_of(tables.total, row, fold)
            for entry in range(tables.start[row], tables.start[row + 1]):
                if tables.follower[entry] == known:
                    count = events_of(tables.counts, entry, fold)
                    break
        shorter = chance[1] if g == 1 else prior  # two behaviors fall back on the last one
        chance[1 + g] = smoothed(count, total, weights[1 + g], shorter)

    place = find(past.key[CLASS_ROW], known)
    slot = past.head[CLASS_ROW, place] if past.key[CLASS_ROW, place] != -1 else -1
    count = past.slot_count[slot] if slot >= 0 else 0.0
    user = smoothed(count, past.number[KNOWN], weights[USER], prior)
    chance[USER] = user

    for o in range(_O):
        count, total = _followed(past, o, slot)
        chance[USER + 1 + o] = smoothed(count, total, weights[USER + 1 + o], user)

    # a class that never came has no age, and no count to fade
    age = min(ticks(past) - past.slot_event[slot], FADED - 1) if slot >= 0 else 0
    for k in range(_T):
        j = USER + 1 + _O + k
        count = past.slot_recent[slot, k] * past.fading[age, k] if slot >= 0 else 0.0
        chance[j] = smoothed(count, past.recent_total[k], weights[j], user)

    is_last = 1.0 if past.last[0] == known else 0.0
    chance[_J - 1] = smoothed(is_last, 1.0 if past.last[0] >= 0 else 0.0, weights[_J - 1], prior)


@inner
def _followed(past: Past, o: int, slot: int) -> tuple[float, float]:
    """How often a class, by its slot, followed the own context o that waits, and how often any
    did."""
    if past.waiting[o] < 0:
        return 0.0, 0.0
    place = find(past.key[o], past.waiting[o])
    if past.key[o, place] == -1:
        return 0.0, 0.0

    entry = past.head[o, place]
    while entry >= 0 and past.entry_slot[entry] != slot:
        entry = past.entry_next[entry]
    return past.entry_count[entry] if entry >= 0 else 0.0, past.total[o, place]


@inner
def smoothed(count: float, total: float, weight: float, shorter: float) -> float:
    """(n(b,c) + w P(b|shorter)) / (n(c) + w)."""
    return (count + weight * shorter) / (total + weight)


@inner
def events_of(counts: np.ndarray, row: int, fold: int) -> np.float64:
    """Events of a row without those of a fold (-1: all)."""
    every = np.float64(counts[row, counts.shape[1] - 1])
    # the fold of the position's own user: what it is asked for is counted in there
    return every if fold < 0 else every - counts[row, fold]
