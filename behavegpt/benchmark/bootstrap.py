"""Does A beat B? The same test rows, resampled user by user, and the seeds of both resampled too.

Shapes: R test rows of U users, S seeds of A, T seeds of B, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FIGURES = ("rec_w", "rec_m", "ndcg@3")
CUT = 3  # of NDCG


class Difference(NamedTuple):
    """A's figure minus B's."""

    mean: float  # over all rows and seeds
    low: float  # 2.5 % and 97.5 % of the draws
    high: float
    ahead: float  # share of the draws in which A is ahead; ties count half


def compare_ranks(
    a: np.ndarray,
    b: np.ndarray,
    target: np.ndarray,
    user: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Differences by figure, of ranks a (S, R) and b (T, R) of the truth, from 0; target (R,)
    classes, user (R,).

    A draw takes U users with replacement, with all rows of each, and as many seeds of each model as
    it has. Macro recall averages over the classes with a row in the draw.
    """
    rng = np.random.default_rng(seed)

    member = np.unique(user, return_inverse=True)[1]  # (R,) number of the user
    users = int(member.max()) + 1
    whole = _figures(np.ones(len(target)), target, a) - _figures(np.ones(len(target)), target, b)
    differences = np.zeros((draws, len(FIGURES)))

    for draw in range(draws):
        # a user with all its rows at once: the rows of one user are no independent draws
        weight = rng.multinomial(users, np.full(users, 1 / users))[member].astype(float)  # (R,)
        first = a[rng.integers(len(a), size=len(a))]  # (S, R)
        second = b[rng.integers(len(b), size=len(b))]  # (T, R)
        differences[draw] = _figures(weight, target, first) - _figures(weight, target, second)

    low, high = np.quantile(differences, [0.025, 0.975], axis=0)  # (3,)
    ahead = (differences > 0).mean(0) + 0.5 * (differences == 0).mean(0)
    values = np.stack([whole, low, high, ahead], axis=1)  # (3, 4)

    return {name: Difference(*row.tolist()) for name, row in zip(FIGURES, values, strict=True)}


def _figures(weight: np.ndarray, target: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """FIGURES (3,) of rows with weights (R,), averaged over the seeds of ranks (S, R)."""
    hit = (ranks == 0).mean(0)  # (R,)
    # of one relevant item: 1 / log2(rank + 2) within the cut
    # (R,)
    gain = np.where(ranks < CUT, 1 / np.log2(np.minimum(ranks, CUT).astype(float) + 2), 0).mean(0)
    support = np.bincount(target, weight)  # (K,) weight of each class

    # classes that the draw left out have no recall
    recall = np.bincount(target, weight * hit)[support > 0] / support[support > 0]
    return np.array([weight @ hit / weight.sum(), recall.mean(), weight @ gain / weight.sum()])
