"""A beats B: the means are the metrics' differences, the intervals are those of users."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.metrics.bootstrap import TargetRanks, compare_ranks, user_intervals
from behavegpt.metrics.prediction import PredictionMetrics, predicted_and_rank


def test_the_means_are_the_differences_of_the_metrics():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(6, (400,), generator=generator)
    target += target > 2  # class 3 is nobody's target: it has no recall
    scores = [
        torch.randn(400, 7, generator=generator) + k * torch.eye(7)[target] for k in (0.0, 0.5, 1.0)
    ]
    ranks = [predicted_and_rank(s, target)[1].numpy() for s in scores]
    found = compare_ranks(
        np.stack(ranks[1:]), np.stack(ranks[:1]), target.numpy(), np.arange(400) // 4, draws=20
    )
    figures = [PredictionMetrics(7).update(s, target).compute() for s in scores]
    for name, difference in found.items():
        wanted = (figures[1][name] + figures[2][name]) / 2 - figures[0][name]
        assert difference.mean == pytest.approx(wanted, abs=1e-9), name
        assert difference.low < difference.mean < difference.high and difference.ahead > 0.9


def test_equal_models_tie():
    ranks = np.random.default_rng(0).integers(0, 5, (1, 300))
    found = compare_ranks(ranks, ranks, np.arange(300) % 9, np.arange(300) // 3, draws=50)
    assert all(d == (0.0, 0.0, 0.0, 0.5) for d in found.values())


def test_the_interval_is_that_of_independent_users():
    """Ten rows a user that hit or miss together: the standard error is that of the users, not of
    the rows."""
    rng = np.random.default_rng(1)
    users, rows = 400, 10
    a, b = (rng.random((1, users)) < p for p in (0.6, 0.5))
    ranks = [np.repeat(np.where(hits, 0, 9), rows, axis=1) for hits in (a, b)]
    member = np.repeat(np.arange(users), rows)
    found = compare_ranks(*ranks, np.zeros(users * rows, int), member, draws=2000)["rec_w"]
    error = (a.astype(float) - b).std() / users**0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    apart = compare_ranks(*ranks, np.zeros(users * rows, int), np.arange(users * rows), draws=300)[
        "rec_w"
    ]
    assert apart.high - apart.low < 0.5 * (found.high - found.low)


def test_seeds_that_disagree_widen_the_interval():
    target, user = np.zeros(2000, int), np.arange(2000)
    good, bad = np.zeros(2000, int), np.where(np.arange(2000) % 2, 0, 5)
    steady = compare_ranks(np.stack([good, good]), np.stack([bad, bad]), target, user, draws=200)[
        "rec_w"
    ]
    shaky = compare_ranks(np.stack([good, bad]), np.stack([bad, bad]), target, user, draws=200)[
        "rec_w"
    ]
    assert steady.low > 0.4 and shaky.low <= 0.0 < shaky.high


def test_a_reports_intervals_hold_the_figures_and_pair_the_users():
    """Ours is right wherever the other is and a little more: its interval is wide, that of the
    difference narrow."""
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(200), 10)
    luck = rng.random(200)[user]
    other = (rng.random(2000) > luck).astype(int)
    ours = np.where(rng.random(2000) < 0.1, 0, other)
    target = rng.integers(0, 4, 2000)
    found = user_intervals({"a": ours, "b": other}, target, user, "a", draws=200)
    low, high = found["intervals"]["a"]["rec_w"]
    difference = found["differences"]["b"]["rec_w"]
    assert low < (ours == 0).mean() < high and high - low > 0.05
    assert difference["mean"] == pytest.approx((ours == 0).mean() - (other == 0).mean())
    assert 0 < difference["low"] < difference["mean"] < difference["high"] and (
        difference["high"] - difference["low"] < (high - low) / 2
    )
    assert difference["ahead"] == 1 and found["draws"] == 200
    versus = compare_ranks(ours[None], other[None], target, user, draws=200)["rec_w"]
    assert versus.low == pytest.approx(difference["low"], abs=5e-3)


def test_ranks_are_collected_in_any_order():
    rows, scores = np.array([3, 5, 9, 12]), torch.eye(4)
    target = torch.tensor([0, 1, 3, 2])
    expected = predicted_and_rank(scores, target)[1].numpy()
    found = TargetRanks(rows)
    for part in ([2, 0], [3], [1]):
        found.update(scores[part], target[part], torch.from_numpy(rows[part]))
    assert found.ranks.tolist() == expected.tolist()
