"""What the rows of a sweep cannot tell, and why: nothing is planned on figures that they leave
open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from behavegpt.scaling.law import Law, Runs, log_residuals
from behavegpt.scaling.search import LARGEST_EXPONENT, SMALLEST_EXPONENT, P, condition

if TYPE_CHECKING:
    from behavegpt.scaling.fit import Interval

# different sizes, or data sizes, below which an exponent and L_0 are one equation for two unknowns
FEWEST = 3
COLLINEAR = 0.99  # correlation of log N and log D from which on their two terms may change places
# of the Jacobian: 10 to 3,000 over grids that determine the law, 1e7 and more otherwise
LARGEST_CONDITION = 1e5
# what counts as not identified: an interval wider than this many times the value
WIDEST = {"alpha": 1.0, "beta": 1.0, "L_0": 0.5}
MOST_RATIO = 10.0  # high over low
OF_N, OF_D = ("alpha", "C_N", "ratio", "share"), ("beta", "C_D", "ratio", "share")


def unidentified(runs: Runs, law: Law) -> dict[str, tuple[str, ...]]:
    """Sentence -> figures of the fit about which these rows say nothing, by their design or for
    lack of an effect."""
    sentences: dict[str, tuple[str, ...]] = {}
    axes = {"N": ("sizes", runs.n, OF_N), "D": ("data sizes", runs.d, OF_D)}

    # standard error of the fit in log loss: relative, as a share of the loss
    noise = float(np.sqrt(np.mean(log_residuals(runs, law) ** 2) * len(runs.n) / (len(runs.n) - P)))

    for axis, (what, values, figures) in axes.items():
        exponent, factor = figures[0], getattr(law, figures[1])
        # rounded: sizes of the same shape differ by an embedding row or so
        different = len(np.unique(values.round(1)))
        if different < FEWEST:
            named = what if different > 1 else what.removesuffix("s")
            text = (
                f"only {different} different {named}: {exponent} and L_0 cannot be told apart; "
                "run more."
            )
            sentences[text] = (*figures, "L_0")

        # what the term of this axis contributes at its smallest and largest value
        low = float(factor * np.exp(-getattr(law, exponent) * values.max()))
        high = float(factor * np.exp(-getattr(law, exponent) * values.min()))

        if np.log1p((high - low) / float(np.exp(runs.loss).mean())) < max(2 * noise, 1e-6):
            text = (
                f"the loss hardly depends on {axis} over these rows (less than twice the noise of "
                f"{noise:.1%})."
            )
            sentences[text] = figures

    if min(np.ptp(runs.n), np.ptp(runs.d)) > 0 and np.corrcoef(runs.n, runs.d)[0, 1] > COLLINEAR:
        text = (
            "N and D grow together in these rows: the terms of alpha and beta can change places; "
            "vary D at each N."
        )
        sentences[text] = (*OF_N, *OF_D)

    if not sentences and condition(runs, law) > LARGEST_CONDITION:
        text = (
            "many laws fit these rows alike (the fit is singular); widen the range of sizes and "
            "data."
        )
        sentences[text] = (*OF_N, *OF_D, "L_0")

    return sentences


def whole_range(name: str, runs: Runs) -> tuple[float, float]:
    """Lowest and highest value that a figure could have: its interval where the rows say nothing
    about it."""
    # log N D of the largest run, which `ratio` is meant for
    product = float((runs.n + runs.d).max())
    lowest, highest = float(np.exp(runs.loss.min())), float(np.exp(runs.loss.max()))
    ranges = {
        "alpha": (SMALLEST_EXPONENT, LARGEST_EXPONENT),
        "beta": (SMALLEST_EXPONENT, LARGEST_EXPONENT),
        "C_N": (0.0, highest * float(np.exp(LARGEST_EXPONENT * runs.n.min()))),
        "C_D": (0.0, highest * float(np.exp(LARGEST_EXPONENT * runs.d.min()))),
        "L_0": (0.0, lowest),
        "ratio": (float(np.exp(-product)), float(np.exp(product))),
        "share": (0.0, 1.0),
    }

    return ranges[name]


def doubts(intervals: dict[str, Interval], open_figures: set[str]) -> list[str]:
    """Figures that are known too roughly, one sentence each; those that are open have been named
    already."""
    sentences = []
    for name, widest in WIDEST.items():
        one = intervals[name]
        # an exponent at the bound of the search is no estimate at all
        wide = one.high - one.low > widest * one.value or one.high > 0.99 * LARGEST_EXPONENT
        if wide and name not in open_figures:
            sentences.append(
                f"{name} is not identified by these rows: {one}; widen the range of sizes and data."
            )

    ratio = intervals["ratio"]
    if ratio.high > MOST_RATIO * ratio.low and "ratio" not in open_figures:
        sentences.append(
            f"the ratio D_opt / N_opt is known to a factor of {ratio.high / ratio.low:.0f} only: "
            f"{ratio}."
        )

    return sentences
