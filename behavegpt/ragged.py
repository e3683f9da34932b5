"""Index arithmetic for ragged arrays: stretches of different lengths that lie one after the other
in one flat array.

Shapes: N stretches, T elements of all of them together.
"""

from __future__ import annotations

import numpy as np


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ..., then those from starts[1], ...: (T,) of stretches (N,).

    >>> ranges(np.array([5, 0]), np.array([3, 2])).tolist()
    [5, 6, 7, 0, 1]
    """
    # each stretch's start, less the place in the flat array where the stretch begins
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def positions(lengths: np.ndarray) -> np.ndarray:
    """The place (T,) of each element within its stretch.

    >>> positions(np.array([3, 2])).tolist()
    [0, 1, 2, 0, 1]
    """
    return ranges(np.zeros_like(lengths), lengths)


def owners(lengths: np.ndarray) -> np.ndarray:
    """The stretch (T,) of each element.

    >>> owners(np.array([3, 2])).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.repeat(np.arange(len(lengths)), lengths)
