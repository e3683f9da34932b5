"""Candidates of a position: the few classes at which the experts are read one by one.

Shapes: D candidates of a position, K classes.
"""

from __future__ import annotations

import numpy as np

from behavegpt.data.compiled import inner
from behavegpt.data.memory_keys import GLOBAL, find
from behavegpt.data.memory_observe import events_of
from behavegpt.data.memory_past import CLASS_ROW, CLASSES, Past
from behavegpt.data.memory_tables import Tables

# candidates of a position; 5 or 12 of each global context give the same figures (docs/log.md)
CANDIDATES = 64
OWN_CANDIDATES = 48  # the most recent behaviors of the user
GLOBAL_CANDIDATES = 5  # the most frequent ones of each global context


@inner
def candidates(
    past: Past, tables: Tables, fold: int, place: np.ndarray, classes: np.ndarray
) -> int:
    """The user's most recent classes, then the most frequent followers of each global context;
    returns how many.

    Followers are ranked without the fold: one that only the fold's users showed would give the
    target away.
    """
    best = np.empty(GLOBAL_CANDIDATES, np.int64)
    events = np.empty(GLOBAL_CANDIDATES)

    number = min(past.number[CLASSES], OWN_CANDIDATES)
    for d in range(number):
        classes[d] = past.slot_class[past.newest[d]]
        place[classes[d]] = d

    # behind the user's own: where places are few, one's own past is worth more
    for g in range(len(GLOBAL)):
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
def _most_frequent(
    tables: Tables, row: int, fold: int, best: np.ndarray, events: np.ndarray
) -> int:
    """Insert the followers of a row with the most events without a fold into `best`, and these into
    `events`; returns how many."""
    number, most = 0, len(best)
    for entry in range(tables.start[row], tables.start[row + 1]):
        if number == most and tables.counts[entry, tables.counts.shape[1] - 1] < events[most - 1]:
            break  # the rest have no more even with the fold

        count = events_of(tables.counts, entry, fold)
        if count <= 0:
            continue
        rank = number
        while rank > 0 and _is_ahead(tables, entry, count, best[rank - 1], events[rank - 1]):
            rank -= 1
        if rank == most:
            continue

        # an insertion: five places are faster kept in order than sorted
        number = min(number + 1, most)
        for i in range(number - 1, rank, -1):
            best[i], events[i] = best[i - 1], events[i - 1]
        best[rank], events[rank] = entry, count

    return number


@inner
def _is_ahead(tables: Tables, entry: int, count: float, other: int, others: float) -> bool:
    """Whether a follower comes before another: by events, then by frequency in training.

    Their order in the tables would tell about the fold, whose events it was made with.
    """
    if count != others:
        return count > others
    return tables.prior[tables.follower[entry]] > tables.prior[tables.follower[other]]


@inner
def slot_of(past: Past, known: int) -> np.int64:
    """Slot in a user's past of a class that is not among the recent ones; -1 if it never came."""
    # a user of few classes has them all among the recent ones
    if past.number[CLASSES] <= OWN_CANDIDATES:
        return np.int64(-1)

    index = find(past.key[CLASS_ROW], known)
    if past.key[CLASS_ROW, index] == -1:
        return np.int64(-1)
    return np.int64(past.head[CLASS_ROW, index])
