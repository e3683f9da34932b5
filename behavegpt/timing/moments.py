"""Histories as moments: events of a user at one time are one moment, with the gap to the next one
and what is known of the gaps before it.

Shapes: E events, M moments, U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.ragged import owners

WINDOWS = (1, 3, 30)  # last gaps whose mean is a fact
SHRINK = 1.0  # gaps of everybody that are added to a user's own


@dataclass(frozen=True)
class Moments:
    """Moments of U users in the order of users and times; each knows the past up to itself."""

    user: np.ndarray  # (M,) int64
    time: np.ndarray  # (M,) int64, epoch seconds
    label: np.ndarray  # (M,) int64, behavior id of the moment's last event
    slot: np.ndarray  # (M,) int64, slot of the week
    gap: np.ndarray  # (M,) float64, seconds to the user's next moment, NaN for the last
    row: np.ndarray  # (M,) int64, event at which the moment ends
    seen: np.ndarray  # (M,) int64, gaps of the user before
    begin: np.ndarray  # (M,) int64, time of the user's first moment
    events: np.ndarray  # (M,) int64, the user's events until then

    def __len__(self) -> int:
        return len(self.user)

    @property
    def last(self) -> np.ndarray:
        """Positions of the users' last moments (U,); all users have one."""
        return np.flatnonzero(np.isnan(self.gap))

    def facts(self, mean: float, spread: float) -> np.ndarray:
        """Facts of the user's gaps before each moment (M, 6), in logarithms of seconds.

        Means of the last gaps by WINDOWS, shrunk to `mean`, their standard deviation shrunk to
        `spread`, the logarithm of their number, and that of the events per moment.
        """
        log_gap = np.log(np.nan_to_num(self.gap, nan=1.0))
        place = np.arange(len(self))
        total = np.concatenate([[0.0], np.cumsum(log_gap - mean)])
        columns = []

        for window in WINDOWS:
            number = np.minimum(self.seen, window)
            moved = (total[place] - total[place - number]) / (number + SHRINK)
            columns.append(mean + moved)

        # around the mean of everybody, so that a long cumulative sum loses no digits
        square = np.concatenate([[0.0], np.cumsum((log_gap - mean) ** 2)])
        squares = square[place] - square[place - number]
        variance = (squares + SHRINK * spread**2) / (number + SHRINK) - moved**2
        columns.append(np.sqrt(np.maximum(variance, 0)))
        columns += [np.log1p(self.seen), np.log(self.events / (self.seen + 1))]
        return np.stack(columns, 1)


def moments_of(offsets: np.ndarray, columns: Mapping[str, np.ndarray], slots: int) -> Moments:
    """Moments of histories; columns time, behavior, weekday and slot (E,), `slots` a day."""
    time = np.asarray(columns["time"], np.int64)
    user = owners(np.diff(offsets))
    starts = np.ones(len(time), bool)
    starts[1:] = (np.diff(time) != 0) | (np.diff(user) != 0)

    first = np.flatnonzero(starts)
    row = np.append(first[1:], len(time))[: len(first)] - 1
    owner, at = user[first], time[first]
    gap = np.full(len(first), np.nan)
    same = owner[1:] == owner[:-1]
    gap[:-1][same] = np.diff(at)[same]

    opening = np.flatnonzero(np.append(True, ~same))[: len(first)]
    opened = np.repeat(opening, np.diff(np.append(opening, len(first))))
    week = columns["weekday"][row].astype(np.int64) * slots + columns["slot"][row]
    return Moments(
        user=owner,
        time=at,
        label=columns["behavior"][row].astype(np.int64),
        slot=week,
        gap=gap,
        row=row,
        seen=np.arange(len(first)) - opened,
        begin=at[opened],
        events=row + 1 - np.asarray(offsets)[owner],
    )


def moments_of_store(store: EventStore) -> Moments:
    """Moments of a prepared folder, of all splits."""
    columns = {name: np.asarray(store.column(name)) for name in ("behavior", "weekday", "slot")}
    columns["time"] = np.asarray(store.columns["time"], np.int64) + store.manifest.time_origin
    return moments_of(store.offsets, columns, store.schema.slots)


def moments_of_histories(histories: EncodedHistories, schema: EventSchema) -> Moments:
    """Moments of histories in ids."""
    return moments_of(histories.offsets, histories.columns, schema.slots)


def until(histories: EncodedHistories, now: int) -> EncodedHistories:
    """Histories without the events after `now`, epoch seconds, and without the users of whom none
    are left."""
    keep = histories.columns["time"] <= now
    kept = np.append(0, np.cumsum(keep))[histories.offsets]
    some = np.diff(kept) > 0

    rejected = dict(histories.rejected)
    if not some.all():
        rejected["no event until then"] = int((~some).sum())
    return EncodedHistories(
        histories.users.filter(some),
        np.append(0, kept[1:][some]),
        {name: column[keep] for name, column in histories.columns.items()},
        histories.unknown,
        rejected,
    )
