"""What counting says about the next behavior: a distribution in each of many contexts, over a
user's whole past.

Every expert is a count in one context c, smoothed towards a shorter one:

    P(b|c) = (n(b,c) + w P(b|shorter)) / (n(c) + w)

Global experts count what followed in the training split for all users (`memory_tables.py`); own
experts count this user's whole past. A model mixes their log-probabilities (`model/mixer.py`).
A position t knows the events up to t alone.

Shapes: N positions that are read, M candidate classes of all of them, J experts, K classes; of one
user's past: S classes, O own contexts in hash tables of size H, E list entries, T decays.
"""

from __future__ import annotations

import numpy as np

from behavegpt.data.compiled import kernel
from behavegpt.data.memory_observe import observe, take_up
from behavegpt.data.memory_past import EXPERTS, WEIGHTS, clear, new_past
from behavegpt.data.memory_read import Readings, filled, new_readings, read
from behavegpt.data.memory_tables import Columns, Tables

# events before a reading that reliability looks back on: of older ones .92 ** 512 would be left
JUDGED = 512


def read_memory(
    columns: Columns,
    tables: Tables,
    begin: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    folds: np.ndarray | None = None,
    eras: np.ndarray | None = None,
    weights: np.ndarray = WEIGHTS,
) -> Readings:
    """Replay histories (h,) and read the experts at positions low .. high - 1 of each, in that
    order.

    `begin`, `low`, `high` are flat indices: position t knows the events begin .. t. `folds` (h,):
    whose events the global tables leave out, as they must at training positions; None: none. `eras`
    (events,): what they leave out where the experts are judged by an event; None: as where they are
    read.
    """
    readings = new_readings(int((high - low).sum()))
    left_out = np.full(len(begin), -1, np.int64) if folds is None else folds.astype(np.int64)
    judging = np.empty(0, np.int8) if eras is None else eras
    longest = int((high - begin).max(initial=1))
    _replay(
        columns, tables, begin, low, high, left_out, judging, weights, readings, new_past(longest)
    )
    return filled(readings)


@kernel
def _replay(columns, tables, begin, low, high, folds, eras, weights, readings, past):  # type: ignore[no-untyped-def]
    place = np.full(len(tables.prior), -1, np.int32)  # of a class among the candidates
    chance = np.empty(len(EXPERTS))
    row = np.int64(0)  # as it is later: a literal would be compiled apart
    for h in range(len(begin)):
        first = begin[h]
        if h > 0 and begin[h - 1] == first and high[h - 1] <= low[h]:
            first = high[h - 1]  # of the same user, and further on
        else:
            clear(past)
        for t in range(first, high[h]):
            if t < low[h] - JUDGED:
                take_up(past, tables, t, columns)
                past.judged[:] = 0
                continue
            observe(past, tables, weights, eras[t] if len(eras) else folds[h], chance, t, columns)
            if t >= low[h]:
                read(past, tables, weights, folds[h], place, readings, row)
                row += 1
