"""The distribution of the time to a user's next moment, as `fit.py` learns it.

The location of log(gap) is linear in facts of the past; around it stands one distribution for each
group of moments. Arrays in MODEL/timing.json.

Shapes: M moments, B groups, G points of the grid, F facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from behavegpt.timing.moments import Moments

LOCATIONS, SPREADS = 12, 3  # groups of moments, by expected gap and by spread of past gaps
POINTS = 240  # of the grid of log(gap) - location
FACTS = 9  # weights of the location: six facts, label, slot, constant


@dataclass(frozen=True)
class Gaps:
    """What fit.py learned."""

    mean: float  # of log gaps
    spread: float  # standard deviation
    label: np.ndarray  # (ids,) mean log gap after a label, less `mean`
    slot: np.ndarray  # (slots of the week,) the same
    longest: float  # log of the longest gap seen; nothing is said of longer ones
    weight: np.ndarray  # (F + 1,) of the facts, the constant last
    location_edges: np.ndarray  # (LOCATIONS - 1,)
    spread_edges: np.ndarray  # (SPREADS - 1,)
    grid: np.ndarray  # (G,) log gap less location, ascending
    cdf: np.ndarray  # (B, G) share of gaps up to there; its end is below 1 where some never act
    facts: dict[str, Any]

    def place(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        """Location (M,) and group (M,) of moments."""
        known = moments.facts(self.mean, self.spread)
        location = design(known, self.label[moments.label], self.slot[moments.slot]) @ self.weight
        return location, self.group(location, known[:, 3])

    def group(self, location: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Row of `cdf` of moments (M,)."""
        column = np.searchsorted(self.spread_edges, spread)
        return np.searchsorted(self.location_edges, location) * SPREADS + column

    def reached(self, location: np.ndarray, group: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Probability (M,) that the next moment comes within `seconds` (M,)."""
        moved = np.log(np.maximum(seconds, 1)) - location
        share = np.zeros(len(location))

        for row in np.unique(group):
            mine = group == row
            share[mine] = np.interp(moved[mine], self.grid, self.cdf[row], left=0.0)
        return np.where(seconds < 1, 0.0, share)

    def quantiles(
        self, location: np.ndarray, group: np.ndarray, elapsed: np.ndarray, levels: np.ndarray
    ) -> np.ndarray:
        """Seconds from the last moment (M, levels) at which the next one has come with probability
        `levels`, given that it had not after `elapsed` (M,) seconds; inf where that is never."""
        past = self.reached(location, group, elapsed)[:, None]
        wanted = past + levels * (1 - past)
        found = np.full(wanted.shape, np.inf)

        for row in np.unique(group):
            mine, cdf = group == row, self.cdf[row]
            moved = np.interp(wanted[mine], cdf, self.grid)
            log_gap = location[mine, None] + moved
            told = (wanted[mine] <= cdf[-1]) & (log_gap <= self.longest)
            found[mine] = np.where(told, np.exp(np.minimum(log_gap, self.longest)), np.inf)
        return np.maximum(found, elapsed[:, None])

    def within(
        self, location: np.ndarray, group: np.ndarray, elapsed: np.ndarray, seconds: float
    ) -> np.ndarray:
        """Probability (M,) of a moment in the next `seconds`, given none after `elapsed` (M,)."""
        past = self.reached(location, group, elapsed)
        then = self.reached(location, group, elapsed + seconds)
        return (then - past) / np.maximum(1 - past, 1e-9)


def design(known: np.ndarray, label: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """What the location is linear in (M, F + 1): facts, means of label and slot, a constant."""
    return np.column_stack([known, label, slot, np.ones(len(known))])
