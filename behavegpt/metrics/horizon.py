"""How well a forecast of the next days names what happens, and when: OTD and T-mAP.

    otd     optimal transport distance of the first events (Mei et al. 2019, "Imputing missing
            events in continuous-time event streams"): the cheapest way to turn the forecast into
            what happened. An event is moved at a day's cost for each day; leaving one out, or
            putting one in, costs `EDIT` days. 0: equal
    t_map   temporal mean average precision (Karpukhin et al. 2024, "HoTPP"): each behavior is a
            search of its own over all users. Forecast events are ranked by probability; one is
            right when it can be matched with a real event of its behavior at most `delta` days
            away, each real event once, by the matching of the largest probability. Average
            precision, mean over behaviors and over `DELTAS`. 1: everything found, nothing else

Shapes: S users, N forecast events, R real events, P pairs of a forecast event and a behavior.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

HORIZON = 7.0  # days
DELTAS = (1 / 24, 0.25, 1.0)  # days a right event may be away
FIRST_EVENTS = 10  # that the transport distance compares
EDIT = 1.0  # days: the price of leaving out an event, and of putting one in


@dataclass(frozen=True)
class Timeline:
    """What happens to S users after their histories; each array (R,), in any order."""

    user: np.ndarray  # int64 below S
    behavior: np.ndarray  # int64 classes
    days: np.ndarray  # float64, since the last known event
    score: np.ndarray  # float64, how probable; of what really happened: 1

    def until(self, days: float) -> Timeline:
        """The events before a horizon."""
        inside = self.days < days
        return Timeline(
            self.user[inside], self.behavior[inside], self.days[inside], self.score[inside]
        )


def t_map(
    real: Timeline,
    forecast: Timeline,
    classes: int,
    *,
    horizon: float = HORIZON,
    deltas: tuple[float, ...] = DELTAS,
) -> dict[str, float]:
    """`t_map` over all classes, those that never happen counting as 0 as in the paper, and
    `t_map_w`, weighted by how often they happen. A forecast event may stand for several behaviors,
    each with its probability."""
    real, forecast = real.until(horizon), forecast.until(horizon)
    happened = np.bincount(real.behavior, minlength=classes)  # (K,)
    precisions = np.zeros((len(deltas), classes))
    for row, delta in enumerate(deltas):
        right = matched(real, forecast, classes, delta)  # (P,)
        precisions[row] = average_precisions(forecast, right, happened)

    share = happened / max(happened.sum(), 1)
    return {
        "t_map": float(precisions.mean()),
        "t_map_w": float((precisions * share).sum(1).mean()),
    }


def matched(real: Timeline, forecast: Timeline, classes: int, delta: float) -> np.ndarray:
    """(P,) bool: forecast events that are matched with a real one of their user and behavior."""
    from scipy.optimize import linear_sum_assignment

    right = np.zeros(len(forecast.days), bool)
    ours, theirs = (part.user * classes + part.behavior for part in (forecast, real))
    order, order_real = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
    searches = np.intersect1d(ours, theirs)  # of a user and a behavior, where there is something

    begin, end = (np.searchsorted(ours[order], searches, side) for side in ("left", "right"))
    first, last = (
        np.searchsorted(theirs[order_real], searches, side) for side in ("left", "right")
    )
    for low, high, low_real, high_real in zip(begin, end, first, last, strict=True):
        mine, its = order[low:high], order_real[low_real:high_real]
        near = np.abs(forecast.days[mine][:, None] - real.days[its]) <= delta  # (n, m)
        # a match is worth its probability, one that is too far away nothing
        worth = np.where(near, forecast.score[mine][:, None], 0.0)
        rows, columns = linear_sum_assignment(worth, maximize=True)
        right[mine[rows]] = near[rows, columns]

    return right


def average_precisions(forecast: Timeline, right: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """(K,) the area under precision over recall of each class, its forecast events ranked by
    score; 0 where nothing happened."""
    order = np.lexsort((-forecast.score, forecast.behavior))
    behavior, score = forecast.behavior[order], forecast.score[order]
    right = right[order]

    begin = np.searchsorted(behavior, np.arange(len(happened)))  # (K,)
    # equal scores are taken together, as no threshold tells them apart: (P,) the last of them
    last = np.append((np.diff(behavior) != 0) | (np.diff(score) != 0), True)[: len(order)]
    end = np.flatnonzero(last)[np.cumsum(last) - last]

    rank = end - begin[behavior] + 1
    total = np.concatenate([[0], np.cumsum(right)])
    found = total[end + 1] - total[begin[behavior]]

    sums = np.bincount(behavior, weights=right * found / rank, minlength=len(happened))
    return np.asarray(sums / np.maximum(happened, 1))


def otd(real: Timeline, forecast: Timeline, users: int, *, events: int = FIRST_EVENTS) -> float:
    """Mean over users of the distance of their first `events` events, in days."""
    from scipy.optimize import linear_sum_assignment

    parts = [_first(part, users, events) for part in (forecast, real)]
    total = 0.0
    for ours, theirs in zip(*parts, strict=True):
        moved = np.abs(forecast.days[ours][:, None] - real.days[theirs])  # (n, m)
        other = forecast.behavior[ours][:, None] != real.behavior[theirs]
        # left out and put in again, where that is cheaper than to move, or the behavior differs
        cost = np.where(other, 2 * EDIT, np.minimum(moved, 2 * EDIT))
        total += cost[linear_sum_assignment(cost)].sum() + EDIT * abs(len(ours) - len(theirs))

    return float(total / max(users, 1))


def _first(part: Timeline, users: int, events: int) -> list[np.ndarray]:
    """The indices of each user's first events."""
    order = np.lexsort((part.days, part.user))
    begin = np.searchsorted(part.user[order], np.arange(users + 1))
    return [order[low : min(high, low + events)] for low, high in itertools.pairwise(begin)]
