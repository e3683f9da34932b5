"""OTD and T-mAP, against worked examples and a search over all matchings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from behavegpt.metrics.horizon import EDIT, Timeline, average_precisions, matched, otd, t_map


def timeline(*events):
    """Events of (user, behavior, days) or (user, behavior, days, score)."""
    rows = np.array([(*event, 1.0)[:4] for event in events], float).reshape(-1, 4)
    return Timeline(rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2], rows[:, 3])


def random_timeline(rng, events, users=3, classes=3):
    return Timeline(
        rng.integers(0, users, events),
        rng.integers(0, classes, events),
        rng.uniform(0, 4, events).round(1),
        rng.uniform(0.1, 1, events),
    )


REAL = timeline((0, 0, 1.0), (0, 1, 2.0), (1, 0, 3.0))


def test_a_perfect_forecast():
    assert t_map(REAL, REAL, 2) == {"t_map": 1.0, "t_map_w": 1.0}
    assert otd(REAL, REAL, 2) == 0.0


@pytest.mark.parametrize(
    "forecast,precision",
    [
        (timeline((0, 0, 1.9)), 1 / 2),  # one of two found
        (timeline((0, 0, 2.1)), 0),  # more than a day away
        (timeline((0, 0, 1.0), (0, 0, 1.1)), 1 / 4),  # a real event counts once
        (timeline((0, 0, 9.0), (0, 0, 1.0, 0.5)), 1 / 2),  # beyond the horizon: not ranked
        (timeline((1, 0, 0.1), (0, 0, 1.0, 0.5)), 1 / 4),  # a wrong one before the right one
        (timeline((1, 0, 0.1, 0.5), (0, 0, 1.0)), 1 / 2),  # and behind it
        (timeline((1, 0, 0.1), (0, 0, 1.0)), 1 / 4),  # equally probable: taken together
    ],
)
def test_average_precision_of_a_behavior(forecast, precision):
    found = t_map(REAL, forecast, 2, deltas=(1.0,))
    assert found["t_map"] == pytest.approx(precision / 2)  # nothing of the other one
    assert found["t_map_w"] == pytest.approx(precision * 2 / 3)


@pytest.mark.parametrize("seed", range(8))
def test_the_matching_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    real, forecast = random_timeline(rng, 4, 1, 1), random_timeline(rng, 5, 1, 1)
    right = matched(real, forecast, 1, delta=0.6)
    best = 0.0
    for taken in itertools.product([-1, 0, 1, 2, 3], repeat=5):
        used = [t for t in taken if t >= 0]
        near = all(
            abs(forecast.days[i] - real.days[t]) <= 0.6 for i, t in enumerate(taken) if t >= 0
        )
        if near and len(set(used)) == len(used):
            best = max(best, sum(forecast.score[i] for i, t in enumerate(taken) if t >= 0))
    assert forecast.score[right].sum() == pytest.approx(best)


def test_average_precision_is_scikit_learns_times_the_share_that_is_found():
    rng = np.random.default_rng(0)
    forecast, right = random_timeline(rng, 60), rng.random(60) < 0.4
    happened = np.array([40, 50, 60])
    found = average_precisions(forecast, right, happened)
    for k in range(3):
        of = forecast.behavior == k
        expected = average_precision_score(right[of], forecast.score[of]) * right[of].sum()
        assert found[k] == pytest.approx(expected / happened[k])


@pytest.mark.parametrize(
    "forecast,distance",
    [
        (timeline((0, 0, 1.5), (0, 1, 2.0), (1, 0, 3.0)), 0.5),  # moved by half a day
        (timeline((0, 0, 1.0), (0, 1, 9.0), (1, 0, 3.0)), 2 * EDIT),  # too far: anew
        (timeline((0, 0, 1.0), (0, 0, 2.0), (1, 0, 3.0)), 2 * EDIT),  # another behavior
        (timeline((0, 0, 1.0), (0, 1, 2.0)), EDIT),  # one is missing
        (timeline(), 3 * EDIT),
    ],
)
def test_the_transport_distance_is_the_mean_over_users(forecast, distance):
    assert otd(REAL, forecast, 2) == pytest.approx(distance / 2)
    assert otd(forecast, REAL, 2) == pytest.approx(distance / 2)  # leaving out costs as putting in


def test_only_the_first_events_are_transported():
    many = timeline(*((0, 0, float(day)) for day in range(20)))
    more = timeline(*((0, 0, float(day)) for day in range(12)))
    assert otd(many, more, 1) == 0
    assert otd(many, more, 1, events=20) == 8 * EDIT


def test_the_order_of_the_rows_changes_nothing():
    rng = np.random.default_rng(1)
    real, forecast = random_timeline(rng, 40), random_timeline(rng, 60)
    order = rng.permutation(60)
    mixed = Timeline(
        *(getattr(forecast, name)[order] for name in ("user", "behavior", "days", "score"))
    )
    assert t_map(real, mixed, 3) == pytest.approx(t_map(real, forecast, 3))
    assert otd(real, mixed, 3) == pytest.approx(otd(real, forecast, 3))
