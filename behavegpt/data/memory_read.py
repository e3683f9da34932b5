"""What the experts say of the next behavior of a user: their probabilities at a few candidates.

Shapes: N positions that are read, M candidate classes of all of them, D of one, J experts; G global
contexts, O own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_observe import events_of
from behavegpt.data.memory_past import CLASS_ROW, DECAYS, EXPERTS, FADED, OWN, USER
from behavegpt.data.memory_tables import GLOBAL, find

CANDIDATES = 64
OWN_CANDIDATES = 48  # the most recent behaviors of the user
GLOBAL_CANDIDATES = 5  # the most frequent ones of each global context

_G, _O, _T, _J = len(GLOBAL), len(OWN), len(DECAYS), len(EXPERTS)
_RECENT = USER + 1 + _O  # the first decayed count


class Readings(NamedTuple):
    """What the experts say at N positions."""

    start: np.ndarray  # (N + 1,) int64: position n has the candidates start[n] .. start[n + 1] - 1
    classes: np.ndarray  # (M,) int32 candidate classes, each once a position
    probability: np.ndarray  # (M, J) float32 of the candidates
    # (M, 2) float32 known events and seconds since the class last occurred, -1 for never
    age: np.ndarray
    # (N, J) float32: an expert gives any other class b the probability rest * prior(b)
    rest: np.ndarray
    evidence: np.ndarray  # (N, J) float32 events behind each expert
    # (N, J + 1) float32 mean log-probability of what came so far; last: events that judge, <= 12.5
    reliability: np.ndarray
    # (N, 5) float32: known events, classes, half hour, weekday, seconds since the event before
    context: np.ndarray


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


@inner
def read(past, tables, weights, fold, place, readings, row):  # type: ignore[no-untyped-def]
    """Write what the experts say of the next behavior into row `row`; `place` (K,) is -1 and is
    left so."""
    begin = readings.start[row]
    classes = readings.classes[begin : begin + CANDIDATES]
    number = _candidates(past, tables, fold, place, classes)
    followed = np.zeros((number, _G + _O), np.float32)
    share = np.empty((2, _J), np.float32)  # of a count, and of the shorter context
    _gather(past, tables, fold, place, followed, share[0])
    _evidence(past, weights, share, readings, row)
    readings.start[row + 1] = begin + number
    of_count, of_shorter = share[0], share[1]
    own = min(past.number[1], OWN_CANDIDATES)
    for d in range(number):
        known = classes[d]
        place[known] = -1
        slot = past.newest[d] if d < own else _slot_of(past, known)
        prior = tables.prior[known]
        count = followed[d]
        out, age = readings.probability[begin + d], readings.age[begin + d]
        out[0] = prior
        for g in range(_G):
            out[1 + g] = of_count[1 + g] * count[g] + of_shorter[1 + g] * prior
        out[2] += of_shorter[2] * (out[1] - prior)
        out[_J - 1] = of_count[_J - 1] * (past.last[0] == known) + of_shorter[_J - 1] * prior
        user = of_shorter[USER] * prior
        if slot >= 0:
            user += of_count[USER] * np.float32(past.slot_count[slot])
        out[USER] = user
        for o in range(_O):
            out[USER + 1 + o] = (
                of_count[USER + 1 + o] * count[_G + o] + of_shorter[USER + 1 + o] * user
            )
        for j in range(_RECENT, _RECENT + _T):
            out[j] = of_shorter[j] * user
        age[0] = age[1] = -1
        if slot >= 0:
            since = past.number[0] - past.slot_event[slot]
            age[0], age[1] = since, past.number[3] - past.slot_time[slot]
            for k in range(_T):
                recent = past.slot_recent[slot, k] * past.fading[min(since, FADED - 1), k]
                out[_RECENT + k] += of_count[_RECENT + k] * np.float32(recent)


@inner
def _slot_of(past, known):  # type: ignore[no-untyped-def]
    """Where a class stands in a user's past; -1 if it never came. All of few classes are candidates
    already."""
    if past.number[1] <= OWN_CANDIDATES:
        return np.int64(-1)
    at = find(past.key[CLASS_ROW], known)
    return np.int64(past.head[CLASS_ROW, at]) if past.key[CLASS_ROW, at] != -1 else np.int64(-1)


@inner
def _candidates(past, tables, fold, place, classes):  # type: ignore[no-untyped-def]
    """The user's most recent classes, then the most frequent followers of each global context;
    returns how many.

    Followers are ranked without the fold: one that only the fold's users showed would give the
    target away.
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


@inner
def _most_frequent(tables, row, fold, best, events):  # type: ignore[no-untyped-def]
    """Entries of the followers of a row with the most events without a fold, into `best`; returns
    how many."""
    number, most = 0, len(best)
    for entry in range(tables.start[row], tables.start[row + 1]):
        if number == most and tables.counts[entry, tables.counts.shape[1] - 1] < events[most - 1]:
            break  # the rest have no more even with the fold
        found = events_of(tables.counts, entry, fold)
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


@inner
def _is_ahead(tables, entry, found, other, most):  # type: ignore[no-untyped-def]
    """Whether a follower comes before another: by events, then by frequency, for their order may
    know the fold."""
    if found != most:
        return found > most
    return tables.prior[tables.follower[entry]] > tables.prior[tables.follower[other]]


@inner
def _gather(past, tables, fold, place, followed, total):  # type: ignore[no-untyped-def]
    """Counts (D, G + O) of the candidates in the global and own contexts; the contexts' events into
    total (J,)."""
    total[:] = 0
    for g in range(_G):
        row = past.waiting_row[g]
        if row < 0:
            continue
        total[1 + g] = events_of(tables.total, row, fold)
        for entry in range(tables.start[row], tables.start[row + 1]):
            at = place[tables.follower[entry]]
            if at >= 0:
                followed[at, g] = events_of(tables.counts, entry, fold)
    for o in range(_O):
        if past.waiting[o] < 0:
            continue
        context = find(past.key[o], past.waiting[o])
        if past.key[o, context] == -1:
            continue
        total[USER + 1 + o] = past.total[o, context]
        entry = past.head[o, context]
        while entry >= 0:
            at = place[past.slot_class[past.entry_slot[entry]]]
            if at >= 0:
                followed[at, _G + o] = past.entry_count[entry]
            entry = past.entry_next[entry]


@inner
def _evidence(past, weights, share, readings, row):  # type: ignore[no-untyped-def]
    """What depends on no candidate: evidence, the rest that is left, reliability, the moment.

    `share` (2, J) holds the events of the global and own contexts, and becomes 1 / (n + w) and w /
    (n + w).
    """
    evidence, rest = readings.evidence[row], readings.rest[row]
    total, left = share[0], share[1]
    total[USER] = past.number[0]
    for i in range(_T):
        total[_RECENT + i] = past.recent_total[i]
    total[_J - 1] = 1 if past.last[0] >= 0 else 0
    for j in range(_J):
        evidence[j] = total[j]
        left[j] = weights[j] / (total[j] + weights[j]) if j > 0 else 1.0
        total[j] = 1 / (total[j] + weights[j]) if j > 0 else 0.0
        shorter = rest[1] if j == 2 else (rest[USER] if USER < j < _J - 1 else np.float32(1.0))
        rest[j] = shorter * left[j]
    judged = readings.reliability[row]
    for j in range(_J):
        judged[j] = past.judged[j] / max(past.judged[_J], 1.0)
    judged[_J] = past.judged[_J]
    context = readings.context[row]
    context[0], context[1] = past.number[0], past.number[1]
    context[2], context[3] = past.clock[0], past.clock[1]
    context[4] = past.number[3] - past.number[4]
