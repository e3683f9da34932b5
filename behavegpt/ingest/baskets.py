"""Baskets while a log is read: the events of a user with one label of the schema's group.

A basket is a set at one moment, that of its earliest event: the split cannot cut it in two, and
nothing tells which of its events came first. Events without a group label are in one basket where
they share the moment. Events stand basket by basket, in an order drawn by a hash of their labels,
so that the order of the rows of a log changes no byte.

Shapes: N events of whole users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.data.ties import hash_mix, sort_events

if TYPE_CHECKING:
    from behavegpt.ingest.encode import Buckets

GROUP = "group"  # the column of codes that tells baskets apart; 0 is no label
BASKET_KEYS = ("user", "time", GROUP)  # what makes a basket


@dataclass(frozen=True)
class BasketBuckets:
    """Buckets of users whose events have the time of their basket."""

    events: Buckets

    sorted = False

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return self.events.buckets

    def read(self, bucket: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns (N,) of a bucket, as SpilledBuckets.read gives them."""
        # whoever asks for one column still needs the three that make a basket
        needed = dict.fromkeys((*names, "user", "time", GROUP))
        columns = self.events.read(bucket, tuple(needed))
        columns["time"] = basket_times(columns)
        return {name: columns[name] for name in names}

    def scan(self, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
        """The same of all buckets: a piece of whole users, as their baskets are whole in it."""
        return (self.read(bucket, names) for bucket in range(self.buckets))


def basket_times(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Times (N,) int64 of the events' baskets: of the earliest event of each."""
    user, group, time = columns["user"], columns[GROUP], columns["time"]
    moment = np.where(group == 0, time, 0)  # without a label the moment is the group
    index = np.lexsort([time, moment, group, user])  # (N,)

    # first row of each basket: where any of the three keys changes
    first = np.zeros(len(index), bool)
    first[:1] = True
    for key in (user, group, moment):
        first[1:] |= key[index][1:] != key[index][:-1]

    earliest = time[index][first]  # (baskets,)
    times = np.empty_like(time)
    times[index] = earliest[np.cumsum(first) - 1]
    return times


def sort_index(
    columns: dict[str, np.ndarray], hashes: dict[str, np.ndarray], schema: EventSchema
) -> np.ndarray:
    """Index (N,) int64 that sorts events as `sort_events` does; with a group, each basket's stand
    together. Times are those of `basket_times` then."""
    index = sort_events(columns, hashes, schema.tie_seed)
    if not schema.has_baskets or not len(index):
        return index

    # baskets of one moment in an order of their own draw, which stays if others come
    user, time, group = (columns[name][index] for name in ("user", "time", GROUP))
    draw = hash_mix(hash_mix(hashes["user"][user]) ^ hashes[GROUP][group])
    return index[np.lexsort([np.arange(len(index)), group, draw, time, user])]


def basket_numbers(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Number (N,) uint32 of each event's basket among its user's, from 0, of sorted columns."""
    user, group, time = columns["user"], columns[GROUP], columns["time"]
    number = np.zeros(len(user), np.int64)
    if not len(user):
        return number.astype(np.uint32)

    new_user = user[1:] != user[:-1]
    new = new_user | (group[1:] != group[:-1]) | (time[1:] != time[:-1])  # (N - 1,)
    number[1:] = np.cumsum(new)

    first = np.concatenate([[True], new_user])  # of each user's first event
    return (number - number[first][np.cumsum(first) - 1]).astype(np.uint32)


def count_baskets(user: np.ndarray, number: np.ndarray) -> int:
    """Baskets of events (N,) sorted by user and number of the basket."""
    # changes between neighbors, and the first basket, if there is any
    return int(((np.diff(user) != 0) | (np.diff(number) != 0)).sum()) + min(1, len(user))


def describe_baskets(baskets: int, events: int, users: int) -> str:
    """What `prepare` and a card say of them."""
    text = f"{baskets:,} baskets of {events / max(1, baskets):.1f} events on average"
    if baskets <= users:
        return f"{text}; every user has one alone, so there is no next one to predict"
    if baskets == events:
        return f"{text}; every event is a basket of its own: prepare the log without --group"
    return text
