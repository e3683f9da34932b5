"""The distribution of gaps, learned from histories.

By Kaplan-Meier: the gaps that the end of a window cut off count as longer than they were seen. The
levels are calibrated over several windows, each by what was learned from the events before it:
validation and, of its length, those before it in training. One window alone would take its own
pace for the one to come.

Shapes: M moments, n gaps of a window, B groups, G points of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import DataError
from behavegpt.timing.gaps import LOCATIONS, POINTS, SPREADS, Gaps, design
from behavegpt.timing.moments import Moments, moments_of_histories, moments_of_store

LEVELS = np.linspace(0, 1, 201)
PRIOR = 50.0  # gaps of everybody that are added to those of a label or a slot of the week
POOLED = 200.0  # the same of a group's distribution
SURE = 100.0  # gaps at which half of their correction is believed
LEAST = 20  # gaps without which nothing is learned
WINDOWS = 4  # of calibration
ENOUGH = 500  # gaps before a window of training, by which it is judged
CALIBRATES = 0.15  # share of a log's time, at its end, that stands for a validation split


class Observed(NamedTuple):
    """Gaps of a window: of n moments."""

    place: np.ndarray  # (n,) int64, which moments
    log_gap: np.ndarray  # (n,) float64, until the next moment, or the end of the window
    ended: np.ndarray  # (n,) bool, whether the next moment came before the end


def fit_gaps(store: EventStore, moments: Moments | None = None) -> Gaps:
    """Learn from the training split, calibrate on validation and training; the test split is not
    read.

    Raises DataError where training holds fewer than 20 gaps.
    """
    moments = moments_of_store(store) if moments is None else moments
    number = np.asarray(store.columns["split"])[moments.row]
    windows = [number == SPLITS[name] for name in ("train", "valid")]
    whose = f"{store.path}: the training split"
    gaps = _fit(moments, windows, (len(store.behaviors), store.schema), whose)
    gaps.facts["content_hash"] = store.manifest.content_hash
    return gaps


def fit_histories(encoded: EncodedHistories, tokenizer: EventTokenizer) -> Gaps:
    """Learn from histories all of which are past; their last part calibrates.

    Raises DataError where there are fewer than 20 gaps.
    """
    schema = tokenizer.event_schema
    moments = moments_of_histories(encoded, schema)
    first, last = moments.time.min(), moments.time.max()
    late = moments.time > last - CALIBRATES * (last - first)

    windows = [~late, late]
    gaps = _fit(moments, windows, (len(tokenizer.behaviors), schema), "the log's first part")
    gaps.facts["end"] = int(last)
    return gaps


def observed(moments: Moments, chosen: np.ndarray) -> Observed:
    """The gaps that begin in the window of the moments `chosen` (M,); those that it cuts off end
    where it does."""
    place = np.flatnonzero(chosen)
    gap = moments.gap[place]

    # a user's first moment beyond it ends the window, whatever the rule of the split
    following = chosen[np.minimum(place + 1, len(moments) - 1)]
    later = ~np.isnan(gap) & ~following
    end = moments.time[place].max(initial=0) - moments.time[place]
    left = np.where(later, np.minimum(np.nan_to_num(gap), end), end)

    ended = ~np.isnan(gap) & ~later
    length = np.where(ended, gap, left)
    some = length >= 1
    return Observed(place[some], np.log(length[some]), ended[some])


def kaplan_meier(value: np.ndarray, ended: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Share of values (n,) up to points (G,), where those not `ended` (n,) are only known to be
    larger. https://doi.org/10.1080/01621459.1958.10501452."""
    # of equal values, those that ended come first
    order = np.lexsort((~ended, value))
    at_risk = len(value) - np.arange(len(value))
    left = np.append(1.0, np.cumprod(1 - ended[order] / at_risk))
    return 1 - left[np.searchsorted(value[order], points, side="right")]


def _fit(
    moments: Moments, windows: list[np.ndarray], sizes: tuple[int, EventSchema], whose: str
) -> Gaps:
    """Learn from the moments of the first window (M,), calibrate on both."""
    train, valid = windows
    seen = observed(moments, train)
    number = int(seen.ended.sum())
    if number < LEAST:
        raise DataError(
            f"{whose} holds {number} gaps between events of one user; times are learned from "
            f"{LEAST} at least. Take a longer log."
        )

    gaps = _learn(moments, seen, sizes)
    judged = [(gaps, observed(moments, valid))]
    for before, window in _earlier(moments, train, valid):
        past = observed(moments, before)
        if past.ended.sum() >= ENOUGH:
            judged.append((_learn(moments, past, sizes), observed(moments, window)))

    facts: dict[str, Any] = {"gaps": number, "validation_gaps": int(judged[0][1].ended.sum())}
    gaps.facts.update(facts, windows=len(judged))
    _calibrate(gaps, moments, judged)
    return gaps


def _earlier(
    moments: Moments, train: np.ndarray, valid: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows in training of the length of validation, the last one first: the moments (M,) of
    training before each, and its own."""
    if not valid.any():
        return
    begin, end = moments.time[valid].min(), moments.time[valid].max() + 1
    span = end - begin

    for back in range(1, WINDOWS):
        opens = begin - back * span
        window = train & (moments.time >= opens) & (moments.time < opens + span)
        yield train & (moments.time < opens), window


def _learn(moments: Moments, seen: Observed, sizes: tuple[int, EventSchema]) -> Gaps:
    """The distribution of the gaps `seen`, its levels not yet calibrated; `sizes`: of the
    vocabulary, and of a day and a week."""
    labels, schema = sizes
    ended = seen.place[seen.ended]
    log_gap = seen.log_gap[seen.ended]
    mean, spread = float(log_gap.mean()), float(log_gap.std())
    label = _means(moments.label[ended], log_gap - mean, labels)
    slot = _means(moments.slot[ended], log_gap - mean, 7 * schema.slots)

    known = moments.facts(mean, spread)
    table = design(known, label[moments.label], slot[moments.slot])
    # a little ridge: facts may be constant, for example where no label repeats
    square = table[ended].T @ table[ended] + 1e-3 * np.eye(table.shape[1])
    weight = np.linalg.solve(square, table[ended].T @ log_gap)

    location = table @ weight
    moved = seen.log_gap - location[seen.place]
    low, high = np.quantile(moved, [0.0005, 0.9995])
    gaps = Gaps(
        mean=mean,
        spread=spread,
        label=label,
        slot=slot,
        longest=float(log_gap.max()),
        weight=weight,
        location_edges=_edges(location[seen.place], LOCATIONS),
        spread_edges=_edges(known[seen.place, 3], SPREADS),
        grid=np.linspace(low - 0.01, high + 0.01, POINTS),
        cdf=np.zeros((LOCATIONS * SPREADS, POINTS)),
        facts={},
    )

    group = gaps.group(location, known[:, 3])[seen.place]
    _fill(gaps, moved, seen.ended, group)
    return gaps


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


def _calibrate(gaps: Gaps, moments: Moments, judged: list[tuple[Gaps, Observed]]) -> None:
    """Move the levels to those that the windows had: where a share g of their gaps lay below what
    was called the level u, u becomes g. `judged`: windows, each with what was learned before."""
    levels = []
    for learned, window in judged:
        location, group = (values[window.place] for values in learned.place(moments))
        levels.append(learned.reached(location, group, np.exp(window.log_gap)))

    ended = np.concatenate([window.ended for _, window in judged])
    number = int(ended.sum())
    if not number:
        return
    right = kaplan_meier(np.concatenate(levels), ended, LEVELS)
    right[0] = 0.0  # nothing comes before the last event

    believed = number / (number + SURE)
    moved = np.interp(gaps.cdf, LEVELS, right)
    gaps.cdf[:] = believed * moved + (1 - believed) * gaps.cdf
