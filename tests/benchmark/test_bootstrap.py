"""A beats B: the means are the metrics' differences, the intervals are those of users."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.benchmark.bootstrap import compare_ranks
from behavegpt.metrics.prediction import PredictionMetrics, predicted_and_rank


def test_the_means_are_the_differences_of_the_metrics():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(7, (400,), generator=generator)
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
