"""How good the times are: intervals over the moments of a split, and behaviors within a horizon
from a cut-off date, beside count baselines that know the same past.

Shapes: M moments, U users, K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.data.store import SPLITS, EventStore
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import DataError
from behavegpt.ragged import owners
from behavegpt.timing.answer import mixture, upcoming
from behavegpt.timing.fit import observed
from behavegpt.timing.gaps import Gaps
from behavegpt.timing.moments import Moments, moments_of_store

# percentiles: twice their mean pinball loss is nearly the CRPS
QUANTILES = np.arange(1, 100) / 100
CENTRAL = (50, 90)  # % of the intervals whose coverage is told
OWN = 5.0  # gaps of everybody beside the user's own, of the baselines
MOST_USERS = 5000  # whose behaviors are compared, (U, K) at a time
# probabilities (U, K) of each user's next behavior
Next = Callable[[EncodedHistories], np.ndarray]


def evaluate_gaps(
    gaps: Gaps, store: EventStore, split: str = "test", most: int = 50_000
) -> dict[str, Any]:
    """Pinball loss (log of seconds) and coverage of intervals, over moments after which half of the
    split is still to come; longer gaps count as that half.

    Of more than `most` moments evenly spaced ones. Raises DataError where there are none.
    """
    moments = moments_of_store(store)
    place, cap = _followed(store, moments, split)
    # evenly spaced over users and time alike
    place = place[:: max(1, -(-len(place) // most))]

    # a gap that has not ended is longer than the cap, which is all that is asked of it
    gap = np.minimum(np.nan_to_num(moments.gap[place], nan=np.inf), cap)

    number = np.asarray(store.columns["split"])[moments.row]
    # the baselines know the training split alone, as the model does
    train = observed(moments, number == SPLITS["train"])
    # gaps that ended: the baseline's quantiles are plain ones
    seconds = np.exp(train.log_gap[train.ended])
    everybody = np.quantile(seconds, QUANTILES)
    known = moments.facts(gaps.mean, gaps.spread)[place]
    # a user's own gaps as a log-normal one, shrunk to everybody's quantiles
    own = np.exp(known[:, 2:3] - gaps.mean) * everybody
    location, group = (values[place] for values in gaps.place(moments))
    ours = gaps.quantiles(location, group, np.zeros(len(place)), QUANTILES)

    tables = {"timing": ours, "global": np.tile(everybody, (len(place), 1)), "user mean": own}
    return {
        "split": split,
        "moments": len(place),
        "users": len(np.unique(moments.user[place])),
        "cap_s": int(cap),
        "models": {name: _figures(table, gap, cap) for name, table in tables.items()},
    }


def evaluate_within(
    gaps: Gaps,
    store: EventStore,
    seconds: int,
    following: Next | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Brier scores of "behavior b within `seconds`" at the beginning of a split, over all users
    seen before and all behaviors; without `following` the next behavior is the user's own mixture.

    Of more than 5000 users evenly spaced ones. Raises DataError where the split is shorter.
    """
    moments = moments_of_store(store)
    time = np.asarray(store.columns["time"], np.int64) + store.manifest.time_origin
    now = _before_split(store, time, split, seconds)
    owner = owners(np.diff(store.offsets))
    label = np.asarray(store.column("behavior"), np.int64) - FIRST
    classes = store.behaviors.classes
    past, future = time <= now, (time > now) & (time <= now + seconds)
    asked = _last_before(moments, now)
    # evenly spaced, not the first ones: users may be sorted by when they came
    asked = asked[:: max(1, -(-len(asked) // MOST_USERS))]
    users = moments.user[asked]

    past &= np.isin(owner, users)
    # what a user does anyway, whenever: the shares that the rates are multiplied with
    usual = mixture(owner[past], label[past], users, store.behaviors.counts)
    shares = usual if following is None else following(_histories(store, time, past, owner))

    shape = (len(store.offsets) - 1, classes)
    truth = _happened(owner, label, future, shape)[users]
    # the same span before the date: how often a behavior happens within one
    before = _happened(owner, label, past & (time > now - seconds), shape)[users]
    tables = upcoming(gaps, moments, asked, now, seconds, shares)
    tables |= _rates(moments, asked, now, seconds, usual)
    # of everybody, without the user: what any model must beat
    tables["base rate"] = np.tile(before.mean(0), (len(users), 1))
    return {
        "split": split,
        "now": now,
        "seconds": seconds,
        "users": len(users),
        "share": float(truth.mean()),
        "models": {name: _brier(table, truth) for name, table in tables.items()},
    }


def _before_split(store: EventStore, time: np.ndarray, split: str, seconds: int) -> int:
    """The second before a split begins, one for everybody; `time` (E,) in epoch seconds. Raises
    DataError for a split shorter than `seconds`."""
    chosen = np.asarray(store.columns["split"]) == SPLITS[split]
    if not chosen.any() or time[chosen].max() - time[chosen].min() < seconds:
        raise DataError(
            f"{store.path}: the {split} split is shorter than the horizon of {seconds:,} s; ask "
            "for a shorter one."
        )
    # before it, so that its first event is still to come
    return int(time[chosen].min()) - 1


def _happened(
    owner: np.ndarray, label: np.ndarray, chosen: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Whether each user had each behavior in the chosen events, bool of `shape`."""
    happened = np.zeros(shape, bool)
    real = chosen & (label >= 0)
    happened[owner[real], label[real]] = True
    return happened


def _histories(
    store: EventStore, time: np.ndarray, past: np.ndarray, owner: np.ndarray
) -> EncodedHistories:
    """The histories of the events `past` (E,), of users `owner` (E,)."""
    users, number = np.unique(owner[past], return_counts=True)
    columns = {
        name: np.asarray(column)[past].astype(np.int64) for name, column in store.columns.items()
    }
    columns["behavior"] = np.asarray(store.column("behavior"))[past].astype(np.int64)
    columns["time"] = time[past]
    return EncodedHistories(
        store.users().take(pa.array(users)), np.append(0, np.cumsum(number)), columns, {}, {}
    )


def _last_before(moments: Moments, now: int) -> np.ndarray:
    """Each user's last moment up to `now`, of users who have one."""
    place = np.flatnonzero(moments.time <= now)
    return place[np.append(np.diff(moments.user[place]) != 0, True)] if len(place) else place


def _rates(
    moments: Moments, asked: np.ndarray, now: int, seconds: int, usual: np.ndarray
) -> dict[str, np.ndarray]:
    """Count baselines: Poisson with everybody's rate, and with the user's own."""
    span = np.maximum(now - moments.begin[asked], 1)
    everybody = moments.events[asked].sum() / span.sum()
    # shrunk, or a user of one event would have no rate to speak of
    own = (moments.events[asked] + OWN) / (span + OWN / everybody)
    whole = usual.mean(0)
    return {
        "global rate": 1 - np.exp(-seconds * everybody * np.tile(whole, (len(asked), 1))),
        "user rate": 1 - np.exp(-seconds * own[:, None] * usual),
    }


def _followed(store: EventStore, moments: Moments, split: str) -> tuple[np.ndarray, float]:
    """Moments of the first half of a split, and its half in seconds."""
    number = np.asarray(store.columns["split"])[moments.row]
    place = np.flatnonzero(number == SPLITS[split])
    if not len(place):
        raise DataError(f"{store.path}: no events in the {split} split; prepare with another.")
    time = moments.time[place]
    half = (time.max() - time.min()) / 2
    return place[time <= time.min() + half], max(half, 1.0)


def _figures(table: np.ndarray, gap: np.ndarray, cap: float) -> dict[str, float]:
    """Pinball loss of quantiles (M, levels), and coverage of the central intervals."""
    bounds = np.minimum(table, cap)
    # in logs: a miss by a factor costs the same for minutes and for weeks
    over = np.log(gap)[:, None] - np.log(np.maximum(bounds, 1))
    pinball = np.maximum(QUANTILES * over, (QUANTILES - 1) * over).mean(0)
    figures = {"pinball": float(pinball.mean()), "median_pinball": float(pinball[49])}

    # levels between which the gap lies: a point, and of one that outlasts the cap all above it
    low = (table < gap[:, None]).mean(1)
    high = np.where(gap < cap, (table <= gap[:, None]).mean(1), 1.0)
    width = np.maximum(high - low, 1e-9)
    for percent in CENTRAL:
        half = percent / 200
        shared = np.minimum(high, 0.5 + half) - np.maximum(low, 0.5 - half)
        inside = np.clip(shared, 0, None) / width
        point = (low >= 0.5 - half) & (low <= 0.5 + half)
        covered = np.where(high - low > 1e-9, inside, point)
        figures[f"coverage_{percent}"] = float(covered.mean())
    return figures


def _brier(table: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Brier score, calibration error in ten groups of equal size, and mean probability."""
    probability, real = table.ravel(), truth.ravel().astype(float)
    # of equal size, as most probabilities are near 0
    groups = np.array_split(np.argsort(probability, kind="stable"), 10)
    off = [abs(probability[g].mean() - real[g].mean()) * len(g) for g in groups if len(g)]
    return {
        "brier": float(((probability - real) ** 2).mean()),
        "calibration_error": float(sum(off) / len(real)),
        "mean": float(probability.mean()),
        "reliability": [
            [float(probability[g].mean()), float(real[g].mean())] for g in groups if len(g)
        ],
    }
