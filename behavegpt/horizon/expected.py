"""One event for each of a user's likely behaviors and each day to come, at the user's usual hour,
and the facts that tell how sure it is.

Nothing here knows a class: the facts are rates, ages and shares, so what is learned from some users
and behaviors is true of others.

Shapes: E events, M moments that are asked about, N expected events, F facts, K classes, D deltas.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from behavegpt.data.compiled import inner, kernel
from behavegpt.data.memory_columns import SLOTS, Columns
from behavegpt.data.times import DAY
from behavegpt.metrics.horizon import DELTAS

BEHAVIORS = 25  # of a user: those with the highest recent rates
LATEST = 5000  # events of a past that are read; older ones have decayed to nothing
HALF_LIVES = (7.0, 30.0, 120.0)  # days by which rates decay (to 1/e)
SMOOTH = 2.0  # half hours: standard deviation of the kernel over hours of the day
AROUND = (2, 12)  # half hours around the usual one: how much of the behavior falls there
TURNS = 3  # events of a behavior on a day, at most
OFTEN = 0.3  # a day: the rate for each further one
RARE = 1e-3  # a day: rates below are the same
FACTS = (
    *("rate", "rate_7", "rate_30", "rate_120", "days_since_behavior", "on_weekday"),
    *("weekday_share", "activity_on_weekday", "day", "days", "weekend", "weekday"),
    *("near_hour", "around_hour", "hour", "activity_7", "activity_30", "events"),
    *("past_days", "rate_of_all", "times", "hour_now", "is_last", "idle_days", "turn"),
)


class Moments(NamedTuple):
    """Moments at which the days to come are asked for."""

    begin: np.ndarray  # (M,) int64: the user's past is the events begin .. end - 1
    end: np.ndarray  # (M,) int64, greater than begin
    now: np.ndarray  # (M,) int64 epoch seconds, not before the last event of the past
    minute: np.ndarray  # (M,) int64, of the local day
    weekday: np.ndarray  # (M,) int64, local, 0 is Monday

    def slice(self, begin: int, end: int) -> Moments:
        """Some of the moments."""
        return Moments(*(column[begin:end] for column in self))


class Hours(NamedTuple):
    """When in the day everybody does what, from the past of all."""

    share: np.ndarray  # (K, SLOTS) float64, smoothed; each row adds up to 1
    rate: np.ndarray  # (K,) float64, events of all users a day


class Expected(NamedTuple):
    """Expected events, moment by moment."""

    moment: np.ndarray  # (N,) int64 index of the moment
    behavior: np.ndarray  # (N,) int64 class
    days: np.ndarray  # (N,) float64 from now
    facts: np.ndarray  # (N, F) float32


def hours_of(columns: Columns, used: np.ndarray, classes: int) -> Hours:
    """The hours of the `used` (E,) bool events."""
    known = used & (columns.behavior >= 0)
    counts = np.zeros((classes, SLOTS))
    np.add.at(counts, (columns.behavior[known], columns.slot[known]), 1.0)

    # a rare behavior has the hours of all, which weigh as much as twenty events
    everybody = counts.sum(0) / max(counts.sum(), 1.0)
    share = (counts + 20 * everybody) / (counts.sum(1, keepdims=True) + 20)
    time = columns.time[known]
    days = max((time.max() - time.min()) / DAY, 1.0) if len(time) else 1.0
    return Hours(_smoothed(share), counts.sum(1) / days)


def expect(columns: Columns, hours: Hours, moments: Moments, days: int) -> Expected:
    """The events of the next `days` days that each moment's past lets expect."""
    most = TURNS * BEHAVIORS * (days + 1) * len(moments.now)
    behavior, place = np.zeros(most, np.int64), np.zeros(most)
    moment, facts = np.zeros(most, np.int64), np.zeros((most, len(FACTS)), np.float32)
    number = _expect(
        (columns.behavior, columns.slot, columns.weekday, columns.time),
        (hours.share, np.log(hours.rate + RARE)),
        moments,
        _kernel_weights(),
        days,
        (moment, behavior, place, facts),
    )
    return Expected(moment[:number], behavior[:number], place[:number], facts[:number])


def happened(
    columns: Columns, expected: Expected, moments: Moments, until: np.ndarray
) -> np.ndarray:
    """(N, D) bool: whether the behavior happened within each of DELTAS of the time that was
    expected; `until` (M,): where the events of the moment's user end."""
    result = np.zeros((len(expected.days), len(DELTAS)), np.bool_)
    _happened(
        columns.behavior,
        columns.time,
        expected[:3],
        (moments.end, until, moments.now),
        np.array(DELTAS),
        result,
    )
    return result


def _kernel_weights() -> np.ndarray:
    """(2 R + 1,) weights of the hours around."""
    reach = int(4 * SMOOTH)
    weights: np.ndarray = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTH) ** 2)
    return weights / weights.sum()


def _smoothed(share: np.ndarray) -> np.ndarray:
    """Rows (K, SLOTS) smoothed around the clock."""
    weights = _kernel_weights()
    reach = len(weights) // 2
    return sum((w * np.roll(share, s - reach, axis=1) for s, w in enumerate(weights)), np.zeros(1))


class Rates(NamedTuple):
    """Of one past, by class; emptied after each moment."""

    total: np.ndarray  # (K,) float64
    decayed: np.ndarray  # (K, 3) float64, by HALF_LIVES
    age: np.ndarray  # (K,) float64, days since the latest one
    row: np.ndarray  # (K,) int64: 1 + the row of a likely class, 0 for others


class Habits(NamedTuple):
    """When in the day and in the week a user does what; recent events weigh more."""

    hour: np.ndarray  # (likely, SLOTS) float64
    own_hour: np.ndarray  # (SLOTS,) float64, of all the user's events
    weekday: np.ndarray  # (likely, 7) float64
    own_weekday: np.ndarray  # (7,) float64


@kernel
def _expect(columns, everybody, moments, weights, days, out):  # type: ignore[no-untyped-def]
    """Fill `out`; the number of expected events. One moment after the other: its past is read
    twice, for rates and, of the likely behaviors alone, for habits."""
    behavior, slot, weekday, time = columns
    share, rate_of_all = everybody
    classes = len(share)
    rates = Rates(
        np.zeros(classes), np.zeros((classes, 3)), np.zeros(classes), np.zeros(classes, np.int64)
    )
    number = 0

    for m in range(len(moments.now)):
        now, end = moments.now[m], moments.end[m]
        begin = max(moments.begin[m], end - LATEST)
        age = (now - time[begin:end]) / DAY
        seen, user = _read_rates(rates, behavior[begin:end], age)
        chosen = _choose(rates, seen)
        habits = _read_habits(
            rates.row, len(chosen), age, behavior[begin:end], slot[begin:end], weekday[begin:end]
        )

        for i in range(len(chosen)):
            b = chosen[i]
            usual = _usual_hours(share[b], habits.hour[i], habits.own_hour, weights)
            ours = (rates.total[b], rates.decayed[b], rates.age[b], rate_of_all[b])
            week = (habits.weekday[i], habits.own_weekday)
            for turn in range(TURNS):
                if rates.decayed[b, 1] < turn * OFTEN * HALF_LIVES[1]:
                    break  # not so often that the day holds another one
                mode, near, around = _most_usual(usual)
                for d in range(days + 1):
                    place = d + ((mode + 0.5) * (1440 / SLOTS) - moments.minute[m]) / 1440
                    if 0 < place < days:
                        on = (moments.weekday[m] + d) % 7
                        out[0][number], out[1][number], out[2][number] = m, b, place
                        when = (d, place, on, mode, near, around, moments.minute[m] / 1440, turn)
                        _write_facts(out[3][number], ours, user, week, when)
                        number += 1
                _clear(usual, mode)

        for b in seen:
            rates.total[b], rates.row[b] = 0, 0
            rates.decayed[b] = 0

    return number


@inner
def _read_rates(rates, behavior, age):  # type: ignore[no-untyped-def]
    """Fill `rates`; the classes of a past, ascending, and what is known of its user: decayed
    activity by two half-lives, events, days of the past, days since its end."""
    seen = np.empty(min(len(behavior), len(rates.total)), np.int64)
    distinct, events, activity_7, activity_30, oldest = 0, 0, 0.0, 0.0, 1.0
    for e in range(len(behavior)):
        b = behavior[e]
        if b < 0:
            continue
        if rates.total[b] == 0:
            seen[distinct] = b
            distinct += 1
        rates.total[b] += 1
        for j in range(3):
            rates.decayed[b, j] += np.exp(-age[e] / HALF_LIVES[j])
        rates.age[b] = age[e]
        activity_7 += np.exp(-age[e] / HALF_LIVES[0])
        activity_30 += np.exp(-age[e] / HALF_LIVES[1])
        oldest = max(oldest, age[e])
        events += 1

    return np.sort(seen[:distinct]), (activity_7, activity_30, events, oldest, age[-1])


@inner
def _choose(rates, seen):  # type: ignore[no-untyped-def]
    """The likely classes, at most BEHAVIORS, and their rows; equal ones by class, so that the order
    of simultaneous events is nothing."""
    rank = np.empty(len(seen))
    for i in range(len(seen)):
        b = seen[i]
        rank[i] = -(rates.decayed[b, 1] + 0.2 * rates.decayed[b, 2] + 0.001 * rates.total[b])
    chosen = seen[np.argsort(rank, kind="mergesort")[:BEHAVIORS]]
    for i in range(len(chosen)):
        rates.row[chosen[i]] = i + 1
    return chosen


@inner
def _read_habits(row, likely, age, behavior, slot, weekday):  # type: ignore[no-untyped-def]
    """Habits of a past whose likely classes have rows."""
    habits = Habits(np.zeros((likely, SLOTS)), np.zeros(SLOTS), np.zeros((likely, 7)), np.zeros(7))
    for e in range(len(behavior)):
        b = behavior[e]
        if b < 0:
            continue
        weight = np.exp(-age[e] / HALF_LIVES[2]) + 0.05
        habits.own_hour[slot[e]] += weight
        habits.own_weekday[weekday[e]] += 1
        if row[b]:
            habits.hour[row[b] - 1, slot[e]] += weight
            habits.weekday[row[b] - 1, weekday[e]] += 1

    habits.own_hour[:] /= max(habits.own_hour.sum(), 1e-9)
    return habits


@inner
def _usual_hours(everybody, hour, own, weights):  # type: ignore[no-untyped-def]
    """(SLOTS,) how much of a behavior falls on each half hour: the user's own hours of it,
    smoothed, with one event's worth of the user's other hours and of everybody's."""
    reach = len(weights) // 2
    usual = everybody.copy()
    for s in range(SLOTS):
        for r in range(-reach, reach + 1):
            at = (s + r) % SLOTS
            usual[s] += weights[r + reach] * (hour[at] + own[at])
    return usual / usual.sum()


@inner
def _most_usual(usual):  # type: ignore[no-untyped-def]
    """The half hour around which most falls, and how much falls within each of AROUND."""
    mode, near = 0, -1.0
    for s in range(SLOTS):
        within = _within(usual, s, AROUND[0])
        if within > near:
            mode, near = s, within
    return mode, near, _within(usual, mode, AROUND[1])


@inner
def _clear(usual, mode):  # type: ignore[no-untyped-def]
    """Take out the hour around `mode`, so that the next event is at another time."""
    for r in range(-AROUND[0], AROUND[0] + 1):
        usual[(mode + r) % SLOTS] = 0.0


@inner
def _within(usual, slot, reach):  # type: ignore[no-untyped-def]
    total = 0.0
    for r in range(-reach, reach + 1):
        total += usual[(slot + r) % SLOTS]
    return total


@inner
def _write_facts(row, ours, user, week, when):  # type: ignore[no-untyped-def]
    """The FACTS of one expected event, in their order."""
    count, decayed, age, rate_of_all = ours
    activity_7, activity_30, events, oldest, idle = user
    of_behavior, of_user = week
    d, place, on, mode, near, around, minute, turn = when
    weeks = max(oldest / 7, 1.0)

    row[0] = np.log(count / oldest + RARE)
    for j in range(3):
        row[1 + j] = np.log(decayed[j] + RARE)
    row[4] = np.log1p(age)
    row[5], row[6] = of_behavior[on] / weeks, of_behavior[on] / count
    row[7] = np.log(of_user[on] / weeks + RARE)
    row[8], row[9], row[10], row[11] = d, place, on >= 5, on
    row[12], row[13], row[14] = near, around, mode
    row[15], row[16] = np.log(activity_7 + RARE), np.log(activity_30 + RARE)
    row[17], row[18] = np.log1p(events), np.log1p(oldest)
    row[19], row[20], row[21] = rate_of_all, np.log1p(count), minute
    row[22] = age <= idle  # among the last events: their order is nothing
    row[23], row[24] = np.log1p(idle), turn


@kernel
def _happened(behavior, time, expected, ends, deltas, result):  # type: ignore[no-untyped-def]
    """Fill `result` (N, D). Where several events of a behavior are expected on a day, the second
    needs a second one that happens, and so on."""
    moment, classes, days = expected
    end, until, now = ends
    for n in range(len(days)):
        m = moment[n]
        needed = np.ones(len(deltas), np.int64)
        for k in range(n - 1, -1, -1):
            if moment[k] != m or classes[k] != classes[n]:
                break
            for j in range(len(deltas)):
                needed[j] += abs(days[k] - days[n]) <= min(deltas[j], 0.5)
        for e in range(end[m], until[m]):
            away = (time[e] - now[m]) / DAY - days[n]
            if away > deltas[-1]:
                break  # events are in the order of time
            if behavior[e] == classes[n]:
                for j in range(len(deltas)):
                    needed[j] -= abs(away) <= deltas[j]
        for j in range(len(deltas)):
            result[n, j] = needed[j] <= 0
