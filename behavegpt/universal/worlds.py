"""Random worlds: logs of people who follow habits of every kind, each world with other proportions.

The universal mixer must learn which count to believe from what it sees of a history. Few real logs
show few kinds of histories, so it also learns from worlds in which the answer is drawn: an event
copies what was popular, what this person did lately, often, after the same behavior, at the same
hour or the same place, with weights that differ between worlds and between the people of one world.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner, kernel
from behavegpt.data.memory_columns import Columns
from behavegpt.data.vocabulary import FIRST

HABITS = (
    "popular",
    "recent",
    "frequent",
    "last",
    "what follows",
    "own sequence",
    "same hour",
    "same place",
)
SUCCESSORS = 6
DAY = 86_400
LOOK_BACK = 400  # events


class World(NamedTuple):
    """Histories of one world; user u owns the events offsets[u] .. offsets[u + 1] - 1."""

    columns: Columns
    offsets: np.ndarray  # (users + 1,) int64
    classes: int


class Habits(NamedTuple):
    """How the people of a world behave."""

    popularity: np.ndarray  # (classes,) cumulative shares
    own: np.ndarray  # (users, habits) cumulative shares of HABITS
    successors: np.ndarray  # (classes, SUCCESSORS) what follows a behavior
    memory: float  # events that a recent behavior is ago, about
    steepness: float  # share of recent behaviors that are ago by a power law
    fashion: int  # seconds that what is popular stays so
    gap: float  # seconds between events, about
    burst: float  # share of events that follow at once
    grain: int  # seconds to which times are kept
    places: int


def random_world(seed: int, events: int = 60_000) -> World:
    """A world of about that many events; the same seed gives the same one."""
    rng = np.random.default_rng([seed, 7])

    classes = int(np.exp(rng.uniform(np.log(4), np.log(600))))
    # histories of log-normal lengths
    length = np.exp(rng.normal(rng.uniform(2.5, 5.0), rng.uniform(0.3, 1.2), events))
    length = length.astype(np.int64).clip(3, 3_000)
    length = length[: max(8, int(np.searchsorted(np.cumsum(length), events)))]

    offsets = np.concatenate([[0], np.cumsum(length)])

    # popularity by rank: a power law
    popularity = (1 + rng.permutation(classes)) ** -rng.uniform(0.3, 1.6)
    # how much each habit counts in this world, and around it in each person's life
    weights = rng.gamma(rng.uniform(0.2, 0.8), size=len(HABITS)) + 0.01
    weights[0] += rng.uniform(0.05, 0.6) * weights.sum()
    spread = rng.uniform(0.5, 20)
    own = rng.gamma(spread * weights / weights.sum() + 0.02, size=(len(length), len(HABITS))) + 1e-6

    gap = np.exp(rng.uniform(np.log(60), np.log(5 * DAY)))  # seconds between events, about
    grain = int(rng.choice([1, 1, 60, 3_600]))  # to which times are kept

    columns = Columns(
        behavior=np.zeros(offsets[-1], np.int32),
        event=np.zeros(offsets[-1], np.int32),
        location=np.zeros(offsets[-1], np.int32),
        slot=np.zeros(offsets[-1], np.int16),
        weekday=np.zeros(offsets[-1], np.int16),
        time=np.zeros(offsets[-1], np.int64),
    )

    # events are filled in by _live
    habits = Habits(  # drawn in this order
        popularity=np.cumsum(popularity / popularity.sum()),
        own=np.cumsum(own / own.sum(1, keepdims=True), axis=1),
        successors=rng.integers(0, classes, (classes, SUCCESSORS)),
        memory=np.exp(rng.uniform(np.log(1.5), np.log(80))),
        steepness=rng.uniform(0, 1),
        fashion=int(rng.integers(2, 60) if rng.random() < 0.5 else 10_000) * DAY,
        gap=gap,
        burst=rng.uniform(0, 0.7),
        grain=grain,
        places=int(rng.integers(1, 200)),
    )
    _live(columns, offsets, habits, rng)
    return World(columns._replace(event=columns.behavior + FIRST), offsets, classes)


@kernel
def _live(columns, offsets, habits, rng):  # type: ignore[no-untyped-def]
    """Fill in the events of all people, one after the other; a day has 48 slots."""
    behavior, slot, place, time = columns.behavior, columns.slot, columns.location, columns.time
    for user in range(len(offsets) - 1):
        begin = offsets[user]
        now = np.int64(rng.integers(0, 300 * DAY))
        # a number that tells this person's usual places from others'
        home = rng.integers(0, 1 << 20)
        for t in range(begin, offsets[user + 1]):
            # a burst follows within two minutes, or in the same moment
            if rng.random() > habits.burst:
                now += np.int64(rng.exponential(habits.gap))
            elif rng.random() > 0.3:
                now += rng.integers(0, 120)
            time[t] = now // habits.grain * habits.grain
            slot[t] = time[t] % DAY // 1800
            columns.weekday[t] = time[t] // DAY % 7

            habit = np.searchsorted(habits.own[user], rng.random())
            known = _copied(habit, t, begin, columns, habits, rng)
            if known < 0:
                classes = len(habits.popularity)
                rank = min(np.searchsorted(habits.popularity, rng.random()), classes - 1)
                # what is popular may change; 7919, a prime, leads to any class
                known = (rank + now // habits.fashion * 7919) % classes

            behavior[t] = known
            kept = rng.random() < 0.7  # the usual place of this behavior, for this person
            number = (home + known * 7919) % habits.places
            place[t] = 2 + (number if kept else rng.integers(0, habits.places))


@inner
def _copied(habit, t, begin, columns, habits, rng):  # type: ignore[no-untyped-def]
    """The class that a habit copies from the person's past; -1 where there is nothing to copy."""
    behavior, slot, place = columns.behavior, columns.slot, columns.location
    if habit == 0 or t == begin:
        return -1

    if habit == 3:
        return behavior[t - 1]
    if habit == 4:
        rank = min(rng.geometric(0.45) - 1, habits.successors.shape[1] - 1)
        return habits.successors[behavior[t - 1], rank]

    if habit == 1:
        ago = 1 + np.int64(rng.exponential(habits.memory))
        if rng.random() < habits.steepness:  # a power law: most is of late, some of long ago
            ago = np.int64(np.exp(rng.random() * np.log(1 + t - begin)))
        return behavior[t - ago] if t - ago >= begin else -1

    if habit == 2:
        return behavior[rng.integers(begin, t)]

    # a random one of the events that were alike: reservoir sampling of size 1
    copied, seen = -1, 0
    for s in range(max(begin + 1, t - LOOK_BACK), t):
        alike = (
            (habit == 5 and behavior[s - 1] == behavior[t - 1])
            or (habit == 6 and abs(slot[s] - slot[t]) <= 2)
            or (habit == 7 and place[s - 1] == place[t - 1])
        )
        if alike:
            seen += 1
            if rng.random() * seen < 1:
                copied = behavior[s]
    return copied
