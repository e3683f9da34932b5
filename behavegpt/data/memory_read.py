"""What the experts say of the next behavior of a user: their probabilities at a few candidates.

Shapes: N positions that are read, M candidate classes of all of them, D of one, J experts; G global
contexts, O own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_candidates import CANDIDATES, OWN_CANDIDATES, candidates, slot_of
from behavegpt.data.memory_keys import GLOBAL, find
from behavegpt.data.memory_observe import events_of, ticks
from behavegpt.data.memory_past import (
    CLASSES,
    DECAYS,
    EXPERTS,
    FADED,
    KNOWN,
    LATEST,
    OWN,
    PREVIOUS,
    SLOT,
    USER,
    WEEKDAY,
    Past,
)
from behavegpt.data.memory_tables import Tables

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
def read(
    past: Past,
    tables: Tables,
    weights: np.ndarray,
    fold: int,
    place: np.ndarray,
    readings: Readings,
    row: int,
) -> None:
    """Write what the experts say of the next behavior into row `row`; `place` (K,) is -1 and is
    left so."""
    begin = readings.start[row]
    classes = readings.classes[begin : begin + CANDIDATES]
    number = candidates(past, tables, fold, place, classes)
    readings.start[row + 1] = begin + number

    # what a candidate's probability is made of, with n(c) + w divided once for all candidates:
    # of_count * n(b,c) + of_shorter * P(b|shorter)
    counts = np.zeros((number, _G + _O), np.float32)
    share = np.empty((2, _J), np.float32)
    _gather(past, tables, fold, place, counts, share[0])
    _evidence(past, weights, share, readings, row)

    own = min(past.number[CLASSES], OWN_CANDIDATES)
    for d in range(number):
        known = classes[d]
        place[known] = -1
        slot = past.newest[d] if d < own else slot_of(past, known)
        events = past.slot_count[slot] if slot >= 0 else 0.0
        out, age = readings.probability[begin + d], readings.age[begin + d]
        _mix_counts(share, counts[d], events, past.last[0] == known, tables.prior[known], out)

        age[0] = age[1] = -1
        if slot < 0:
            continue

        since = ticks(past) - past.slot_event[slot]
        age[0], age[1] = since, past.number[LATEST] - past.slot_time[slot]
        for k in range(_T):
            recent = past.slot_recent[slot, k] * past.fading[min(since, FADED - 1), k]
            out[_RECENT + k] += share[0, _RECENT + k] * np.float32(recent)


@inner
def _mix_counts(
    share: np.ndarray,
    count: np.ndarray,
    events: float,
    is_last: bool,
    prior: float,
    out: np.ndarray,
) -> None:
    """Probabilities (J,) of a class with these counts (G + O,) in the contexts, and so many events
    in the user's past; of the decayed experts, the part of the shorter context.

    It takes no Past: that many arrays would be copied for every candidate.
    """
    of_count, of_shorter = share[0], share[1]
    out[0] = prior
    for g in range(_G):
        out[1 + g] = of_count[1 + g] * count[g] + of_shorter[1 + g] * prior
    out[2] += of_shorter[2] * (out[1] - prior)  # two behaviors fall back on the last one
    out[_J - 1] = of_count[_J - 1] * is_last + of_shorter[_J - 1] * prior

    user = of_shorter[USER] * prior + of_count[USER] * np.float32(events)
    out[USER] = user
    for o in range(_O):
        j = USER + 1 + o
        out[j] = of_count[j] * count[_G + o] + of_shorter[j] * user
    for j in range(_RECENT, _RECENT + _T):
        out[j] = of_shorter[j] * user


@inner
def _gather(
    past: Past,
    tables: Tables,
    fold: int,
    place: np.ndarray,
    counts: np.ndarray,
    total: np.ndarray,
) -> None:
    """Counts (D, G + O) of the candidates in the global and own contexts; the contexts' events into
    total (J,)."""
    total[:] = 0

    for g in range(_G):
        row = past.waiting_row[g]
        if row < 0:
            continue

        total[1 + g] = events_of(tables.total, row, fold)
        for entry in range(tables.start[row], tables.start[row + 1]):
            d = place[tables.follower[entry]]
            if d >= 0:
                counts[d, g] = events_of(tables.counts, entry, fold)

    for o in range(_O):
        if past.waiting[o] < 0:
            continue
        context = find(past.key[o], past.waiting[o])
        if past.key[o, context] == -1:
            continue

        total[USER + 1 + o] = past.total[o, context]
        entry = past.head[o, context]
        while entry >= 0:
            d = place[past.slot_class[past.entry_slot[entry]]]
            if d >= 0:
                counts[d, _G + o] = past.entry_count[entry]
            entry = past.entry_next[entry]


@inner
def _evidence(
    past: Past, weights: np.ndarray, share: np.ndarray, readings: Readings, row: int
) -> None:
    """What depends on no candidate: evidence, the rest that is left, reliability, the moment.

    `share` (2, J) holds the events of the global and own contexts, and becomes 1 / (n + w) and w /
    (n + w).
    """
    total, left = share[0], share[1]
    total[USER] = past.number[KNOWN]
    for i in range(_T):
        total[_RECENT + i] = past.recent_total[i]
    total[_J - 1] = 1 if past.last[0] >= 0 else 0

    evidence, rest = readings.evidence[row], readings.rest[row]
    for j in range(_J):
        evidence[j] = total[j]
        left[j] = weights[j] / (total[j] + weights[j]) if j > 0 else 1.0
        total[j] = 1 / (total[j] + weights[j]) if j > 0 else 0.0
        # the shorter context: the last behavior for the last two, the user's counts for own and
        # decayed ones, else the prior
        shorter = rest[1] if j == 2 else (rest[USER] if USER < j < _J - 1 else np.float32(1.0))
        rest[j] = shorter * left[j]

    judged = readings.reliability[row]
    for j in range(_J):
        judged[j] = past.judged[j] / max(past.judged[_J], 1.0)
    judged[_J] = past.judged[_J]

    context = readings.context[row]
    context[0], context[1] = past.number[KNOWN], past.number[CLASSES]
    context[2], context[3] = past.clock[SLOT], past.clock[WEEKDAY]
    context[4] = past.number[LATEST] - past.number[PREVIOUS]
