"""A quick look at what user vectors know: ridge regression from one window, AUROC in the next, for
the same clients.

Seconds instead of the evaluator's minutes; to compare members with each other and with noise, not
with a leaderboard.
"""

from __future__ import annotations

import numpy as np


def probe(
    vectors: np.ndarray, train: np.ndarray, validation: np.ndarray, ridge: float = 1.0
) -> float:
    """Mean AUROC over the labels that occur in both windows; vectors (N, D), targets (N, O) of 0
    and 1.

    One linear map W = (X'X + ridge N 1)^-1 X'Y on standardized columns, fitted on `train`. NaN when
    no label occurs.
    """
    x = vectors.astype(np.float32)  # (N, D)
    x -= x.mean(axis=0)
    deviation = np.sqrt(np.einsum("nd,nd->d", x, x) / len(x))
    x /= np.where(deviation > 0, deviation, 1)

    # labels that are all 0 or all 1 in a window have no AUROC
    used = [
        column
        for column in range(train.shape[1])
        if _both(train[:, column]) and _both(validation[:, column])
    ]
    if not used:
        return float("nan")

    y = train[:, used] - train[:, used].mean(axis=0, dtype=np.float32)  # (N, O)
    weights = np.linalg.solve(  # (D, O)
        x.T @ x + ridge * len(x) * np.eye(x.shape[1], dtype=np.float32), x.T @ y
    )
    return float(np.mean(auroc(x @ weights, validation[:, used] > 0)))


def auroc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column (O,) from scores (N, O) and bool targets (N, O); ties
    count half."""
    from scipy.stats import rankdata

    positives = targets.sum(axis=0, dtype=np.float64)  # (O,)
    # Mann-Whitney: the sum of the positives' ranks, less what it is at least
    ranks = (rankdata(scores, axis=0) * targets).sum(axis=0)  # (O,)
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(targets) - positives))


def noise(clients: int, dimensions: int = 64, seed: int = 0) -> np.ndarray:
    """Gaussian vectors (N, D) float32. They score above 0.5: the clients of both windows are the
    same."""
    return np.random.default_rng(seed).standard_normal((clients, dimensions), np.float32)


def _both(column: np.ndarray) -> bool:
    return bool(column.any() and not column.all())
