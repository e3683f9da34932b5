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

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import kernel
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_observe import observe, take_up
from behavegpt.data.memory_past import EXPERTS, WEIGHTS, Past, clear, new_past
from behavegpt.data.memory_read import Readings, filled, new_readings, read
from behavegpt.data.memory_tables import Tables

# events before a reading that reliability looks back on: of older ones .92 ** 512 would be left
JUDGED = 512


class Spans(NamedTuple):
    """Positions low .. high - 1 of h histories, as flat indices; position t knows begin .. t."""

    begin: np.ndarray  # (h,) int64 first event of the history
    low: np.ndarray  # (h,) int64
    high: np.ndarray  # (h,) int64
    # (h,) whose events the global tables leave out, as they must at training positions; None: none
    folds: np.ndarray | None = None
    # (events,) what they leave out where the experts are judged by an event; None: as where they
    # are read
    eras: np.ndarray | None = None

    def compiled(self) -> Spans:
        """The same for a compiled loop, which takes one type of each argument: -1 and an empty
        array stand for None."""
        folds = np.full(len(self.begin), -1) if self.folds is None else self.folds
        eras = np.empty(0, np.int8) if self.eras is None else self.eras
        return self._replace(folds=folds.astype(np.int64), eras=eras)


def read_memory(
    columns: Columns, tables: Tables, spans: Spans, *, weights: np.ndarray = WEIGHTS
) -> Readings:
    """Replay histories and read the experts at the positions of each span, in that order; `weights`
    (J,) of the shorter contexts, in events."""
    readings = new_readings(int((spans.high - spans.low).sum()))
    longest = int((spans.high - spans.begin).max(initial=1))
    _replay(columns, tables, spans.compiled(), weights, readings, new_past(longest))
    return filled(readings)


@kernel
def _replay(
    columns: Columns,
    tables: Tables,
    spans: Spans,
    weights: np.ndarray,
    readings: Readings,
    past: Past,
) -> None:
    place = np.full(len(tables.prior), -1, np.int32)  # of a class among the candidates
    chance = np.empty(len(EXPERTS))
    row = np.int64(0)  # as it is later: a literal would be compiled apart
    eras: np.ndarray = spans.eras  # type: ignore[assignment]  # an array by now

    for h in range(len(spans.begin)):
        first, low = spans.begin[h], spans.low[h]
        fold = spans.folds[h]  # type: ignore[index]  # an array by now
        if h > 0 and spans.begin[h - 1] == first and spans.high[h - 1] <= low:
            first = spans.high[h - 1]  # of the same user, and further on
        else:
            clear(past)

        for t in range(first, spans.high[h]):
            if t < low - JUDGED:  # too long ago to be judged by: only counted
                take_up(past, tables, t, columns)
                past.judged[:] = 0
                continue

            observe(past, tables, weights, eras[t] if len(eras) else fold, chance, t, columns)
            if t >= low:
                read(past, tables, weights, fold, place, readings, row)
                row += 1
