"""The linear mixture of the count experts that fits a log best: shares by the length of the
history, found by EM.

It is what counting alone can do on a log, and the expert from which the mixer starts.
"""

from __future__ import annotations

import numpy as np

from behavegpt.data.memory import read_memory
from behavegpt.data.memory_read import Readings
from behavegpt.data.memory_tables import FOLDS, Columns, fit_tables

LENGTHS = np.array([3, 10, 30, 100])  # known events at which the next shares begin
USERS, EVENTS = 1500, 60  # that are looked at, and how many of the latest events of each
ITERATIONS = 60
PSEUDO_ROWS = 100  # with which shares lean to those of all lengths, and these to equal ones
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
    tables = fit_tables(columns, offsets, used & (columns.time < early), classes, folds)
    late = used & (columns.time >= late) & (columns.behavior >= 0)
    late[offsets[:-1][np.diff(offsets) > 0]] = False
    target = np.flatnonzero(late)
    owner = np.searchsorted(offsets, target, side="right") - 1
    users, first, count = np.unique(owner, return_index=True, return_counts=True)
    chosen = np.unique(np.linspace(0, max(len(users) - 1, 0), min(len(users), USERS)).astype(int))
    pieces = [target[first[u] : first[u] + count[u]][-EVENTS:] for u in chosen]
    low = np.array([piece[0] - 1 for piece in pieces], np.int64)
    high = np.array([piece[-1] for piece in pieces], np.int64)
    readings = read_memory(columns, tables, offsets[users[chosen]], low, high)
    spans = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    following = columns.behavior[np.concatenate([np.zeros(0, np.int64), *spans]) + 1]
    known = following >= 0
    chance = chance_of(readings, following, tables.prior)[known]
    length = np.searchsorted(LENGTHS, readings.context[known, 0], side="right")
    uniform = np.full(chance.shape[1], 1 / chance.shape[1])
    overall = _leaning(chance, uniform)
    shares = np.tile(overall, (len(LENGTHS) + 1, 1))
    for number in np.unique(length):
        shares[number] = _leaning(chance[length == number], overall)
    return shares.astype(np.float32)


def _leaning(chance: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Shares (J,) of rows (n, J), which lean to the start where there are few."""
    found = _expectation_maximization(chance, start)
    return (len(chance) * found + PSEUDO_ROWS * start) / (len(chance) + PSEUDO_ROWS)


def chance_of(readings: Readings, target: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probability (N, J) that each expert gave to the targets (N,); those of targets below 0 mean
    nothing."""
    chance = readings.rest * prior[np.maximum(target, 0)][:, None]
    owner = np.repeat(np.arange(len(target)), np.diff(readings.start))
    match = readings.classes == target[owner]
    chance[owner[match]] = readings.probability[match]
    return chance.astype(np.float64)


def _expectation_maximization(chance: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Shares (J,) of a mixture with component likelihoods `chance` (n, J); the start where there is
    no row."""
    for _ in range(ITERATIONS if len(chance) else 0):
        weighted = chance * share
        share = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
    return share
