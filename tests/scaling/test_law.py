"""The law and its minimizers, against other minimizers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from behavegpt.scaling.law import Law, Runs, fit_factors, log_residuals
from behavegpt.scaling.search import fit_law, leverage, refit
from tests.scaling.planted import TRUTH, planted_rows


def runs_of(rows) -> Runs:
    return Runs.of(*([row[name] for row in rows] for name in ("params", "events", "loss")))


def one_start(law: Law) -> Law:
    return Law(*(np.atleast_1d(part) for part in law))


def test_the_law_is_equation_5():
    law = Law(*map(np.array, (100.0, 20.0, 1.5, 0.5, 0.25)))
    assert law.loss(1e4, 1e8) == pytest.approx(100 / 100 + 20 / 100 + 1.5)
    assert law.loss(np.array([[1.0], [4.0]]), np.array([1.0, 16.0])).tolist() == [
        [121.5, 111.5],
        [71.5, 61.5],
    ]


@pytest.mark.parametrize("flops", [1e9, 1e13, 1e20])
def test_the_optimum_is_the_lowest_loss_for_the_operations(flops):
    sizes = np.geomspace(1, 1e12, 200_001)
    best = sizes[np.argmin(TRUTH.loss(sizes, flops / 6 / sizes))]
    params, events = TRUTH.optimum(flops)
    assert params == pytest.approx(best, rel=1e-3)
    assert 6 * params * events == pytest.approx(flops)
    assert TRUTH.size_for(events) == pytest.approx(params)


def test_a_law_without_noise_is_found_exactly():
    law = fit_law(runs_of(planted_rows(0, noise=0)))
    np.testing.assert_allclose(law, TRUTH, rtol=2e-3)


def test_with_a_wide_huber_loss_it_is_the_least_squares_of_scipy():
    runs = runs_of(planted_rows(1, noise=0.01))

    def residual(p):
        return runs.loss - np.log(
            np.exp(p[0] - p[3] * runs.n) + np.exp(p[1] - p[4] * runs.d) + np.exp(p[2])
        )

    start = [*np.log(TRUTH[:3]), 0.51, 0.23]
    expected = least_squares(
        residual, start, x_scale=[1, 1, 0.1, 0.1, 0.1], xtol=1e-14, ftol=1e-14, gtol=1e-14
    ).x
    law = fit_law(runs, delta=10.0)
    np.testing.assert_allclose(
        [law.alpha, law.beta, law.L_0], [expected[3], expected[4], np.exp(expected[2])], rtol=1e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_many_refits_at_once_find_what_single_fits_find(seed):
    runs = runs_of(planted_rows(seed))
    start = fit_law(runs)
    others = np.stack([runs_of(planted_rows(seed + 100 + i)).loss for i in range(3)])
    several = refit(runs, others, one_start(start))
    for i, loss in enumerate(others):
        same = runs._replace(loss=loss)
        one = fit_law(same)
        found = [
            np.abs(log_residuals(same, law)).sum() for law in (Law(*(x[i] for x in several)), one)
        ]
        assert found[0] <= found[1] * 1.005  # as good a minimum
        assert several.alpha[i] == pytest.approx(one.alpha, abs=0.01)


def test_a_refit_does_not_depend_on_the_other_draws():
    # lowest loss 2.66: the floor is close to it
    near = Law(*map(np.array, (300.0, 60.0, 2.65, 1.0, 0.6)))
    runs = runs_of(planted_rows(0, noise=0.001, law=near))
    start = fit_law(runs)
    alone = refit(runs, runs.loss[None], one_start(start))
    beside = refit(runs, np.stack([runs.loss, runs.loss - 0.5]), one_start(start))
    np.testing.assert_allclose([x[0] for x in beside], [x[0] for x in alone])
    assert alone.L_0[0] == pytest.approx(start.L_0, rel=1e-3)


def test_outliers_move_least_squares_but_not_the_huber_loss():
    runs = runs_of(planted_rows(2, noise=0.003, outliers=3))
    robust, squares = fit_law(runs), fit_law(runs, delta=10.0)
    assert abs(robust.alpha - TRUTH.alpha) < 0.03
    assert abs(squares.alpha - TRUTH.alpha) > 3 * abs(robust.alpha - TRUTH.alpha)


def test_with_the_true_exponents_the_factors_follow():
    law = fit_factors(runs_of(planted_rows(0, noise=0)), 0.51, 0.23)
    np.testing.assert_allclose(law, TRUTH, rtol=1e-6)


def test_leverage_is_the_change_of_the_fitted_value_by_its_own_observation():
    runs = runs_of(planted_rows(4, noise=0.005))
    law = fit_law(runs, delta=10.0)
    found = leverage(runs, law)
    assert found.sum() == pytest.approx(5)
    for i in (0, 12, 29):  # two corners and the middle of the grid
        moved = runs.loss.copy()
        moved[i] += 1e-3
        again = fit_law(runs._replace(loss=moved), delta=10.0)
        before, after = (
            np.log(one.loss(np.exp(runs.n[i]), np.exp(runs.d[i]))) for one in (law, again)
        )
        assert (after - before) / 1e-3 == pytest.approx(found[i], abs=0.02)
