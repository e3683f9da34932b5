"""Expected events and their facts, against plain Python; what they may not know."""

from __future__ import annotations

import numpy as np
import pytest

from behavegpt.data.memory_columns import SLOTS, Columns
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import DAY
from behavegpt.horizon import learn as learning
from behavegpt.horizon.expected import (
    BEHAVIORS,
    FACTS,
    HALF_LIVES,
    RARE,
    TURNS,
    Expected,
    Hours,
    Moments,
    expect,
    happened,
    hours_of,
)
from behavegpt.horizon.learn import moments_at

SCHEMA = EventSchema(user="u", time="t", event="e")
CLASSES = 6


def random_log(seed: int, users: int = 12, longest: int = 120) -> tuple[Columns, np.ndarray]:
    """Histories in UTC with ties and unknown behaviors."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, users)
    time = np.concatenate([np.sort(rng.integers(0, 40 * 24, n)) * 3600 for n in lengths])
    often = np.array([1, 20, 4, 3, 2, 2, 1]) / 33  # the first of them is unknown
    behavior = (rng.choice(CLASSES + 1, lengths.sum(), p=often) - 1).astype(np.int32)
    nothing = np.zeros(lengths.sum(), np.int32)
    slot, weekday = time % DAY // 1800, (time // DAY + 3) % 7
    columns = Columns(
        behavior, nothing, nothing, slot.astype(np.int16), weekday.astype(np.int16), time
    )
    return columns, np.append(0, np.cumsum(lengths))


def asked(columns: Columns, offsets: np.ndarray, now: int) -> Moments:
    users = np.arange(len(offsets) - 1)
    return moments_at(columns, offsets, users, np.full(len(users), now), SCHEMA)


def everything(columns: Columns, moments: Moments, days: int = 7) -> Expected:
    hours = hours_of(columns, np.ones(len(columns.time), bool), CLASSES)
    return expect(columns, hours, moments, days)


def fact(expected: Expected, name: str) -> np.ndarray:
    return expected.facts[:, FACTS.index(name)]


@pytest.mark.parametrize("seed", range(5))
def test_the_facts_are_those_of_the_past(seed):
    columns, offsets = random_log(seed)
    now = int(columns.time.max())
    moments = asked(columns, offsets, now)
    expected = everything(columns, moments)
    assert (fact(expected, "turn") < TURNS).all() and (fact(expected, "turn") > 0).any()
    wall = (now + expected.days * DAY) % DAY / 1800
    assert np.abs(wall - fact(expected, "hour") - 0.5).max() < 1e-3, "at the middle of its slot"

    for row in np.random.default_rng(seed).choice(len(expected.days), 20, replace=False):
        past = slice(moments.begin[expected.moment[row]], moments.end[expected.moment[row]])
        known = columns.behavior[past] >= 0
        mine = columns.behavior[past] == expected.behavior[row]
        age = (now - columns.time[past]) / DAY
        oldest = max(age[known].max(), 1.0)
        weekday = int(now // DAY + 3 + fact(expected, "day")[row]) % 7
        on = (columns.weekday[past][mine] == weekday).sum()
        values = {
            "rate": np.log(mine.sum() / oldest + RARE),
            "rate_30": np.log(np.exp(-age[mine] / HALF_LIVES[1]).sum() + RARE),
            "days_since_behavior": np.log1p(age[mine].min()),
            "weekday_share": on / mine.sum(),
            "on_weekday": on / max(oldest / 7, 1.0),
            "activity_7": np.log(np.exp(-age[known] / HALF_LIVES[0]).sum() + RARE),
            "events": np.log1p(known.sum()),
            "is_last": float(age[mine].min() <= age[-1]),
            "idle_days": np.log1p(age[-1]),
            "weekday": weekday,
        }
        for name, value in values.items():
            assert fact(expected, name)[row] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_each_likely_behavior_has_one_event_a_day_and_more_where_it_is_frequent():
    columns, offsets = random_log(1)
    expected = everything(columns, asked(columns, offsets, int(columns.time.max())))
    keys = np.stack([expected.moment, expected.behavior, fact(expected, "day")])
    _, turns = np.unique(keys, axis=1, return_counts=True)
    assert set(turns.tolist()) >= {1, 2} and turns.max() <= TURNS
    assert expected.days.min() > 0 and expected.days.max() < 7
    # a different time for each of them
    places = np.stack([expected.moment, expected.behavior, expected.days])
    assert np.unique(places, axis=1).shape[1] == len(expected.days)


def test_of_many_behaviors_the_most_frequent_are_taken():
    many = BEHAVIORS + 10
    behavior = np.concatenate([np.full(1 + (b >= 10), b) for b in range(many)]).astype(np.int32)
    zeros = np.zeros(len(behavior), np.int32)
    columns = Columns(
        behavior, zeros, zeros, zeros.astype(np.int16), zeros.astype(np.int16), zeros + 0
    )
    hours = hours_of(columns, np.ones(len(behavior), bool), many)
    moments = asked(columns, np.array([0, len(behavior)]), 0)
    assert set(expect(columns, hours, moments, 3).behavior.tolist()) == set(range(10, many))


@pytest.mark.parametrize("seed", range(3))
def test_nothing_later_and_no_order_of_simultaneous_events_is_known(seed):
    columns, offsets = random_log(seed)
    now = int(np.median(columns.time))
    hours = hours_of(columns, columns.time <= now, CLASSES)
    rng = np.random.default_rng(seed)

    users = np.flatnonzero(columns.time[offsets[:-1]] <= now)
    before = expect(columns, hours, moments_at(columns, offsets, users, users * 0 + now, SCHEMA), 7)
    later = columns.time > now
    changed = columns._replace(
        behavior=np.where(later, rng.integers(0, CLASSES, len(later)), columns.behavior).astype(
            np.int32
        ),
        slot=np.where(later, 3, columns.slot).astype(np.int16),
    )
    # within a user's moment any order
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((rng.random(len(owner)), columns.time, owner))
    changed = changed._replace(behavior=changed.behavior[order], slot=changed.slot[order])

    hours = hours_of(changed, changed.time <= now, CLASSES)
    after = expect(changed, hours, moments_at(changed, offsets, users, users * 0 + now, SCHEMA), 7)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6)


def test_permuted_classes_permute_the_events():
    columns, offsets = random_log(4)
    other = np.random.default_rng(0).permutation(CLASSES)
    known = columns.behavior >= 0
    renamed = np.where(known, other[columns.behavior], -1).astype(np.int32)
    moments = asked(columns, offsets, int(columns.time.max()))
    before, after = (
        everything(part, moments) for part in (columns, columns._replace(behavior=renamed))
    )

    def sorted_rows(found: Expected, behavior: np.ndarray) -> np.ndarray:
        keys = (fact(found, "turn"), found.days, behavior, found.moment)
        order = np.lexsort(keys)
        return np.column_stack([np.stack(keys, 1), found.facts])[order]

    np.testing.assert_allclose(
        sorted_rows(after, after.behavior),
        sorted_rows(before, other[before.behavior]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_what_happened_is_counted_by_the_distance_in_time_each_event_once():
    hours = 3600 * np.array([0, 24, 26, 24 * 3])  # one past event, three later ones
    zeros = np.zeros(4, np.int16)
    columns = Columns(np.array([0, 0, 0, 1], np.int32), zeros, zeros, zeros, zeros, hours)
    moments = Moments(*(np.array([value]) for value in (0, 1, 0, 0, 3)))
    days = np.array([1.0, 1 + 2.5 / 24, 1 + 20 / 24, 5.0, 3.01])
    expected = Expected(
        np.zeros(5, np.int64),
        np.array([0, 0, 0, 0, 1]),
        days,
        np.zeros((5, 0), np.float32),
    )
    assert happened(columns, expected, moments, np.array([4])).tolist() == [
        [True, True, True],
        # its hour is that of the second event, and of six hours there are two for two
        [True, True, True],
        # it is the first one of its half of the day
        [False, False, True],
        [False, False, False],
        [True, True, True],
    ]
    assert not happened(columns, expected, moments, np.array([1])).any()


def test_the_hours_of_everybody_are_shares_of_the_day():
    columns, _ = random_log(0)
    hours = hours_of(columns, np.ones(len(columns.time), bool), CLASSES)
    assert hours.share.shape == (CLASSES, SLOTS)
    np.testing.assert_allclose(hours.share.sum(1), 1)


def test_what_everybody_does_is_counted_before_the_first_moment_that_is_learned(monkeypatch):
    columns, offsets = random_log(2, users=60)
    counted, asked_at = [], []

    def count(columns: Columns, used: np.ndarray, classes: int) -> Hours:
        counted.append(columns.time[used].max())
        return hours_of(columns, used, classes)

    def draw(columns: Columns, hours: Hours, moments: Moments, days: int) -> Expected:
        asked_at.append(moments.now.min())
        return expect(columns, hours, moments, days)

    monkeypatch.setattr(learning, "hours_of", count)
    monkeypatch.setattr(learning, "expect", draw)
    learning.learn(columns, offsets, SCHEMA, CLASSES, 5)
    assert counted[0] < min(asked_at) and counted[1] == columns.time.max()
