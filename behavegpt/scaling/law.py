"""The scaling law (eq. 5) and how it is fitted: L(N, D) = C_N N^-alpha + C_D D^-beta + L_0.

As in Hoffmann et al. (2022, section 3.3): the logarithm of the law is a log-sum-exp of three terms,
and the Huber loss of the residuals of log L is minimized from many starts, since outliers are
common and minima are several.

Shape letters: n runs, S starts or bootstrap draws, P = 5 parameters (a, b, e, alpha, beta) with C_N
= exp(a), C_D = exp(b), L_0 = exp(e). Inside the search log N and log D are centered, which frees a
from alpha and b from beta.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

P = 5
DELTA = 1e-3  # of the Huber loss, Hoffmann et al.
START_EXPONENTS = (0.1, 0.3, 0.6, 1.0, 1.5)
START_FLOORS = (0.1, 0.5, 0.8, 0.95)  # L_0 as a share of the lowest loss
LARGEST_EXPONENT, SMALLEST_EXPONENT = 4.0, 1e-3
STEPS, POLISHED = 80, 4
NEAR, MOST_MINIMA = 1.2, 4  # of the best loss, minima that refits begin from too
ALIKE = 1 + 1e-4


class Law(NamedTuple):
    """One set of parameters, or arrays (S,) of several."""

    C_N: np.ndarray
    C_D: np.ndarray
    L_0: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    def loss(self, params: ArrayLike, events: ArrayLike) -> np.ndarray:
        """Expected loss of models with `params` parameters trained on `events` events;
        broadcasts."""
        return (
            self.C_N * np.asarray(params, float) ** -self.alpha
            + self.C_D * np.asarray(events, float) ** -self.beta
            + self.L_0
        )

    def optimum(
        self, flops: ArrayLike, flops_per_param: float = 6.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and events of the lowest loss for flops = flops_per_param * N * D.

        There both terms fall equally fast: alpha C_N N^-alpha = beta C_D D^-beta.
        """
        product = np.log(np.asarray(flops, float) / flops_per_param)
        params = (self._balance() + self.beta * product) / (self.alpha + self.beta)
        # a law that rows do not pin down may ask for less than one event
        params = np.clip(params, 0, product)

        return np.exp(params), np.exp(product - params)

    def size_for(self, events: ArrayLike) -> np.ndarray:
        """Parameters for which `events` is the optimal number of events."""
        size = (self._balance() + self.beta * np.log(np.asarray(events, float))) / self.alpha
        return np.exp(np.clip(size, 0, 300))

    def _balance(self) -> np.ndarray:
        """log N * alpha - log D * beta at the optimum."""
        # a term that the rows leave at 0 is never balanced: an infinity, clipped
        with np.errstate(divide="ignore"):
            return np.log(self.alpha * self.C_N) - np.log(self.beta * self.C_D)


class Runs(NamedTuple):
    """Logarithms (n,) of the finished runs' sizes, data and losses."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, params: ArrayLike, events: ArrayLike, loss: ArrayLike) -> Runs:
        return cls(*(np.log(np.asarray(x, float)) for x in (params, events, loss)))


def fit_law(runs: Runs, delta: float = DELTA) -> Law:
    """The law with the least Huber loss over all starts; the best of them are polished by scipy's
    L-BFGS-B."""
    from scipy.optimize import minimize

    center = (runs.n.mean(), runs.d.mean())
    n, d = runs.n - center[0], runs.d - center[1]
    starts = np.array(list(_starts(n, d, runs.loss)))
    theta, value = _descend(starts, n, d, np.broadcast_to(runs.loss, (len(starts), len(n))), delta)
    bounds = list(zip(*_bounds(runs.loss), strict=True))

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        predicted, jacobian = _predict(point[None], n, d)
        residual = runs.loss - predicted[0]
        return float(_huber(residual, delta).sum()), -jacobian[0].T @ np.clip(
            residual, -delta, delta
        )

    found = [
        minimize(
            objective,
            theta[i],
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 2000},
        )
        for i in np.argsort(value)[:POLISHED]
    ]
    return _law(min(found, key=lambda result: result.fun).x[None], *center, single=True)


def fit_factors(runs: Runs, alpha: float, beta: float) -> Law:
    """The law with given exponents: factors and floor, none negative, by least squares of relative
    errors."""
    from scipy.optimize import nnls

    terms = np.stack(
        [np.exp(-alpha * runs.n), np.exp(-beta * runs.d), np.ones_like(runs.n)], axis=1
    )
    scale = terms.mean(axis=0)
    factors = nnls(terms / scale * np.exp(-runs.loss)[:, None], np.ones(len(runs.n)))[0] / scale
    c_n, c_d, floor = factors

    return Law(c_n, c_d, floor, np.array(alpha), np.array(beta))


def minima(runs: Runs, law: Law, delta: float = DELTA) -> Law:
    """(S,) laws to begin refits from: the fitted one, and others that the starts lead to and that
    fit nearly as well.

    Beside them a flatter one with a lower floor: the other end of the valley that the minimum lies
    in.
    """
    center = (runs.n.mean(), runs.d.mean())
    n, d = runs.n - center[0], runs.d - center[1]
    begin = _theta(law, *center)
    starts = np.array(list(_starts(n, d, runs.loss)))
    theta, value = _descend(starts, n, d, np.broadcast_to(runs.loss, (len(starts), len(n))), delta)
    near = theta[np.argsort(value)][np.sort(value) <= NEAR * value.min() + _floor_of(runs, delta)]
    near = np.vstack([begin, near])
    # minima with other exponents
    _, first = np.unique(near[:, 3:].round(1), axis=0, return_index=True)
    flat = begin * [1, 1, 1, 0.6, 0.6] + [0, 0, np.log(0.7), 0, 0]

    return _law(np.vstack([near[np.sort(first)[:MOST_MINIMA]], flat]), *center)


def refit(runs: Runs, losses: np.ndarray, starts: Law, delta: float = DELTA) -> Law:
    """The laws (S,) of S other log losses (S, n) of the same runs, all at once, each the best from
    all `starts`.

    Of starts that end equally well each draw takes one at random: where rows do not determine the
    law, the draws must not all stand where the first start happened to lead.
    """
    center = (runs.n.mean(), runs.d.mean())
    n, d = runs.n - center[0], runs.d - center[1]
    points = [_theta(Law(*parts), *center) for parts in zip(*starts, strict=True)]
    results = [_descend(np.tile(point, (len(losses), 1)), n, d, losses, delta) for point in points]
    # (starts, S, P), (starts, S)
    theta, value = (np.stack(parts) for parts in zip(*results, strict=True))
    alike = value <= value.min(axis=0) * ALIKE + _floor_of(runs, delta)
    chance = np.random.default_rng(0).random(value.shape)
    chosen = np.where(alike, chance, -1.0).argmax(axis=0)

    return _law(theta[chosen, np.arange(len(losses))], *center)


def condition(runs: Runs, law: Law) -> float:
    """Condition number of the law's Jacobian with columns of length 1; infinite where a parameter
    has no effect."""
    singular = np.linalg.svd(_unit_jacobian(runs, law), compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")


def log_residuals(runs: Runs, law: Law) -> np.ndarray:
    """log of observed over expected loss (n,)."""
    return runs.loss - np.log(law.loss(np.exp(runs.n), np.exp(runs.d)))


def leverage(runs: Runs, law: Law) -> np.ndarray:
    """How far each run draws the fit to itself (n,), between 0 and 1; the sum is P."""
    basis = np.linalg.qr(_unit_jacobian(runs, law))[0]
    return np.minimum((basis**2).sum(axis=1), 0.99)


def _unit_jacobian(runs: Runs, law: Law) -> np.ndarray:
    """d log L / d parameters (n, P), each column of length 1; 0 where a parameter has no effect."""
    center = (runs.n.mean(), runs.d.mean())
    _, jacobian = _predict(_theta(law, *center)[None], runs.n - center[0], runs.d - center[1])
    length = np.linalg.norm(jacobian[0], axis=0)
    return np.divide(jacobian[0], length, out=np.zeros_like(jacobian[0]), where=length > 1e-12)


def _floor_of(runs: Runs, delta: float) -> float:
    """A difference of Huber losses below which fits are alike: residuals of a thousandth of a
    percent."""
    return len(runs.n) * 0.5 * min(delta, 1e-5) ** 2


def _starts(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> Iterator[np.ndarray]:
    """Exponents and floors on a grid; the two factors by linear least squares of L - L_0."""
    lowest = float(np.exp(loss.min()))
    for alpha in START_EXPONENTS:
        for beta in START_EXPONENTS:
            for share in START_FLOORS:
                terms = np.stack([np.exp(-alpha * n), np.exp(-beta * d)], axis=1)
                factors = np.linalg.lstsq(terms, np.exp(loss) - share * lowest, rcond=None)[0]
                a, b = np.log(np.maximum(factors, 1e-3 * lowest))
                yield np.array([a, b, np.log(share * lowest), alpha, beta])


def _bounds(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest parameters (..., P) for log losses (..., n); the factors are those of
    centered logarithms."""
    low, high = losses.min(axis=-1), losses.max(axis=-1)
    steepest, flattest = np.full_like(low, LARGEST_EXPONENT), np.full_like(low, SMALLEST_EXPONENT)
    return (
        np.stack([low - 16, low - 16, low - 7, flattest, flattest], axis=-1),
        np.stack([high + 4, high + 4, low, steepest, steepest], axis=-1),
    )


def _predict(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L (S, n) of parameters (S, P), and its derivatives (S, n, P)."""
    a, b, e, alpha, beta = (theta[:, i, None] for i in range(P))
    terms = np.stack(np.broadcast_arrays(a - alpha * n, b - beta * d, e), axis=-1)
    top = terms.max(axis=-1, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(axis=-1, keepdims=True)
    shares /= total
    slopes = np.stack([-n * shares[..., 0], -d * shares[..., 1]], axis=-1)

    return (top + np.log(total))[..., 0], np.concatenate([shares, slopes], axis=-1)


def _huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _descend(
    theta: np.ndarray, n: np.ndarray, d: np.ndarray, losses: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Minimize S Huber losses side by side from theta (S, P) for log losses (S, n); returns
    parameters and values (S,).

    Levenberg-Marquardt on iteratively re-weighted squares: the weight of a residual r is min(1,
    delta / |r|).
    """
    low, high = _bounds(losses)
    theta = np.clip(theta, low, high)
    damping = np.full(len(theta), 1e-3)
    predicted, jacobian = _predict(theta, n, d)
    value = _huber(losses - predicted, delta).sum(-1)

    for _ in range(STEPS):
        residual = losses - predicted
        weight = np.minimum(1, delta / np.maximum(np.abs(residual), 1e-300))
        weighted = jacobian * weight[..., None]
        gradient = np.einsum("snp,sn->sp", weighted, residual)
        curvature = weighted.transpose(0, 2, 1) @ jacobian
        diagonal = np.einsum("spp->sp", curvature) + 1e-12
        curvature = curvature + np.eye(P) * (damping[:, None] * diagonal)[:, None]
        trial = np.clip(theta + np.linalg.solve(curvature, gradient[..., None])[..., 0], low, high)
        trial_predicted, trial_jacobian = _predict(trial, n, d)
        trial_value = _huber(losses - trial_predicted, delta).sum(-1)
        good = trial_value < value
        theta = np.where(good[:, None], trial, theta)
        value = np.where(good, trial_value, value)
        predicted = np.where(good[:, None], trial_predicted, predicted)
        jacobian = np.where(good[:, None, None], trial_jacobian, jacobian)
        damping = np.clip(np.where(good, damping / 4, damping * 6), 1e-9, 1e9)

    return theta, value


def _law(theta: np.ndarray, n0: float, d0: float, single: bool = False) -> Law:
    a, b, e, alpha, beta = theta.T
    law = Law(np.exp(a + alpha * n0), np.exp(b + beta * d0), np.exp(e), alpha, beta)
    return Law(*(x[0] for x in law)) if single else law


def _theta(law: Law, n0: float, d0: float) -> np.ndarray:
    """The centered parameters (P,) of one law."""
    return np.array(
        [
            np.log(law.C_N) - law.alpha * n0,
            np.log(law.C_D) - law.beta * d0,
            np.log(law.L_0),
            law.alpha,
            law.beta,
        ]
    )
