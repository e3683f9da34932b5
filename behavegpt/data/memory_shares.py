"""The linear mixture of the count experts that fits a log best, by the length of the history.

It is what counting alone can do on a log, and the expert from which the mixer starts. Shares are
found by expectation maximization.

Shapes: N positions, J experts, B lengths of history.
"""

from __future__ import annotations

import numpy as np

from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_read import Readings
from behavegpt.data.memory_tables import FOLDS, Counted, fit_tables
from behavegpt.ragged import owners, ranges

LENGTHS = np.array([3, 10, 30, 100])  # known events at which the next shares begin
USERS, EVENTS = 1500, 60  # that are looked at: so many users, the latest events of each
ITERATIONS = 60
PSEUDO_ROWS = 100  # weight of the shares that few rows lean to
# shares of the events before which tables are counted, and from which shares are fitted
EARLY, LATE = 0.7, 0.85


def fold_of(user: np.ndarray) -> np.ndarray:
    """The fold of each user (n,) by number."""
    return user % FOLDS


def fit_shares(columns: Columns, offsets: np.ndarray, used: np.ndarray, classes: int) -> np.ndarray:
    """Shares (B, J) float32 that make the latest of the `used` (events,) bool events most probable.

    Tables for them are counted on events of some time before, as they are when something is
    predicted: what was popular last month is worth less than what all users did in the same weeks.
    """
    early, late = np.quantile(columns.time[used], [EARLY, LATE]) if used.any() else (0, 0)
    folds = fold_of(np.arange(len(offsets) - 1))
    counted = Counted(used & (columns.time < early), classes, folds)
    tables = fit_tables(columns, offsets, counted)

    spans = _latest_events(columns, offsets, used & (columns.time >= late))
    readings = read_memory(columns, tables, spans)
    position = ranges(spans.low, spans.high - spans.low)  # (N,)
    following = columns.behavior[position + 1]  # (N,) classes

    known = following >= 0  # (N,)
    chance = chance_of(readings, following, tables.prior)[known]  # (n, J)
    return shares_of(chance, readings.context[known, 0])


def shares_of(chance: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Shares (B, J) float32 that make targets likeliest to which the experts gave `chance` (n, J),
    after so many known `events` (n,)."""
    length = np.searchsorted(LENGTHS, events, side="right")  # (n,) 0 .. B - 1

    # few rows of one length lean to the shares of all lengths, and these to equal ones
    overall = _leaning(chance, np.full(chance.shape[1], 1 / chance.shape[1]))
    shares = np.tile(overall, (len(LENGTHS) + 1, 1))  # (B, J)
    for bucket in np.unique(length):
        shares[bucket] = _leaning(chance[length == bucket], overall)

    return shares.astype(np.float32)


def _latest_events(columns: Columns, offsets: np.ndarray, late: np.ndarray) -> Spans:
    """Of at most USERS users, spread over all, the last EVENTS positions before a late event."""
    late = late & (columns.behavior >= 0)
    late[offsets[:-1][np.diff(offsets) > 0]] = False  # a first event follows nothing
    target = np.flatnonzero(late)  # (T,) flat, ascending
    owner = np.searchsorted(offsets, target, side="right") - 1  # (T,) users
    users, first, count = np.unique(owner, return_index=True, return_counts=True)

    # (h,) places in `users`
    chosen = np.unique(np.linspace(0, max(len(users) - 1, 0), min(len(users), USERS)).astype(int))
    last = first[chosen] + count[chosen] - 1
    earliest = last - np.minimum(count[chosen], EVENTS) + 1
    return Spans(offsets[users[chosen]], target[earliest] - 1, target[last])


def _leaning(chance: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Shares (J,) of rows (n, J), which lean to the start where there are few."""
    fitted = _expectation_maximization(chance, start)
    return (len(chance) * fitted + PSEUDO_ROWS * start) / (len(chance) + PSEUDO_ROWS)


def chance_of(
    readings: Readings,
    target: np.ndarray,
    prior: np.ndarray,
    position: np.ndarray | None = None,
) -> np.ndarray:
    """Probability (N, J) that each expert gave to the targets (N,) at the readings `position` (N,),
    by default one each; those of targets below 0 mean nothing."""
    if position is None:
        position = np.arange(len(target))
    # any class that is no candidate has rest * prior
    chance = readings.rest[position] * prior[np.maximum(target, 0)][:, None]  # (N, J)

    # candidates as one ascending number of reading and class, each once
    classes = len(prior)
    key = owners(np.diff(readings.start)) * classes + readings.classes  # (M,)
    order = np.argsort(key)
    wanted = position * classes + target  # (N,)
    place = np.searchsorted(key[order], wanted)
    place = order[np.minimum(place, len(order) - 1)] if len(order) else place
    match = key[place] == wanted if len(order) else np.zeros(len(target), bool)
    match &= target >= 0
    chance[match] = readings.probability[place[match]]

    return chance.astype(np.float64)


def _expectation_maximization(chance: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Shares (J,) of a mixture with component likelihoods `chance` (n, J); the start where there is
    no row."""
    for _ in range(ITERATIONS if len(chance) else 0):
        # (n, J) posterior of each component, after the division below
        weighted = chance * share
        share = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
    return share
