"""Global tables of the memory: what followed in the training split, in contexts that all users
share.

A context is a row of a compressed table: its most frequent followers, and how many events it had.
Counts are kept for each of eight folds of users, so that a training position can leave out its own
user's events: a table that contains the target of the position it is asked at would be trusted far
too much.

Shapes: C contexts of all kinds with E followers in all, K classes, G kinds of contexts, H places
of a hash table, a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_keys import GLOBAL, hash_table, keys_of_positions

FOLDS = 8
FOLLOWERS = 128  # of a context that are kept, the most frequent ones


class Tables(NamedTuple):
    """What followed in C contexts, E followers in all."""

    prior: np.ndarray  # (K,) float32 frequency in training, all positive, sums to 1
    locations: np.ndarray  # (1,) int64 ids of locations
    key: np.ndarray  # (H,) int64 hash table of contexts, -1 where free
    row: np.ndarray  # (H,) int32 row of a context
    # (C + 1,) int64 followers of row c: start[c] .. start[c + 1] - 1, the most frequent first
    start: np.ndarray
    follower: np.ndarray  # (E,) int32 classes
    counts: np.ndarray  # (E, FOLDS + 1) float32 events by fold, all of them last
    total: np.ndarray  # (C, FOLDS + 1) float32 events of a context, dropped followers included


class Counted(NamedTuple):
    """Which events of histories the tables count, and how they are divided into folds."""

    used: np.ndarray  # (events,) bool
    classes: int  # K
    folds: np.ndarray  # (users,) int64 fold of each user, or (events,) eras, see `fit_tables`
    # (events,) int64 the event that each follows, -1: none; None: the one before it of its user
    previous: np.ndarray | None = None


def fit_tables(
    columns: Columns,
    offsets: np.ndarray,
    counted: Counted,
    *,
    contexts: Sequence[str] = GLOBAL,
    followers: int = FOLLOWERS,
    by_time: bool = False,
) -> Tables:
    """Count what followed at each used event; user u owns offsets[u] .. offsets[u + 1] - 1.

    `by_time`: the folds are eras of events, and who leaves one out leaves out the later ones too.
    `contexts`: GLOBAL or CONTEXTS; `followers`: how many of a context are kept, the most frequent
    ones.
    """
    behavior, classes = columns.behavior, counted.classes
    wanted = counted.used & (behavior >= 0)  # (events,)

    # half an event of every class: none may be impossible, for logarithms are taken
    counts = np.bincount(behavior[wanted], minlength=classes)  # (K,)
    prior = (counts + 0.5) / (counts + 0.5).sum()

    wanted[offsets[:-1][np.diff(offsets) > 0]] = False  # a first event follows nothing
    previous = np.arange(-1, len(behavior) - 1) if counted.previous is None else counted.previous
    target = np.flatnonzero(wanted & (previous >= 0))  # (n,)
    locations = int(columns.location.max(initial=1)) + 1
    # at the event before each target: (targets, G)
    keys = keys_of_positions(columns, offsets, classes, locations, len(contexts))[previous[target]]
    fold = counted.folds if by_time else np.repeat(counted.folds, np.diff(offsets))
    follower, fold = behavior[target], fold[target]

    parts = [
        _followers(keys[:, g], follower, fold, classes, followers) for g in range(len(contexts))
    ]
    joined = _Followers(*map(np.concatenate, zip(*parts, strict=True)))
    if by_time:
        for table in (joined.total, joined.counts):
            _add_later_eras(table)

    table_key, table_row = hash_table(joined.key)
    return Tables(
        prior=prior.astype(np.float32),
        locations=np.array([locations]),
        key=table_key,
        row=table_row,
        start=np.append(0, np.cumsum(joined.kept)),
        follower=joined.follower.astype(np.int32),
        counts=joined.counts,
        total=joined.total,
    )


class _Followers(NamedTuple):
    """C contexts with E followers in all: by context, the most frequent first."""

    key: np.ndarray  # (C,) int64
    total: np.ndarray  # (C, FOLDS + 1) float32 events
    kept: np.ndarray  # (C,) followers of each
    follower: np.ndarray  # (E,) classes
    counts: np.ndarray  # (E, FOLDS + 1) float32


def _followers(
    key: np.ndarray, follower: np.ndarray, fold: np.ndarray, classes: int, most: int
) -> _Followers:
    """One kind of context from targets (n,): their keys, classes and folds.

    Targets with key -1 are in no context. At most `most` followers of a context are kept.
    """
    known = key >= 0  # (n,)
    context, of_context = np.unique(key[known], return_inverse=True)  # (C,), (n,)
    fold = fold[known]
    total = _by_fold(of_context, fold, len(context))

    # a context and what followed it, as one number
    pairs = of_context * classes + follower[known]
    # (E,), (E,), (n,)
    pair, earliest, of_pair = np.unique(pairs, return_index=True, return_inverse=True)
    counts = _by_fold(of_pair, fold, len(pair))  # (E, FOLDS + 1)

    of_context, follower = pair // classes, pair % classes

    # equally frequent ones by their first occurrence: no label may matter
    order = np.lexsort((earliest, -counts[:, -1], of_context))  # (E,)
    # place of a follower among those of its context
    rank = np.arange(len(pair)) - np.searchsorted(of_context, of_context)
    order = order[rank < most]

    kept = np.bincount(of_context[order], minlength=len(context))  # (C,)
    return _Followers(context, total, kept, follower[order], counts[order])


def _by_fold(row: np.ndarray, fold: np.ndarray, rows: int) -> np.ndarray:
    """Events (rows, FOLDS + 1) float32 of each fold, and of all last."""
    counts = np.bincount(row * (FOLDS + 1) + fold, minlength=rows * (FOLDS + 1)).reshape(
        rows, FOLDS + 1
    )
    counts[:, -1] = counts.sum(axis=1)
    return counts.astype(np.float32)


def _add_later_eras(table: np.ndarray) -> None:
    """Make counts (rows, FOLDS + 1) by era those of the era and all later ones, in place."""
    # what is left out with era e is all that came later too: sums from the last era backwards
    table[:, :FOLDS] = table[:, FOLDS - 1 :: -1].cumsum(axis=1)[:, ::-1]


def with_classes(tables: Tables, events: int, more: int) -> Tables:
    """The tables of a log of so many `events` with `more` classes behind the others that it never
    had: half an event each, and in no context."""
    classes = len(tables.prior)
    whole = events + 0.5 * classes
    prior = np.append(tables.prior * whole, np.full(more, 0.5)) / (whole + 0.5 * more)

    # two classes are one number in the second kind of context: last * classes + before
    keys = np.empty(len(tables.total), np.int64)
    filled = tables.key >= 0
    keys[tables.row[filled]] = tables.key[filled]
    pair = (keys & 7) == 1
    last, before = np.divmod(keys[pair] >> 3, classes)
    keys[pair] = (last * (classes + more) + before) * 8 + 1

    key, row = hash_table(keys)
    return tables._replace(prior=prior.astype(np.float32), key=key, row=row)
