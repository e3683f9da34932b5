"""Steps between a member's vectors and the ensemble, and after it: PCA, standard scores, centering,
unit length, quantiles.

Everything goes in blocks of rows, so that a memory-mapped matrix (U, D) is never in memory as a
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from behavegpt.profiles.members import Pca, Quantile, Step

BLOCK = 2**15  # rows
QUANTILES = 1000  # points of the fitted distribution of a column
SUBSAMPLE = 200_000  # rows it is taken from
State = Mapping[str, np.ndarray]  # what one step has fitted
Blocks = Callable[[], Iterator[np.ndarray]]  # goes through the rows once, (B, D) float64 at a time


class Rows(Protocol):
    """A matrix (U, D) that is asked for some of its rows: an array, or what makes them then."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


def fit_steps(steps: Sequence[Step], vectors: Rows) -> list[State]:
    """Fit each step on what the steps before it make of `vectors` (U, D)."""
    states: list[State] = []
    for step in steps:
        # bound now: a closure over `states` would see the steps that are fitted later
        done = list(states)

        def blocks(done: Sequence[State] = done) -> Iterator[np.ndarray]:
            return transformed(steps[: len(done)], done, vectors)

        states.append(_kind(step).fit(step, blocks))

    return states


def transformed(
    steps: Sequence[Step], states: Sequence[State], vectors: Rows
) -> Iterator[np.ndarray]:
    """`vectors` (U, D) after the steps, in blocks (B, D') float64."""
    for start in range(0, len(vectors), BLOCK):
        # float64: scores of millions of rows are summed here, float16 comes last
        block = vectors[start : start + BLOCK].astype(np.float64)
        for step, state in zip(steps, states, strict=True):
            block = _kind(step).apply(state, block)
        yield block


def width_after(steps: Sequence[Step], width: int) -> int:
    """Columns left of `width` after the steps."""
    return min([width, *(step.pca for step in steps if isinstance(step, Pca))])


def _mean(blocks: Blocks) -> tuple[np.ndarray, int]:
    """Mean (D,) and number of the rows."""
    # blocks are made anew for each pass and never kept: reading twice costs less than the memory
    rows = sum(len(block) for block in blocks())
    return sum(block.sum(axis=0) for block in blocks()) / rows, rows


def _fit_pca(step: Pca, blocks: Blocks) -> State:
    """Mean (D,) and the first components (D, K) of the covariance; as many as there are columns at
    most."""
    mean, rows = _mean(blocks)
    covariance = sum((block - mean).T @ (block - mean) for block in blocks()) / max(rows - 1, 1)
    values, vectors = np.linalg.eigh(covariance)  # eigenvalues ascend
    components = vectors[:, ::-1][:, : step.pca]
    largest = components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])]  # (K,)
    components = components * np.sign(largest)  # one sign on every machine

    if step.whiten:
        variance = values[::-1][: step.pca]
        # a component without variance is noise of the arithmetic: it is not blown up, it is 0
        varies = variance > 1e-12 * variance[0]
        components = components * np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)

    return {"mean": mean, "components": components}


def _pca(state: State, block: np.ndarray) -> np.ndarray:
    return (block - state["mean"]) @ state["components"]


def _fit_scores(step: str, blocks: Blocks) -> State:
    """Mean (D,) and standard deviation (D,), 1 where a column is constant."""
    mean, rows = _mean(blocks)
    variance = sum(np.square(block - mean).sum(axis=0) for block in blocks()) / rows
    deviation = np.sqrt(variance)
    varies = deviation > 1e-12 * np.abs(mean)  # the mean of equal values is off by a rounding
    return {"mean": mean, "deviation": np.where(varies, deviation, 1)}


def _scores(state: State, block: np.ndarray) -> np.ndarray:
    return (block - state["mean"]) / state["deviation"]


def _fit_center(step: str, blocks: Blocks) -> State:
    return {"mean": _mean(blocks)[0]}  # (D,)


def _center(state: State, block: np.ndarray) -> np.ndarray:
    return block - state["mean"]


def _unit(state: State, block: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(block, axis=1, keepdims=True)
    return block / np.where(norm > 0, norm, 1)


def _fit_quantiles(step: Quantile, blocks: Blocks) -> State:
    """Quantiles (Q, D) of each column, of evenly spaced rows when there are many."""
    # every stride-th row, not the first ones: rows may come in an order
    stride = -(-sum(len(block) for block in blocks()) // SUBSAMPLE)
    sample = np.concatenate([block[::stride] for block in blocks()])
    points = np.quantile(sample, np.linspace(0, 1, QUANTILES), axis=0)  # (Q, D)
    return {"quantiles": np.maximum.accumulate(points)}  # rounding must not break the order


def _to_quantiles(state: State, block: np.ndarray) -> np.ndarray:
    """Position among the quantiles as scikit-learn defines it: the lowest value is 0, the highest
    1, and a value that spans several quantiles is put in their middle."""
    place = np.linspace(0, 1, QUANTILES)
    out = np.empty_like(block)

    for column, points in enumerate(state["quantiles"].T):
        values = block[:, column]
        # a value between equal quantiles has a range of positions: from its left end and its right
        from_below = np.interp(values, points, place)
        from_above = -np.interp(-values, -points[::-1], -place[::-1])
        middle = np.where(values >= points[-1], 1.0, (from_below + from_above) / 2)
        out[:, column] = np.where(values <= points[0], 0.0, middle)

    return out


class _Kind(NamedTuple):
    fit: Callable[[Any, Blocks], State]
    apply: Callable[[State, np.ndarray], np.ndarray]


_KINDS: dict[type | str, _Kind] = {
    Pca: _Kind(_fit_pca, _pca),
    "zscore": _Kind(_fit_scores, _scores),
    "center": _Kind(_fit_center, _center),
    "l2": _Kind(lambda step, blocks: {}, _unit),
    Quantile: _Kind(_fit_quantiles, _to_quantiles),
}


def _kind(step: Step) -> _Kind:
    return _KINDS[step if isinstance(step, str) else type(step)]
