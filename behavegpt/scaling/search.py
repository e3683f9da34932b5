"""How the scaling law is fitted, as in Hoffmann et al. (2022, section 3.3): the log of the law is a
log-sum-exp of three terms, and the Huber loss of the residuals of log L is minimized from many
starts, since outliers are common and minima are several.

Shape letters: n runs, S starts or bootstrap draws, P = 5 parameters (a, b, e, alpha, beta) with C_N
= exp(a), C_D = exp(b), L_0 = exp(e). Inside the search log N and log D are centered, which frees a
from alpha and b from beta.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from behavegpt.scaling.law import Law, Runs

P = 5
DELTA = 1e-3  # of the Huber loss, Hoffmann et al.
START_EXPONENTS = (0.1, 0.3, 0.6, 1.0, 1.5)
START_FLOORS = (0.1, 0.5, 0.8, 0.95)  # L_0 as a share of the lowest loss
LARGEST_EXPONENT, SMALLEST_EXPONENT = 4.0, 1e-3
STEPS, POLISHED = 80, 4
NEAR, MOST_MINIMA = 1.2, 4  # of the best loss, minima that refits begin from too
ALIKE = 1 + 1e-4


def fit_law(runs: Runs, delta: float = DELTA) -> Law:
    """The law with the least Huber loss over all starts; the best of them are polished by scipy's
    L-BFGS-B."""
    from scipy.optimize import minimize

    # centered: a and alpha, b and beta are then nearly independent in the search
    center = (runs.n.mean(), runs.d.mean())
    n, d = runs.n - center[0], runs.d - center[1]
    starts = np.array(list(_starts(n, d, runs.loss)))  # (S, P)

    # (S, P), (S,)
    theta, value = _descend(starts, n, d, np.broadcast_to(runs.loss, (len(starts), len(n))), delta)

    bounds = list(zip(*_bounds(runs.loss), strict=True))

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        predicted, jacobian = _predict(point[None], n, d)  # (1, n), (1, n, P)

        residual = runs.loss - predicted[0]
        # the derivative of the Huber loss is the residual, clipped at delta
        slope = -jacobian[0].T @ np.clip(residual, -delta, delta)  # (P,)
        return float(_huber(residual, delta).sum()), slope

    polished = [
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
    return _law(min(polished, key=lambda result: result.fun).x[None], *center, single=True)


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

    # starts whose loss comes near the best one's, best first
    near = theta[np.argsort(value)][np.sort(value) <= NEAR * value.min() + _floor_of(runs, delta)]
    near = np.vstack([begin, near])

    # one of each: minima are told apart by their exponents, to one decimal
    _, first = np.unique(near[:, 3:].round(1), axis=0, return_index=True)
    # exponents 0.6 times as large, a floor 0.7 times as high
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
    theta = np.stack([theta for theta, _ in results])  # (starts, S, P)
    value = np.stack([value for _, value in results])  # (starts, S)
    alike = value <= value.min(axis=0) * ALIKE + _floor_of(runs, delta)  # (starts, S)
    chance = np.random.default_rng(0).random(value.shape)
    chosen = np.where(alike, chance, -1.0).argmax(axis=0)  # (S,)

    return _law(theta[chosen, np.arange(len(losses))], *center)


def condition(runs: Runs, law: Law) -> float:
    """Condition number of the law's Jacobian with columns of length 1; infinite where a parameter
    has no effect."""
    singular = np.linalg.svd(_unit_jacobian(runs, law), compute_uv=False)  # (P,) descending
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")


def leverage(runs: Runs, law: Law) -> np.ndarray:
    """How far each run draws the fit to itself (n,), between 0 and 1; the sum is P."""
    # (n, P), orthonormal: its rows' squares are the hat matrix's diagonal
    basis = np.linalg.qr(_unit_jacobian(runs, law))[0]

    return np.minimum((basis**2).sum(axis=1), 0.99)


def _unit_jacobian(runs: Runs, law: Law) -> np.ndarray:
    """d log L / d parameters (n, P), each column of length 1; 0 where a parameter has no effect."""
    center = (runs.n.mean(), runs.d.mean())
    _, jacobian = _predict(_theta(law, *center)[None], runs.n - center[0], runs.d - center[1])
    length = np.linalg.norm(jacobian[0], axis=0)  # (P,)
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
    a, b, e, alpha, beta = np.moveaxis(theta[:, :, None], 1, 0)  # each (S, 1)
    terms = np.stack(np.broadcast_arrays(a - alpha * n, b - beta * d, e), axis=-1)  # (S, n, 3)

    # log-sum-exp with the largest term taken out
    top = terms.max(axis=-1, keepdims=True)
    shares = np.exp(terms - top)  # (S, n, 3)
    total = shares.sum(axis=-1, keepdims=True)

    # d log L / d (a, b, e) are the shares of the terms; the exponents' follow by the chain rule
    shares /= total
    slopes = np.stack([-n * shares[..., 0], -d * shares[..., 1]], axis=-1)  # (S, n, 2)

    return (top + np.log(total))[..., 0], np.concatenate([shares, slopes], axis=-1)


def _huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)  # (..., n)
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
    damping = np.full(len(theta), 1e-3)  # (S,)
    predicted, jacobian = _predict(theta, n, d)
    value = _huber(losses - predicted, delta).sum(-1)  # (S,)

    for _ in range(STEPS):
        residual = losses - predicted  # (S, n)
        # the weight under which squares have the gradient of the Huber loss
        weight = np.minimum(1, delta / np.maximum(np.abs(residual), 1e-300))  # (S, n)
        weighted = jacobian * weight[..., None]  # (S, n, P)
        gradient = np.einsum("snp,sn->sp", weighted, residual)  # (S, P)
        curvature = weighted.transpose(0, 2, 1) @ jacobian  # (S, P, P)

        # Marquardt: the damping scales each parameter by its own curvature
        diagonal = np.einsum("spp->sp", curvature) + 1e-12  # (S, P)
        curvature = curvature + np.eye(P) * (damping[:, None] * diagonal)[:, None]

        # (S, P)
        trial = np.clip(theta + np.linalg.solve(curvature, gradient[..., None])[..., 0], low, high)
        trial_predicted, trial_jacobian = _predict(trial, n, d)
        trial_value = _huber(losses - trial_predicted, delta).sum(-1)

        # only steps that lower the loss are taken; the others are tried again with more damping
        good = trial_value < value  # (S,)
        theta = np.where(good[:, None], trial, theta)
        value = np.where(good, trial_value, value)
        predicted = np.where(good[:, None], trial_predicted, predicted)
        jacobian = np.where(good[:, None, None], trial_jacobian, jacobian)
        damping = np.clip(np.where(good, damping / 4, damping * 6), 1e-9, 1e9)

    return theta, value


def _law(theta: np.ndarray, n0: float, d0: float, single: bool = False) -> Law:
    a, b, e, alpha, beta = theta.T
    law = Law(np.exp(a + alpha * n0), np.exp(b + beta * d0), np.exp(e), alpha, beta)

    return Law(*[values[0] for values in law]) if single else law


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
