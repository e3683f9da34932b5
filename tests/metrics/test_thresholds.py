"""Thresholds against a brute-force search, and what they do to rows that they did not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from behavegpt.metrics.ascent import GRID, Ascent, Rows
from behavegpt.metrics.thresholds import (
    Search,
    candidates,
    figures_of,
    groups_of,
    learn,
    start_of,
)

PRIOR = np.array([0.5, 0.2, 0.15, 0.08, 0.05, 0.02])
COUNTS = (PRIOR * 10_000).astype(int)


def drawn(seed: int, rows: int, bias: np.ndarray | float = 0.0, users: int = 40) -> Rows:
    """Targets drawn from probabilities that differ by row; what the model says is off by `bias`."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(PRIOR * 3, rows) + 1e-9
    p /= p.sum(1, keepdims=True)
    target = (p.cumsum(1) < rng.random((rows, 1))).sum(1).clip(max=len(PRIOR) - 1)
    logits = torch.from_numpy(np.log(p) + bias)
    chosen = candidates(logits, torch.from_numpy(np.log(PRIOR)))
    return Rows(*chosen, target, np.arange(rows) % users)


@pytest.mark.parametrize("objective", ["rec_m", "f1_m"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("least", [1, 30])
def test_every_move_is_the_best_on_the_grid(objective: str, weight: float, least: int) -> None:
    rows = drawn(0, 200)
    group = groups_of(np.bincount(rows.target, minlength=6), COUNTS, least)
    start = start_of(PRIOR, 4.0)
    ascent = Ascent(rows, start, group)

    def total(moves: np.ndarray) -> float:
        figures = figures_of(rows, start + moves[group], 6)
        return float(figures[objective] + weight * figures["rec_w"])

    before = total(ascent.moves)
    for place in (*range(ascent.groups), 0):
        ascent._move(place, weight, objective)
        others = np.arange(ascent.groups) != place
        best = max(total(np.where(others, ascent.moves, move)) for move in GRID)
        assert total(ascent.moves) == pytest.approx(best, abs=1e-12)
        assert best >= before - 1e-12
        before = best

        # the best two of each row are kept up with
        scores = ascent.value - ascent.moves[ascent.member]
        ranked = np.sort(scores, axis=1)
        for kept, score in ((ascent.first, ranked[:, -1]), (ascent.second, ranked[:, -2])):
            found = np.take_along_axis(scores, kept[:, None], 1)[:, 0]
            np.testing.assert_array_equal(found, score)


@pytest.mark.parametrize("objective", ["rec_m", "f1_m"])
def test_fresh_rows_gain_where_a_model_is_off(objective: str) -> None:
    bias = np.array([0.0, 1.5, -1.0, 0.0, -1.5, 0.5])
    found = learn(drawn(1, 2000, bias), COUNTS, Search(objective, 0.99, 20))
    fresh = drawn(2, 4000, bias)
    plain, better = (figures_of(fresh, values, 6) for values in (np.zeros(6), found.thresholds))
    assert better[objective] > 1.1 * plain[objective]
    assert better["rec_w"] > 0.98 * plain["rec_w"]
    # what was promised of rows that were not learned from, it holds
    assert found.figures["cross_fitted"][objective] == pytest.approx(better[objective], rel=0.05)


@pytest.mark.parametrize("keep", [0.9, 0.97, 1.0])
def test_weighted_recall_stays_as_asked(keep: float) -> None:
    found = learn(drawn(3, 1000), COUNTS, Search("rec_m", keep, 20))
    plain, fitted = (found.figures[name] for name in ("plain", "cross_fitted"))
    assert fitted["rec_w"] >= keep * plain["rec_w"] and fitted["rec_m"] >= plain["rec_m"]
    if keep < 1:
        assert fitted["rec_m"] > plain["rec_m"]


def test_permuted_classes_have_permuted_thresholds() -> None:
    rows = drawn(4, 500)
    order = np.array([3, 0, 5, 1, 4, 2])  # new class -> old class
    new = np.argsort(order)
    search = Search("rec_m", 0.95, 20)
    found = learn(rows, COUNTS, search)
    permuted = learn(
        rows._replace(classes=new[rows.classes], target=new[rows.target]), COUNTS[order], search
    )
    np.testing.assert_array_equal(permuted.thresholds, found.thresholds[order])
    np.testing.assert_array_equal(learn(rows, COUNTS, search).thresholds, found.thresholds)


GROUPS: list[tuple[list[int], list[int], int, list[int]]] = [
    ([9, 2, 1, 0, 5], [90, 20, 10, 1, 50], 3, [0, 2, 2, 2, 1]),
    ([0, 0, 0], [3, 2, 1], 5, [0, 0, 0]),  # nobody has targets
    ([2, 2, 2, 2, 1], [50, 40, 30, 20, 10], 4, [0, 0, 1, 1, 1]),  # a rest joins its neighbors
    ([4, 4], [1, 2], 4, [1, 0]),
]


@pytest.mark.parametrize("support,counts,least,wanted", GROUPS)
def test_classes_with_few_targets_share(
    support: list[int], counts: list[int], least: int, wanted: list[int]
) -> None:
    assert groups_of(np.array(support), np.array(counts), least).tolist() == wanted


def test_candidates_of_many_classes_are_the_probable_and_the_lifted() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, log_prior = (torch.randn(5, 300, generator=rng) for _ in range(2))
    log_prior = log_prior[0]
    classes, log_p = candidates(logits, log_prior)
    expected = logits.log_softmax(-1)
    half = classes.shape[1] // 2
    for row in range(5):
        assert len(set(classes[row])) == classes.shape[1] == 64
        for scores in (expected[row], expected[row] - log_prior):
            assert set(scores.topk(half).indices.tolist()) <= set(classes[row])
        np.testing.assert_allclose(log_p[row], expected[row, classes[row]], rtol=1e-6)


def test_one_class_and_one_row_a_user() -> None:
    rows = Rows(np.zeros((2, 1), int), np.zeros((2, 1)), np.zeros(2, int), np.arange(2))
    found: Any = learn(rows, np.array([7]), Search("rec_m", 0.99, 20))
    assert found.thresholds.tolist() == [0.0] and found.weight is None
