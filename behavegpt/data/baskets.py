"""Baskets of a prepared log: sets of a user's events, each one position of the model.

A window of n baskets from s on feeds baskets s .. s+n-1 and asks, after each, for what is in the
next one: each known behavior of it once. pack.py cuts and packs baskets as it does events, as
`Baskets` stands where the store does; nothing of a basket is an input where it is asked for.

Shapes: E events in M baskets of U users; in a batch B rows of R positions, P baskets, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import ConfigError
from behavegpt.ragged import owners, ranges

NUMBER = "basket"  # the column of a store or a log: number of an event's basket in its history


@dataclass(frozen=True)
class Baskets:
    """The baskets of histories in flat columns, in their order."""

    begin: np.ndarray  # (M + 1,) int64 first event of each, and the number of events
    offsets: np.ndarray  # (U + 1,) int64: user u owns baskets offsets[u] .. offsets[u + 1] - 1
    behavior: np.ndarray  # (E,) vocabulary ids
    is_target: np.ndarray  # (E,) bool: the first event of its known behavior in its basket
    columns: Mapping[str, np.ndarray]  # `split` (M,), of a store

    def column(self, name: str) -> np.ndarray:
        """`behavior` (M,): the largest id of each basket; below FIRST where none is known."""
        return np.maximum.reduceat(self.behavior, self.begin[:-1])

    @property
    def size(self) -> np.ndarray:
        """Events (M,) of each."""
        return np.diff(self.begin)

    @property
    def targets_each(self) -> float:
        """Known behaviors of a basket on average, at least 1."""
        return max(1.0, float(self.is_target.sum()) / max(1, len(self.begin) - 1))

    def number_of(self, events: np.ndarray) -> np.ndarray:
        """The basket (n,) of each of some events (n,)."""
        return np.searchsorted(self.begin, events, side="right") - 1

    def first_of(self, event: int) -> int:
        """The first event of an event's basket."""
        return int(self.begin[self.number_of(np.array([event]))[0]])

    def of_events(self, wanted: np.ndarray) -> np.ndarray:
        """A value of each basket (M,) at each of its events (E,)."""
        return np.repeat(wanted, self.size)


def baskets_of(columns: Mapping[str, np.ndarray], offsets: np.ndarray) -> Baskets:
    """The baskets of columns (E,) of U histories, with `basket` and, where something is asked,
    `behavior`; events of one basket stand together."""
    number = np.asarray(columns[NUMBER])
    behavior = np.asarray(columns.get("behavior", np.zeros(len(number), np.uint8)))
    new = np.zeros(len(number), bool)
    new[1:] = number[1:] != number[:-1]
    new[offsets[:-1][np.diff(offsets) > 0]] = True  # first events of users
    first = np.flatnonzero(new)  # (M,)

    # one key of basket and behavior; `unique` tells where each stands first
    key = (np.cumsum(new) - 1) * (int(behavior.max(initial=0)) + 1) + behavior
    is_target = np.zeros(len(number), bool)
    is_target[np.unique(key, return_index=True)[1]] = True

    split = {"split": np.asarray(columns["split"])[first]} if "split" in columns else {}
    return Baskets(
        begin=np.append(first, len(number)),
        offsets=np.searchsorted(first, offsets),
        behavior=behavior,
        is_target=is_target & (behavior >= FIRST),
        columns=split,
    )


class Asked(NamedTuple):
    """N targets of a batch."""

    event: np.ndarray  # (N,) flat index of the target
    basket: np.ndarray  # (N,) the basket before that of the target, as an index of P
    share: np.ndarray  # (N,) float32: 1 / targets of the basket


def asked_after(baskets: Baskets, source: np.ndarray, scored: np.ndarray) -> Asked:
    """What is asked for after baskets source (P,), where scored (P,) bool: the members of the
    baskets behind them."""
    places = np.flatnonzero(scored)  # (S,)
    following = source[places] + 1
    size = baskets.begin[following + 1] - baskets.begin[following]  # (S,)
    event = ranges(baskets.begin[following], size)
    owner = owners(size)

    known = baskets.is_target[event]
    event, owner = event[known], owner[known]
    count = np.bincount(owner, minlength=len(places))  # (S,) targets of each basket
    share = (1 / np.maximum(count, 1))[owner].astype(np.float32)
    return Asked(event, places[owner], share)


def refuse_baskets(schema: EventSchema, what: str) -> None:
    """Raise ConfigError where baskets are given to what reads events one by one."""
    if schema.has_baskets:
        raise ConfigError(
            f"{what} reads events one by one, and the group {schema.group!r} makes baskets of "
            "them; prepare the data without --group for it (docs: Baskets)."
        )


def check_baskets(takes: bool, schema: EventSchema) -> None:
    """Raise ConfigError where a model that takes baskets is to go on with events, or reversely."""
    if takes != schema.has_baskets:
        kinds = {True: "baskets", False: "events one by one"}
        raise ConfigError(
            f"the base reads {kinds[takes]}, and the data hold {kinds[schema.has_baskets]}; "
            f"prepare them with{'' if takes else 'out'} --group."
        )
