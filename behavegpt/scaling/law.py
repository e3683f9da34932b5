"""The scaling law (eq. 5): L(N, D) = C_N N^-alpha + C_D D^-beta + L_0, for N parameters and D
events. How it is fitted is in `search`.

Shape letters: n runs, S laws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


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
        # a term that the rows leave at 0 is never balanced: log 0 is minus infinity, which is
        # clipped
        with np.errstate(divide="ignore"):
            return np.log(self.alpha * self.C_N) - np.log(self.beta * self.C_D)


class Runs(NamedTuple):
    """Logarithms (n,) of the finished runs' sizes, data and losses."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, params: ArrayLike, events: ArrayLike, loss: ArrayLike) -> Runs:
        return cls(*[np.log(np.asarray(values, float)) for values in (params, events, loss)])


def fit_factors(runs: Runs, alpha: float, beta: float) -> Law:
    """The law with given exponents: factors and floor, none negative, by least squares of relative
    errors."""
    from scipy.optimize import nnls

    terms = np.stack(  # (n, 3)
        [np.exp(-alpha * runs.n), np.exp(-beta * runs.d), np.ones_like(runs.n)], axis=1
    )
    # columns of like size: nnls compares them by size
    scale = terms.mean(axis=0)  # (3,)

    # divided by the observed loss: the errors become relative
    factors = nnls(terms / scale * np.exp(-runs.loss)[:, None], np.ones(len(runs.n)))[0] / scale
    c_n, c_d, floor = factors

    return Law(c_n, c_d, floor, np.array(alpha), np.array(beta))


def log_residuals(runs: Runs, law: Law) -> np.ndarray:
    """log of observed over expected loss (n,)."""
    return runs.loss - np.log(law.loss(np.exp(runs.n), np.exp(runs.d)))
