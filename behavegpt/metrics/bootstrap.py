"""How sure is a figure, and does A beat B? The same test rows, drawn again user by user, and the
seeds of both drawn again too.

Shapes: R test rows of U users, S seeds of A, T seeds of B, K classes, M models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.metrics.prediction import predicted_and_rank

FIGURES = ("rec_w", "rec_m", "ndcg@3")
CUT = 3  # of NDCG
DRAWS = 400  # of a report's intervals
QUANTILES = (0.025, 0.975)


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
    # fixed: the same ranks give the same intervals
    rng = np.random.default_rng(seed)
    whole = _figures(np.ones(len(target)), target, a) - _figures(np.ones(len(target)), target, b)
    found = np.zeros((draws, len(FIGURES)))
    for draw, weight in enumerate(_user_weights(user, draws, rng)):
        # seeds apart from users: two models' runs have nothing to do with each other
        first, second = a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))]
        found[draw] = _figures(weight, target, first) - _figures(weight, target, second)
    return dict(zip(FIGURES, _differences(whole, found), strict=True))


class TargetRanks:
    """Collects the rank of the truth at each target row, whatever the order of the rows; those of
    several processes add up."""

    def __init__(self, rows: np.ndarray) -> None:
        """`rows` (R,): flat indices of the targets, ascending."""
        self.rows, self.sums = rows, torch.zeros(len(rows), dtype=torch.int64)

    def update(
        self, scores: torch.Tensor, target: torch.Tensor, row: torch.Tensor | np.ndarray
    ) -> None:
        """Take up scores (N, K) and targets (N,) of the rows (N,)."""
        place = np.searchsorted(self.rows, torch.as_tensor(row).cpu().numpy())
        self.sums[torch.from_numpy(place)] = predicted_and_rank(scores, target)[1].cpu()

    @property
    def ranks(self) -> np.ndarray:
        """(R,) from 0."""
        return self.sums.numpy()


def user_intervals(
    ranks: Mapping[str, np.ndarray],
    target: np.ndarray,
    user: np.ndarray,
    ours: str,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """95 % intervals of models by their ranks (R,), and of ours minus each other.

    `intervals`: model -> figure -> [low, high]; `differences`: other model -> figure -> a
    Difference as a dict. All models are scored on the same draws of users, so that what makes a
    draw hard for all of them does not blur a difference. target (R,) classes, user (R,).
    """
    rng = np.random.default_rng(seed)
    names, weights = list(ranks), np.ones(len(target))
    whole = np.stack([_figures(weights, target, ranks[name][None]) for name in names])
    found = np.zeros((draws, *whole.shape))  # (draws, M, 3)
    for draw, weight in enumerate(_user_weights(user, draws, rng)):
        for model, name in enumerate(names):
            found[draw, model] = _figures(weight, target, ranks[name][None])
    edges = np.quantile(found, QUANTILES, axis=0)  # (2, M, 3)
    own, differences = names.index(ours), {}
    for k, name in enumerate(names):
        if k != own:
            found_k = _differences(whole[own] - whole[k], found[:, own] - found[:, k])
            differences[name] = {
                figure: difference._asdict()
                for figure, difference in zip(FIGURES, found_k, strict=True)
            }
    intervals = {
        name: dict(zip(FIGURES, edges[:, k].T.tolist(), strict=True))
        for k, name in enumerate(names)
    }
    return {"intervals": intervals, "differences": differences, "draws": draws}


def _user_weights(user: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each row (R,) is in a draw of as many users as there are, with replacement."""
    # whole users: their events are alike, and rows drawn apart would make intervals too narrow
    member = np.unique(user, return_inverse=True)[1]
    users = int(member.max()) + 1
    for _ in range(draws):
        yield rng.multinomial(users, np.full(users, 1 / users))[member].astype(float)


def _differences(whole: np.ndarray, found: np.ndarray) -> list[Difference]:
    """Of each figure: its value over all rows, and what the draws (draws, 3) say of it."""
    low, high = np.quantile(found, QUANTILES, axis=0)
    ahead = (found > 0).mean(0) + 0.5 * (found == 0).mean(0)
    return [Difference(*row) for row in np.stack([whole, low, high, ahead], axis=1).tolist()]


def _figures(weight: np.ndarray, target: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """FIGURES (3,) of rows with weights (R,), averaged over the seeds of ranks (S, R)."""
    # over the seeds first: a row's weight is the same for all of them
    hit = (ranks == 0).mean(0)
    gain = np.where(ranks < CUT, 1 / np.log2(np.minimum(ranks, CUT).astype(float) + 2), 0).mean(0)

    support = np.bincount(target, weight)
    recall = np.bincount(target, weight * hit)[support > 0] / support[support > 0]
    return np.array([weight @ hit / weight.sum(), recall.mean(), weight @ gain / weight.sum()])
