"""When and where without a head: from what each user was observed to do, not from the model.

    observed   a random one of the user's own time gaps; the place of a random own event like the
               one drawn
    typical    the user's median time gap; the user's most frequent place of events like the one
               drawn

"Like" means the same event label, or the whole history if the user never did that. The history is
the one given: generated events add nothing to it. A user with one event has no gap: a day is taken.

Shapes: N rows (a row is one sample of one user), H events of a padded history.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from behavegpt.data.times import DAY
from behavegpt.generation.sampling import pick

LONGEST = 2048  # own events looked back on


class OwnPast:
    """The given histories of N rows, padded to H events; row n owns events begin[n] : end[n] of
    flat columns."""

    def __init__(
        self, columns: Mapping[str, np.ndarray], begin: np.ndarray, end: np.ndarray
    ) -> None:
        length = np.minimum(end - begin, LONGEST)
        index = (end - length)[:, None] + np.arange(int(length.max()))
        self.real = index < end[:, None]  # (N, H)

        # behind a history its last event again, which nobody reads
        index = np.minimum(index, end[:, None] - 1)
        self.ids = {
            name: np.asarray(column)[index].astype(np.int64) for name, column in columns.items()
        }
        self.gap = np.diff(self.ids.pop("time"), axis=1)  # (N, H - 1)
        self.has_gap = self.real[:, 1:]

    def take(self, rows: np.ndarray) -> None:
        """Keep the rows (n,) only."""
        self.real, self.gap, self.has_gap = self.real[rows], self.gap[rows], self.has_gap[rows]
        self.ids = {name: ids[rows] for name, ids in self.ids.items()}

    def time_gap(self, u: np.ndarray | None) -> np.ndarray:
        """Seconds (N,) to the next event: a random own gap by uniform numbers (N,), the median
        without them."""
        alone = ~self.has_gap.any(axis=1)
        if alone.all():
            return np.full(len(alone), DAY)

        if u is None:
            gaps = np.where(self.has_gap, self.gap, np.nan)
            gaps[alone] = DAY
            return np.floor(np.nanmedian(gaps, axis=1)).astype(np.int64)

        weight = torch.from_numpy(self.has_gap.astype(np.float32))
        chosen = pick(weight, torch.from_numpy(u)).numpy()
        chosen = np.minimum(chosen, self.gap.shape[1] - 1)  # of rows without a gap
        return np.where(alone, DAY, self.gap[np.arange(len(u)), chosen])

    def like(
        self, field: str, given: str, ids: np.ndarray, u: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) of `field` at own events whose `given` is `ids` (N,), and whether there was one,
        (N,) bool.

        A random one by uniform numbers (N,), the most frequent one without them; from all own
        events if none is like.
        """
        match = self.real & (self.ids[given] == ids[:, None])  # (N, H)
        is_like = match.any(axis=1)
        match = np.where(is_like[:, None], match, self.real)

        values, rows = self.ids[field], np.arange(len(ids))
        if u is not None:
            chosen = pick(torch.from_numpy(match.astype(np.float32)), torch.from_numpy(u)).numpy()
            return values[rows, chosen], is_like

        # a key for each (row, value), so that one np.unique counts the values of all rows
        key = np.where(match, values, -1) + rows[:, None] * (values.max() + 2)
        _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        often = np.where(match, counts[inverse].reshape(key.shape), 0)
        return values[rows, often.argmax(axis=1)], is_like
