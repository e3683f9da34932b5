"""The laws behind synthetic logs, and the best prediction they allow.

A user belongs to a group g (never written down) and lives between a home cell, a work cell and
places to go out. Gaps between events are a mixture of two exponentials (bursts and pauses) on a
clock that runs fast by day and slow by night. The hour of the week h draws the kind of place k:
home, work or out. The next behavior mixes three habits,

    P(b | before, g, k) = w0 transition[before, b] + w1 preference[g, b] + w2 routine[k, b]
    (first event: w0 = 0)

each with a Zipf tail; the event is drawn from the behavior's own events. Groups, times and places
follow from nothing else, so the best prediction from the past can be computed:
`World.next_behavior_probabilities`.

Shape letters: N events, B behaviors, E labels of events, G groups, K = 3 kinds of place, H = 168
hours of the week.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.errors import DataError

# all probabilities are whole multiples of 1 / SHARES, so that drawing is one look-up and exact
SHARES = 1 << 14
OUT = 2  # kind of a place; 0 is home, 1 is work
KINDS, HOURS = 3, 168
HABITS = (0.45, 0.30, 0.25)  # transition, preference, routine
BURST_SHARE, BURST_HOURS, PAUSE_HOURS = 0.75, 0.05, 4.5  # gaps on the user's clock
ORIGIN = np.datetime64("2024-01-01T00:00:00", "ms")  # a Monday


@dataclass(frozen=True)
class World:
    """Tables of probabilities; `make_world` draws them."""

    transition: np.ndarray  # (B, B)
    preference: np.ndarray  # (G, B)
    routine: np.ndarray  # (K, B)
    event: np.ndarray  # (B, E), zero outside the behavior's own events
    kind: np.ndarray  # (H, K)
    habit: np.ndarray  # (3,)
    clock: np.ndarray  # (H + 1,) the users' clock, 0 .. 168, at each hour of the week
    cells: np.ndarray  # (K + 1,) first cell of each kind of place, then the number of cells

    @property
    def behaviors(self) -> int:
        """Number of behaviors."""
        return len(self.transition)

    @functools.cached_property
    def labels(self) -> dict[str, pa.StringArray]:
        """Labels of location, event and behavior in the order of their numbers."""
        sizes = {
            "location": int(self.cells[-1]),
            "event": self.event.shape[1],
            "behavior": self.behaviors,
        }
        names = {"location": "cell", "event": "app", "behavior": "behavior"}
        labels = {}
        for field, size in sizes.items():
            labels[field] = pa.array([f"{names[field]}_{i:04d}" for i in range(size)])
        return labels

    def next_behavior_probabilities(self, log: pa.Table) -> np.ndarray:
        """Best prediction (N, B) from the past: row n is P(behavior n + 1 | events 0 .. n of the
        user).

        `log` holds the columns of `generate`, sorted by user and time. Exact but for times cut to
        whole milliseconds.
        """
        behavior = _numbers(log, "behavior", self.labels["behavior"])  # (N,)
        location = _numbers(log, "location", self.labels["location"])  # (N,)
        kind = np.searchsorted(self.cells, location, side="right") - 1  # (N,)

        user = log["user_id"].to_numpy()
        first = np.concatenate([[True], user[1:] != user[:-1]])  # (N,)
        hours = (log["timestamp"].to_numpy() - ORIGIN) / np.timedelta64(1, "h")  # (N,)

        preference = self._groups(behavior, kind, first) @ self.preference  # (N, B)
        routine = self._next_hour(hours % HOURS) @ self.kind @ self.routine  # (N, B)

        w = self.habit
        return w[0] * self.transition[behavior] + w[1] * preference + w[2] * routine

    def cross_entropy(self, log: pa.Table) -> float:
        """Mean -ln P(actual next behavior | past), over all events but each user's first: the floor
        of any model."""
        probability = self.next_behavior_probabilities(log)
        user = log["user_id"].to_numpy()
        behavior = _numbers(log, "behavior", self.labels["behavior"])

        row = np.flatnonzero(user[1:] == user[:-1])
        return float(-np.log(probability[row, behavior[row + 1]]).mean())

    def _groups(self, behavior: np.ndarray, kind: np.ndarray, first: np.ndarray) -> np.ndarray:
        """P(g | events 0 .. n) (N, G): Bayes' rule from equal groups."""
        before = np.concatenate([[0], behavior[:-1]])  # (N,)
        later, start = self.habit, np.array([0, *self.habit[1:]]) / self.habit[1:].sum()

        # (N, 3): a first event follows no behavior
        w = np.where(first[:, None], start, later)

        common = w[:, 0] * self.transition[before, behavior]  # (N,)
        common += w[:, 2] * self.routine[kind, behavior]
        likelihood = common[:, None] + w[:, 1:2] * self.preference[:, behavior].T  # (N, G)

        # sums of logarithms within each user: those over all, less what the users before add
        total = np.cumsum(np.log(likelihood), axis=0)  # (N, G)

        begin = np.flatnonzero(first)
        earlier = np.concatenate([np.zeros_like(total[:1]), total])[begin]
        total -= np.repeat(earlier, np.diff(np.append(begin, len(first))), axis=0)

        likely = np.exp(total - total.max(axis=1, keepdims=True))  # (N, G)
        return likely / likely.sum(axis=1, keepdims=True)

    def _next_hour(self, hour: np.ndarray) -> np.ndarray:
        """P(hour of the week of the next event | time of this one) (N, H), summed over all weeks to
        come."""
        # on the users' clock
        now = np.interp(hour, np.arange(HOURS + 1), self.clock)  # (N,)

        # to the next start of each hour, never 0
        ahead = HOURS - (now[:, None] - self.clock[None, :-1]) % HOURS  # (N, H)

        # P(the next event comes after that hour's start, in any week)
        passed = sum(
            share * np.exp(-ahead / mean) / -np.expm1(-HOURS / mean)
            for share, mean in ((BURST_SHARE, BURST_HOURS), (1 - BURST_SHARE, PAUSE_HOURS))
        )

        chance = passed - np.roll(passed, -1, axis=1)  # (N, H)

        rows, this = np.arange(len(hour)), hour.astype(np.int64)
        chance[rows, this] = 0  # the rest of this hour, now, and its beginning in a week
        chance[rows, this] = 1 - chance.sum(axis=1)

        return chance


def make_world(
    seed: int = 0, behaviors: int = 39, events: int = 114, groups: int = 8, cells: int = 2000
) -> World:
    """Draw the laws of a world. Raises DataError for sizes that its tables cannot hold."""
    if not (2 <= behaviors <= events <= SHARES // 4 and groups >= 1 and cells >= 8):
        raise DataError(
            f"synthetic world: behaviors={behaviors}, events={events}, groups={groups}, "
            f"cells={cells}; 2 <= behaviors <= events <= {SHARES // 4}, groups >= 1 and cells >= 8 "
            "are needed."
        )

    rng = np.random.default_rng([seed, 0])
    # few behaviors are frequent, most are rare, as in app usage
    zipf = np.arange(1, behaviors + 1) ** -1.1  # (B,)
    transition = np.tile(0.25 * zipf / zipf.sum(), (behaviors, 1))  # (B, B)
    for share in (0.45, 0.2, 0.1):  # the usual successors of each behavior
        successor = rng.choice(behaviors, behaviors, p=zipf / zipf.sum())
        transition[np.arange(behaviors), successor] += share

    # the behavior of each event: every behavior has one
    owner = np.concatenate(  # (E,)
        [np.arange(behaviors), rng.choice(behaviors, events - behaviors, p=zipf / zipf.sum())]
    )
    # a Zipf law of its own within each behavior's events
    # (B, E)
    rank = np.where(owner == np.arange(behaviors)[:, None], rng.permutation(events) + 1.0, np.inf)

    clock = np.concatenate([[0], np.cumsum(_activity())])  # (H + 1,)
    return World(
        transition=_shares(transition),
        preference=_shares(zipf * rng.lognormal(0, 1.2, (groups, behaviors))),
        routine=_shares(zipf * rng.lognormal(0, 1.2, (KINDS, behaviors))),
        event=_shares(rank**-1.1),
        kind=_shares(_places()),
        habit=_shares(np.array([HABITS]))[0],
        clock=clock * HOURS / clock[-1],
        cells=np.array([0, cells // 2, cells * 3 // 4, cells]),
    )


def _activity() -> np.ndarray:
    """Events per hour (H,) on no scale: little at night, peaks at noon and in the evening, later at
    weekends."""
    hour = np.arange(24)
    noon, evening = np.exp(-(((hour - 12.5) / 3) ** 2)), np.exp(-(((hour - 20) / 2.5) ** 2))

    workday = 0.06 + 0.5 * np.exp(-(((hour - 8) / 1.5) ** 2)) + 0.7 * noon + evening
    weekend = 0.08 + 0.9 * np.exp(-(((hour - 13) / 4) ** 2)) + evening
    return np.concatenate([np.tile(workday, 5), np.tile(weekend, 2)])


def _places() -> np.ndarray:
    """P(home, work, out | hour of the week) (H, K)."""
    hour = np.arange(24)
    night, office = (hour < 7) | (hour >= 22), (hour >= 9) & (hour < 18)

    workday = np.select(
        [night[:, None], office[:, None]],
        [[0.96, 0.01, 0.03], [0.08, 0.78, 0.14]],
        [0.6, 0.05, 0.35],
    )
    weekend = np.where(night[:, None], [0.9, 0.01, 0.09], [0.45, 0.05, 0.5])

    return np.concatenate([np.tile(workday, (5, 1)), np.tile(weekend, (2, 1))])


def _shares(weights: np.ndarray) -> np.ndarray:
    """Rows as probabilities in whole multiples of 1 / SHARES; what is positive stays positive."""
    counts = np.floor(weights / weights.sum(axis=1, keepdims=True) * SHARES)  # (R, columns)
    counts = np.where(weights > 0, np.maximum(counts, 1), 0)

    # what rounding leaves goes to the most frequent one
    counts[np.arange(len(counts)), counts.argmax(axis=1)] += SHARES - counts.sum(axis=1)
    return counts / SHARES


def _numbers(log: pa.Table, field: str, labels: pa.StringArray) -> np.ndarray:
    numbers = pc.index_in(log[field].cast(pa.string()), value_set=labels)
    if numbers.null_count:
        raise DataError(
            f"column {field!r} holds a label that this synthetic world does not have; use its own "
            "log."
        )
    return numbers.to_numpy()
