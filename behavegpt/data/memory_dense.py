"""The counts of the memory at every class: the exact distributions of the count baselines.

The memory reads its experts at a few candidates, for a network. Here the same counts of a user's
past (`memory_past.py`) and of the training split (`memory_tables.py`) give all K classes. A chain
of contexts starts from the prior, and each context is smoothed towards the distribution so far:
    P(b) <- (n(b|context) + w P(b)) / (n(context) + w)

Shapes: N rows that are predicted, P chains of up to L contexts, Q mixtures of them, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner, kernel
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_keys import CONTEXTS, find
from behavegpt.data.memory_observe import take_up
from behavegpt.data.memory_past import CLASSES, KNOWN, OWN, Past, clear, new_past
from behavegpt.data.memory_tables import Tables

RECENT = "user_recent"
READ = (
    *(f"global_{name}" for name in CONTEXTS),
    "user",
    *(f"user_{name}" for name in OWN),
    "user_last",
    RECENT,
)
_USER = READ.index("user")
_LAST = READ.index("user_last")
_RECENT = READ.index(RECENT)  # with the first decay; the others follow


class Level(NamedTuple):
    """One context of a chain."""

    context: str  # of READ
    weight: float  # of the shorter context, in events
    decay: float = np.inf  # events after which a count of RECENT has fallen to 1/e


Chain = tuple[Level, ...]  # from the shortest context to the longest; the empty one is the prior


class _Reader(NamedTuple):
    """A log that is read event by event, and how far."""

    columns: Columns
    tables: Tables
    past: Past
    at: np.ndarray  # (2,) int64 first event of the user whose past is held, next one to take up


class _Questions(NamedTuple):
    """Rows (N,) that are predicted, in ascending order."""

    row: np.ndarray  # int64
    begin: np.ndarray  # int64 first event of the row's user


class _Levels(NamedTuple):
    """P chains as arrays (P, L), from the shortest context to the longest."""

    context: np.ndarray  # int64 index in READ, with the decay's added; -1 after the end of a chain
    weight: np.ndarray  # float64


class Replay:
    """Asks chains about rows in ascending order; each event of a history is read once, however
    often it is asked about."""

    def __init__(
        self, columns: Columns, offsets: np.ndarray, tables: Tables, chains: Sequence[Chain]
    ) -> None:
        self.columns, self.offsets, self.tables = columns, offsets, tables
        self.decays = sorted(
            {level.decay for chain in chains for level in chain if level.context == RECENT}
        ) or [1.0]

        shape = len(chains), max(map(len, chains))
        self.levels = _Levels(np.full(shape, -1), np.zeros(shape))
        for i, chain in enumerate(chains):
            for k, level in enumerate(chain):
                decay = self.decays.index(level.decay) if level.context == RECENT else 0
                self.levels.context[i, k] = READ.index(level.context) + decay
                self.levels.weight[i, k] = level.weight

        self.past: Past | None = None
        self.at = np.full(2, -1)  # of _Reader

    def scores(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Mix the chains by shares (P,): probabilities (N, K) float32 of the behavior at each row
        (N,)."""
        scores = np.empty((len(rows), len(self.tables.prior)), np.float32)
        reader, questions = self._histories(rows)
        _scores(reader, questions, self.levels, shares.astype(np.float32), scores)
        return scores

    def judge(
        self, rows: np.ndarray, shares: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank and probability (N, Q) of the truth at rows (N,) of known behavior under Q mixtures
        of shares (Q, P).

        Without shares under each chain alone. Ranks are int32 from 0; of equal classes the first
        stands first.
        """
        shares = (np.eye(len(self.levels.context)) if shares is None else shares).astype(np.float32)

        rank = np.empty((len(rows), len(shares)), np.int32)
        probability = np.empty((len(rows), len(shares)), np.float32)
        reader, questions = self._histories(rows)
        _judge(reader, questions, self.levels, shares, rank, probability)
        return rank, probability

    def _histories(self, rows: np.ndarray) -> tuple[_Reader, _Questions]:
        """The log with room for the histories of these rows (N,), and the rows."""
        begin = self.offsets[np.searchsorted(self.offsets, rows, side="right") - 1]
        room = int((rows - begin).max(initial=0)) + 1

        if self.past is None or len(self.past.slot_class) < room:
            self.past = new_past(room, self.decays, len(CONTEXTS))
            self.at[:] = -1

        return _Reader(self.columns, self.tables, self.past, self.at), _Questions(rows, begin)


@kernel
def _scores(
    reader: _Reader, questions: _Questions, levels: _Levels, shares: np.ndarray, scores: np.ndarray
) -> None:
    tables, past = reader.tables, reader.past
    chains = np.empty((len(levels.context), len(tables.prior)), np.float32)

    for i in range(len(questions.row)):
        _advance(reader.columns, tables, past, reader.at, questions.begin[i], questions.row[i])
        _distributions(past, tables, levels, chains)
        _mix(chains, shares, scores[i])


@kernel
def _judge(
    reader: _Reader,
    questions: _Questions,
    levels: _Levels,
    shares: np.ndarray,
    rank: np.ndarray,
    probability: np.ndarray,
) -> None:
    tables, past = reader.tables, reader.past
    chains = np.empty((len(levels.context), len(tables.prior)), np.float32)
    mixed = np.empty(len(tables.prior), np.float32)

    for i in range(len(questions.row)):
        _advance(reader.columns, tables, past, reader.at, questions.begin[i], questions.row[i])
        _distributions(past, tables, levels, chains)
        target = reader.columns.behavior[questions.row[i]]

        for q in range(len(shares)):
            _mix(chains, shares[q], mixed)
            own, ahead = mixed[target], 0
            for b in range(len(mixed)):
                ahead += mixed[b] > own
            for b in range(target):  # ties in the order of classes
                ahead += mixed[b] == own
            rank[i, q], probability[i, q] = ahead, own


@inner
def _mix(chains: np.ndarray, shares: np.ndarray, out: np.ndarray) -> None:
    """sum_p shares[p] chains[p] into out (K,)."""
    out[:] = 0
    for p in range(len(shares)):
        if shares[p] > 0:  # most mixtures are of one chain
            for b in range(len(out)):
                out[b] += shares[p] * chains[p, b]


@inner
def _advance(
    columns: Columns, tables: Tables, past: Past, at: np.ndarray, begin: int, row: int
) -> None:
    """Take up the events of a user, whose first is `begin`, before a row.

    It takes the parts of a _Reader: as a whole they are copied twice, 1.2 x the time of `judge`.
    """
    if at[0] != begin:
        clear(past)
        at[0] = at[1] = begin

    while at[1] < row:
        take_up(past, tables, at[1], columns)
        at[1] += 1


@inner
def _distributions(past: Past, tables: Tables, levels: _Levels, chains: np.ndarray) -> None:
    """Probabilities (P, K) of all chains: what each context adds, times what the longer ones leave
    to it."""
    for p in range(len(levels.context)):
        out, left = chains[p], 1.0
        out[:] = 0

        # from the longest context on: each leaves the share w / (n + w) to the shorter ones
        for k in range(levels.context.shape[1] - 1, -1, -1):
            if levels.context[p, k] >= 0:
                weight = levels.weight[p, k]
                total = _add(past, tables, levels.context[p, k], weight, left, out)
                left *= weight / (total + weight)

        for b in range(len(out)):
            out[b] += np.float32(left) * tables.prior[b]


@inner
def _add(
    past: Past, tables: Tables, context: int, weight: float, left: float, out: np.ndarray
) -> float:
    """Add n(b) * left / (n + weight) of one context to out (K,); returns n."""
    if context < _USER:
        return _add_global(past, tables, context, weight, left, out)
    if _USER < context < _LAST:
        return _add_own(past, context - _USER - 1, weight, left, out)

    if context == _LAST:
        if past.last[0] < 0:
            return 0.0
        out[past.last[0]] += left / (1 + weight)
        return 1.0

    # `user` counts every event alike, the others by age
    recent = context - _RECENT
    total = np.float64(past.number[KNOWN]) if recent < 0 else past.recent_total[recent]
    for slot in range(past.number[CLASSES]):
        count = past.slot_count[slot]
        if recent >= 0:
            age = min(past.number[KNOWN] - past.slot_event[slot], len(past.fading) - 1)
            count = past.slot_recent[slot, recent] * past.fading[age, recent]

        out[past.slot_class[slot]] += left * count / (total + weight)

    return total


@inner
def _add_global(
    past: Past, tables: Tables, context: int, weight: float, left: float, out: np.ndarray
) -> float:
    row = past.waiting_row[context]
    if row < 0:
        return 0.0

    total = np.float64(tables.total[row, -1])  # without any fold left out
    for entry in range(tables.start[row], tables.start[row + 1]):
        out[tables.follower[entry]] += left * tables.counts[entry, -1] / (total + weight)

    return total


@inner
def _add_own(past: Past, own: int, weight: float, left: float, out: np.ndarray) -> float:
    row = find(past.key[own], past.waiting[own]) if past.waiting[own] >= 0 else -1
    if row < 0 or past.key[own, row] == -1:
        return 0.0

    total = past.total[own, row]

    entry = past.head[own, row]
    while entry >= 0:
        out[past.slot_class[past.entry_slot[entry]]] += (
            left * past.entry_count[entry] / (total + weight)
        )
        entry = past.entry_next[entry]

    return total
