"""What the experts say of the next behavior of a user: their probabilities at a few candidates.

Shapes: N positions that are read, M candidate classes of all of them, D of one, J experts; G global contexts, O own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_observe import events_of, smoothed
from behavegpt.data.memory_past import CLASS_ROW, DECAYS, EXPERTS, FADED, OWN, USER
from behavegpt.data.memory_tables import GLOBAL, find

CANDIDATES = 64
OWN_CANDIDATES = 48  # the most recent behaviors of the user
GLOBAL_CANDIDATES = 5  # the most frequent ones of each global context

_G, _O, _T, _J = len(GLOBAL), len(OWN), len(DECAYS), len(EXPERTS)


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
            out[1 + g] = smoothed(followed[g, d], total[g], weights[1 + g], shorter)
        at = find(past.key[CLASS_ROW], known)
        slot = past.head[CLASS_ROW, at] if past.key[CLASS_ROW, at] != -1 else -1
        count = past.slot_count[slot] if slot >= 0 else 0.0
        user = smoothed(count, past.number[0], weights[USER], prior)
        out[USER] = user
        for o in range(_O):
            j = USER + 1 + o
            out[j] = smoothed(followed[_G + o, d], total[_G + o], weights[j], user)
        since = 0
        age[d] = -1
        if slot >= 0:
            since = past.number[0] - past.slot_event[slot]
            age[d, 0], age[d, 1] = since, past.number[3] - past.slot_time[slot]
        for k in range(_T):
            j = USER + 1 + _O + k
            recent = past.slot_recent[slot, k] * past.fading[min(since, FADED - 1), k] if slot >= 0 else 0.0
            out[j] = smoothed(recent, past.recent_total[k], weights[j], user)
        is_last = 1.0 if past.last[0] == known else 0.0
        out[_J - 1] = smoothed(is_last, 1.0 if past.last[0] >= 0 else 0.0, weights[_J - 1], prior)


@inner
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


@inner
def _most_frequent(tables, row, fold, best, events):  # type: ignore[no-untyped-def]
    """Entries of the followers of a row with the most events without a fold, into `best`; returns how many."""
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
    """Whether a follower comes before another: by events, then by frequency, for their order may know the fold."""
    if found != most:
        return found > most
    return tables.prior[tables.follower[entry]] > tables.prior[tables.follower[other]]


@inner
def _gather(past, tables, fold, place, followed, total):  # type: ignore[no-untyped-def]
    """Counts (G + O, D) of the candidates in the global and own contexts, and the contexts' events (G + O,)."""
    for g in range(_G):
        row = past.waiting_row[g]
        if row < 0:
            continue
        total[g] = events_of(tables.total, row, fold)
        for entry in range(tables.start[row], tables.start[row + 1]):
            at = place[tables.follower[entry]]
            if at >= 0:
                followed[g, at] = events_of(tables.counts, entry, fold)
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


@inner
def _evidence(past, weights, total, readings, row):  # type: ignore[no-untyped-def]
    """What depends on no candidate: evidence, the rest that is left, reliability, the moment."""
    evidence, rest = readings.evidence[row], readings.rest[row]
    evidence[0] = 0
    for i in range(_G):
        evidence[1 + i] = total[i]
    evidence[USER] = past.number[0]
    for i in range(_O):
        evidence[USER + 1 + i] = total[_G + i]
    for i in range(_T):
        evidence[USER + 1 + _O + i] = past.recent_total[i]
    evidence[_J - 1] = 1 if past.last[0] >= 0 else 0
    for j in range(_J):
        shorter = rest[1] if j == 2 else (rest[USER] if USER < j < _J - 1 else 1.0)
        rest[j] = shorter * (weights[j] / (evidence[j] + weights[j]) if j > 0 else 1.0)
    judged = readings.reliability[row]
    for j in range(_J):
        judged[j] = past.judged[j] / max(past.judged[_J], 1.0)
    judged[_J] = past.judged[_J]
    context = readings.context[row]
    context[0], context[1] = past.number[0], past.number[1]
    context[2], context[3] = past.clock[0], past.clock[1]
    context[4] = past.number[3] - past.number[4]
