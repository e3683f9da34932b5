"""The plot of a probe: each set of features with its interval, and the staleness curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from behavegpt.figures import BLUE, OTHERS, figure
from behavegpt.probing.scoring import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from behavegpt.probing.result import ProbeResult, Score

COLORS = (BLUE, *OTHERS)
APART = 0.22  # of the probes of one set, in rows
BESIDE = 0.015  # of the sets of one age, of the longest age: bars must not hide each other


def draw(result: ProbeResult, out: Path) -> Path:
    """Draw the first metric of a result as a PNG; returns its path."""
    metric = result.metrics[0]
    # the first metric alone: a reader looks at one question at a time
    stale = result.staleness.of(metric=metric)
    with figure(out, (9.6 if stale else 5.6, 3.4), 2 if stale else 1) as (_, axes):
        _sets(axes[0], result.scores.of(metric=metric), metric)
        axes[0].set_title(f"{result.facts['label']}: {result.facts['users']:,} users")
        if stale:
            _curve(axes[1], stale, metric)
    return out


def _sets(axes: Axes, scores: tuple[Score, ...], metric: str) -> None:
    """A row for each set of features, a color for each probe."""
    names = list(dict.fromkeys(score.features for score in scores))
    probes = list(dict.fromkeys(score.probe for score in scores))
    for number, probe in enumerate(probes):
        found = [score.interval for score in scores if score.probe == probe]
        row = np.arange(len(names)) + APART * (number - (len(probes) - 1) / 2)
        means = [one.mean for one in found]
        axes.errorbar(
            means, row, xerr=_arms(found), fmt="o", color=COLORS[number], label=probe, capsize=2
        )
    axes.set_yticks(range(len(names)), names)
    # in the order of the table, from the top
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, 95 % interval")
    axes.legend(fontsize=8, loc="best")


def _curve(axes: Axes, scores: tuple[Score, ...], metric: str) -> None:
    """A line for each set of features, by the weeks that they are old."""
    beside = BESIDE * max(1, scores[-1].weeks)
    for number, name in enumerate(dict.fromkeys(score.features for score in scores)):
        own = [score for score in scores if score.features == name]
        found = [score.interval for score in own]
        weeks = [score.weeks + number * beside for score in own]
        means = [one.mean for one in found]
        color = COLORS[number % len(COLORS)]
        axes.errorbar(weeks, means, yerr=_arms(found), marker="o", color=color, label=name)
    axes.set_xlabel("features that are … weeks old")
    axes.set_ylabel(f"{metric}, {scores[0].probe}")
    axes.set_title("staleness")
    axes.legend(fontsize=7, loc="best")


def _arms(found: list[Interval]) -> np.ndarray:
    """Lengths (2, n) of error bars, below and above the means."""
    return np.array([[one.mean - one.low, one.high - one.mean] for one in found]).T
