"""Metrics of next-basket prediction: a ranking of the classes against the set of those that came.

With B the behaviors of the basket and r_b the rank of each, from 0, among all classes:

    recall@k = |{b in B: r_b < k}| / |B|
    ndcg@k   = sum over b in B with r_b < k of 1 / log2(r_b + 2), divided by the sum of the
               first min(k, |B|) of 1 / log2(i + 2), i = 0, 1, ..., the most that is possible
    hit@k    = 1 if any r_b < k, else 0

each averaged over baskets. macro_recall@k averages over the classes the share of their baskets in
which they are among the k best, so that rare behaviors count as much as frequent ones.

Shapes: N targets of M baskets, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUTS = (1, 3, 5, 10)


def basket_figures(
    ranks: np.ndarray, basket: np.ndarray, target: np.ndarray, ks: Sequence[int] = CUTS
) -> dict[str, float]:
    """Figures of targets (N,): their ranks from 0, the basket (N,) of each, and its class (N,).

    >>> figures = basket_figures(np.array([0, 5]), np.array([7, 7]), np.array([2, 3]), [3])
    >>> figures["recall@3"], round(figures["ndcg@3"], 4), figures["hit@3"]
    (0.5, 0.6131, 1.0)
    """
    number = np.unique(basket, return_inverse=True)[1]  # (N,)
    size = np.bincount(number)  # (M,)
    support = np.bincount(target)  # (K,)

    figures: dict[str, float] = {"baskets": len(size)}
    for k in ks:
        inside = ranks < k  # (N,)
        found = np.bincount(number, inside, len(size))  # (M,)
        gain = np.where(inside, 1 / np.log2(ranks + 2.0), 0.0)
        ideal = np.append(0, np.cumsum(1 / np.log2(np.arange(k) + 2.0)))  # (k + 1,)

        figures[f"recall@{k}"] = float((found / size).mean())
        figures[f"ndcg@{k}"] = float(
            (np.bincount(number, gain, len(size)) / ideal[np.minimum(size, k)]).mean()
        )
        figures[f"hit@{k}"] = float((found > 0).mean())
        of_class = np.bincount(target, inside, len(support))
        figures[f"macro_recall@{k}"] = float(
            (of_class / np.maximum(support, 1))[support > 0].mean()
        )
    return figures


def ndcg_of_scores(scores: np.ndarray, member: np.ndarray, k: int) -> np.ndarray:
    """ndcg@k (M,) of scores (M, K), where member (M, K) bool says what came; of equal scores the
    lower class goes first."""
    k = min(k, scores.shape[1])
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # (M, k)
    gain = 1 / np.log2(np.arange(k) + 2.0)
    ideal = np.append(0, np.cumsum(gain))[np.minimum(member.sum(1), k)]
    found = np.take_along_axis(member, top, axis=1) @ gain
    return np.divide(found, ideal, out=np.zeros(len(found)), where=ideal > 0)
