"""Whom a model serves how well: its figures by groups of the targets.

A group is a length of the history, a weekday, or what a feature of the users says (age band,
country, ...). Groups are for looking: they share users, and small ones are mostly chance.

Shapes: R targets, G groups.
"""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from behavegpt.data.bins import Bins
from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.metrics.bootstrap import CUT, TargetRanks

KNOWN_EVENTS = (1, 4, 11, 31, 101, 301)  # events before the target: where groups begin
MOST = 20  # groups of a kind that are told, those with the most targets
FEWEST = 30  # targets below which a group is left out
HISTORY, WEEKDAY = "events known", "weekday"


def group_figures(
    store: EventStore, ranks: Mapping[str, TargetRanks]
) -> dict[str, list[dict[str, Any]]]:
    """Kind of group -> its groups: {group, rows, users, rec_w: {model: share}, ndcg@3: {...}}.

    Kinds with fewer than two groups are left out, and groups with fewer than 30 targets.
    """
    rows = next(iter(ranks.values())).rows
    user = np.searchsorted(store.offsets, rows, side="right") - 1  # (R,)

    found: dict[str, list[dict[str, Any]]] = {}
    for kind, number, names in _kinds(store, rows, user):
        lines = [
            {"group": names[g], **_figures(np.flatnonzero(number == g), user, ranks)}
            for g in _worth_telling(number)
        ]
        if len(lines) > 1:
            found[kind] = lines
    return found


def _kinds(
    store: EventStore, rows: np.ndarray, user: np.ndarray
) -> Iterator[tuple[str, np.ndarray, list[str]]]:
    """Each kind of group: its name, the group (R,) of each target, and the groups' names."""
    baskets = store.baskets
    ends = rows if baskets is None else baskets.begin[baskets.number_of(rows)]
    known = ends - store.offsets[user]  # (R,) events of the user before the target, or its basket
    yield HISTORY, np.searchsorted(KNOWN_EVENTS, known, side="right") - 1, _spans()

    yield WEEKDAY, np.asarray(store.columns["weekday"])[rows].astype(int), list(calendar.day_name)

    for name in store.schema.features:
        vocabulary = store.vocabulary[name]
        labels = vocabulary.values.to_pylist()
        if isinstance(vocabulary, Bins):
            labels = [f"from {float(edge):g}" for edge in labels]
        # id 1 is unknown; a user without a row of the table has it as well
        ids = np.asarray(store.columns[name])[rows].astype(int)
        yield name, np.maximum(ids - FIRST + 1, 0), ["unknown", *labels]


def _spans() -> list[str]:
    """The groups of KNOWN_EVENTS in words."""
    ends = [f"{low}–{high - 1}" for low, high in itertools.pairwise(KNOWN_EVENTS)]
    return [*ends, f"{KNOWN_EVENTS[-1]} or more"]


def _worth_telling(number: np.ndarray) -> list[int]:
    """The groups that hold enough targets, at most MOST of them, in their own order."""
    size = np.bincount(number)
    largest = np.argsort(-size, kind="stable")[:MOST]
    return sorted(int(g) for g in largest if size[g] >= FEWEST)


def _figures(
    chosen: np.ndarray, user: np.ndarray, ranks: Mapping[str, TargetRanks]
) -> dict[str, Any]:
    """What is told of the targets `chosen`."""
    of = {name: of_model.ranks[chosen] for name, of_model in ranks.items()}
    return {
        "rows": len(chosen),
        "users": len(np.unique(user[chosen])),
        "rec_w": {name: float((rank == 0).mean()) for name, rank in of.items()},
        f"ndcg@{CUT}": {
            name: float(np.where(rank < CUT, 1 / np.log2(rank + 2.0), 0).mean())
            for name, rank in of.items()
        },
    }
