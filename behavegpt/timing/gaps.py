"""The distribution of the time to a user's next moment, learned from gaps of the training split.

The location of log(gap) is linear in facts of the past; around it, one distribution for each group
of moments, by Kaplan-Meier: the gaps that the end of the training window cut off count as longer
than they were seen. The levels are calibrated on the validation split. Arrays in MODEL/timing.json.

Shapes: M moments, B groups, G points of the grid, F facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from behavegpt.data.store import SPLITS, EventStore
from behavegpt.errors import DataError
from behavegpt.timing.moments import Moments, moments_of_store

LOCATIONS, SPREADS = 12, 3  # groups of moments, by expected gap and by spread of past gaps
POINTS = 240  # of the grid of log(gap) - location
LEVELS = np.linspace(0, 1, 201)
FACTS = 9  # weights of the location: six facts, label, slot, constant
PRIOR = 50.0  # gaps of everybody that are added to those of a label or a slot of the week
POOLED = 200.0  # the same of a group's distribution
SURE = 100.0  # validation gaps at which half of their correction is believed
LEAST = 20  # gaps of the training split without which nothing is learned


class Observed(NamedTuple):
    """Gaps of a split: of n moments."""

    place: np.ndarray  # (n,) int64, which moments
    log_gap: np.ndarray  # (n,) float64, until the next moment, or the end of the split
    ended: np.ndarray  # (n,) bool, whether the next moment came before the end


@dataclass(frozen=True)
class Gaps:
    """What `fit_gaps` learned."""

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
        location = _design(known, self.label[moments.label], self.slot[moments.slot]) @ self.weight
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


def observed(store: EventStore, moments: Moments, split: str) -> Observed:
    """The gaps that begin in a split; those that it cuts off end where it does."""
    number = np.asarray(store.columns["split"])[moments.row]
    place = np.flatnonzero(number == SPLITS[split])
    gap = moments.gap[place]

    # a user's first moment of a later split ends the window, whatever the rule of the split
    following = number[np.minimum(place + 1, len(moments) - 1)]
    later = ~np.isnan(gap) & (following != SPLITS[split])
    end = moments.time[place].max(initial=0) - moments.time[place]
    left = np.where(later, np.minimum(np.nan_to_num(gap), end), end)

    ended = ~np.isnan(gap) & ~later
    length = np.where(ended, gap, left)
    some = length >= 1
    return Observed(place[some], np.log(length[some]), ended[some])


def fit_gaps(store: EventStore, moments: Moments | None = None) -> Gaps:
    """Learn from the training split, calibrate on validation; the test split is not read.

    Raises DataError where training holds fewer than 20 gaps.
    """
    moments = moments_of_store(store) if moments is None else moments
    train = observed(store, moments, "train")
    ended = train.place[train.ended]
    if len(ended) < LEAST:
        raise DataError(
            f"{store.path}: {len(ended)} gaps between events of one user in the training split; "
            f"times are learned from {LEAST} at least. Prepare a longer log."
        )

    log_gap = train.log_gap[train.ended]
    mean, spread = float(log_gap.mean()), float(log_gap.std())
    label = _means(moments.label[ended], log_gap - mean, len(store.behaviors))
    slot = _means(moments.slot[ended], log_gap - mean, 7 * store.schema.slots)

    known = moments.facts(mean, spread)
    design = _design(known, label[moments.label], slot[moments.slot])
    # a little ridge: facts may be constant, for example where no label repeats
    square = design[ended].T @ design[ended] + 1e-3 * np.eye(design.shape[1])
    weight = np.linalg.solve(square, design[ended].T @ log_gap)

    location = design @ weight
    moved = train.log_gap - location[train.place]
    low, high = np.quantile(moved, [0.0005, 0.9995])
    gaps = Gaps(
        mean=mean,
        spread=spread,
        label=label,
        slot=slot,
        longest=float(log_gap.max()),
        weight=weight,
        location_edges=_edges(location[train.place], LOCATIONS),
        spread_edges=_edges(known[train.place, 3], SPREADS),
        grid=np.linspace(low - 0.01, high + 0.01, POINTS),
        cdf=np.zeros((LOCATIONS * SPREADS, POINTS)),
        facts={"content_hash": store.manifest.content_hash, "gaps": len(ended)},
    )

    group = gaps.group(location, known[:, 3])[train.place]
    _fill(gaps, moved, train.ended, group)
    _calibrate(gaps, moments, observed(store, moments, "valid"))
    return gaps


def kaplan_meier(value: np.ndarray, ended: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Share of values (n,) up to points (G,), where those not `ended` (n,) are only known to be
    larger. https://doi.org/10.1080/01621459.1958.10501452."""
    # of equal values, those that ended come first
    order = np.lexsort((~ended, value))
    at_risk = len(value) - np.arange(len(value))
    left = np.append(1.0, np.cumprod(1 - ended[order] / at_risk))
    return 1 - left[np.searchsorted(value[order], points, side="right")]


def _design(known: np.ndarray, label: np.ndarray, slot: np.ndarray) -> np.ndarray:
    return np.column_stack([known, label, slot, np.ones(len(known))])


def _means(ids: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
    """Mean value of each id (size,), shrunk to 0."""
    number = np.bincount(ids, minlength=size)
    return np.bincount(ids, value, minlength=size) / (number + PRIOR)


def _edges(value: np.ndarray, groups: int) -> np.ndarray:
    """Borders of groups of equal size (groups - 1,)."""
    return np.quantile(value, np.arange(1, groups) / groups)


def _fill(gaps: Gaps, moved: np.ndarray, ended: np.ndarray, group: np.ndarray) -> None:
    """Each group's distribution, a small one's with that of everybody."""
    everybody = kaplan_meier(moved, ended, gaps.grid)

    for row in range(len(gaps.cdf)):
        mine = group == row
        share = mine.sum() / (mine.sum() + POOLED)
        gaps.cdf[row] = (1 - share) * everybody
        if share:
            gaps.cdf[row] += share * kaplan_meier(moved[mine], ended[mine], gaps.grid)


def _calibrate(gaps: Gaps, moments: Moments, valid: Observed) -> None:
    """Move the levels to those that validation had: where a share g of its gaps lay below what
    was called the level u, u becomes g."""
    number = int(valid.ended.sum())
    gaps.facts["validation_gaps"] = number
    if not number:
        return

    location, group = (values[valid.place] for values in gaps.place(moments))
    level = gaps.reached(location, group, np.exp(valid.log_gap))
    right = kaplan_meier(level, valid.ended, LEVELS)
    right[0] = 0.0  # nothing comes before the last event

    believed = number / (number + SURE)
    moved = np.interp(gaps.cdf, LEVELS, right)
    gaps.cdf[:] = believed * moved + (1 - believed) * gaps.cdf
