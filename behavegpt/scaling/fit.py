"""From rows to fit.json: the law, intervals by a bootstrap, and what the rows cannot tell.

Each of alpha, beta, C_N, C_D, L_0, `ratio` (D_opt / N_opt at the largest run's operations) and
`share` (N_opt grows as operations ** share) has `value`, `low`, `high`. Intervals are expanded
percentiles of refits to the fitted losses times resampled residuals: all sizes and data stay in
every draw, as resampled rows of so small a grid would not. A figure about which the rows say
nothing has its whole range for an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from behavegpt.config import Settings, check_settings
from behavegpt.errors import DataError
from behavegpt.grid import Row
from behavegpt.io import write_text
from behavegpt.options import FitOptions
from behavegpt.scaling.doubts import doubts, unidentified, whole_range
from behavegpt.scaling.law import Law, Runs, log_residuals
from behavegpt.scaling.search import DELTA, P, fit_law, leverage, minima, refit

DRAWS, CONFIDENCE = 400, 0.95
FLOPS_PER_PARAM = 6.0  # of training with one event, where the rows do not say
PAPER = {"alpha": 0.51, "beta": 0.23, "ratio": 5.0}  # section 4.7


class Interval(Settings):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


class Fit(Settings):
    """fit.json."""

    alpha: Interval
    beta: Interval
    C_N: Interval
    C_D: Interval
    L_0: Interval
    ratio: Interval
    share: Interval
    confidence: float
    edge: float  # share of the draws left out at each end of an interval
    count: str  # what N counts
    delta: float
    rows: int
    error: float  # median of |observed / expected - 1|
    flops_per_param: float
    flops_per_second: float | None  # that the largest runs reached
    # lowest and highest params, events, loss and flops of the rows
    range: dict[str, tuple[float, float]]
    warnings: list[str]
    unidentified: dict[str, list[str]] = {}  # why -> figures about which the rows say nothing
    draws: list[list[float]]  # bootstrap: C_N, C_D, L_0, alpha, beta each

    @property
    def law(self) -> Law:
        return Law(*(np.array(getattr(self, name).value) for name in Law._fields))

    @property
    def laws(self) -> Law:
        """The bootstrap's laws (S,)."""
        return Law(*np.array(self.draws).T)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    draws: int = DRAWS
    confidence: float = CONFIDENCE
    seed: int = 0


def fit_rows(
    rows: Sequence[Row], count: str = "total", delta: float = DELTA, how: Bootstrap = Bootstrap()
) -> Fit:
    """Fit eq. 5 to rows with params, events and loss. DataError for fewer rows than parameters plus
    one."""
    given = {"delta": delta, "draws": how.draws, "confidence": how.confidence}
    check_settings(FitOptions, given, "scaling law")

    if len(rows) <= P:
        raise DataError(
            f"{len(rows)} finished runs: a law of {P} parameters needs at least {P + 1}; run more "
            "sizes."
        )

    spans = {name: _column(rows, name) for name in ("params", "events", "loss")}
    runs = Runs.of(**spans)  # log N, log D, log L
    flops_per_param = _flops_per_param(rows)
    flops = spans["flops"] = flops_per_param * spans["params"] * spans["events"]
    law = fit_law(runs, delta)
    laws = bootstrap(runs, law, delta, how)

    # ratio and share are reported at the largest run, where the rows say most about them
    figures = _figures(law, flops.max(), flops_per_param)
    drawn = _figures(laws, flops.max(), flops_per_param)
    edge = tail_share(how.confidence, len(rows) - P)

    gaps = unidentified(runs, law)
    unknown = {name for names in gaps.values() for name in names}

    intervals = {name: interval(value, drawn[name], edge) for name, value in figures.items()}
    # the rows say nothing about these: the whole range stands in for an interval
    for name in unknown:
        intervals[name] = interval(figures[name], np.array(whole_range(name, runs)), 0.0)

    return Fit(
        **intervals,
        confidence=how.confidence,
        edge=edge,
        count=count,
        delta=delta,
        rows=len(rows),
        error=float(np.median(np.abs(np.expm1(log_residuals(runs, law))))),
        flops_per_param=flops_per_param,
        flops_per_second=_flops_per_second(rows),
        range={name: (float(values.min()), float(values.max())) for name, values in spans.items()},
        warnings=[*gaps, *doubts(intervals, unknown)],
        unidentified={text: list(names) for text, names in gaps.items()},
        draws=np.stack(laws, axis=1).round(9).tolist(),
    )


def _figures(law: Law, flops: float, flops_per_param: float) -> dict[str, Any]:
    """What a fit reports of a law, or of several (S,): its parameters, the optimal ratio of events
    to parameters at so many operations, and the share of the compute that goes to parameters."""
    params, events = law.optimum(flops, flops_per_param)
    shares = {"ratio": events / params, "share": law.beta / (law.alpha + law.beta)}
    return {**law._asdict(), **shares}


def tail_share(confidence: float, freedom: int) -> float:
    """Share of the draws to leave out at each end, fewer for small samples: the expanded percentile
    interval.

    Percentiles alone are as narrow as normal quantiles where Student's are due (Hesterberg 2015,
    "What teachers should know about the bootstrap", section 4.4).
    """
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf((1 - confidence) / 2, freedom)))


def interval(value: Any, draws: np.ndarray, edge: float) -> Interval:
    """A value with the range of its draws (S,) without the share `edge` at each end; the value lies
    inside."""
    # where rows leave several minima, refits may gather around another one than the value's
    low, high = np.quantile(draws, [edge, 1 - edge])
    return Interval(value=float(value), low=float(min(low, value)), high=float(max(high, value)))


def bootstrap(runs: Runs, law: Law, delta: float, how: Bootstrap) -> Law:
    """Laws (S,) refitted to the fitted losses with residuals drawn anew, and a little noise
    (smoothed bootstrap).

    The Huber loss with a small delta is nearly that of absolute errors: the fit passes through P of
    the points, and without the noise those zeros are drawn as if errors were more often small than
    they are, which makes intervals too narrow (docs/scaling.md).
    """
    residual = log_residuals(runs, law)  # (n,)
    n = len(residual)

    # the fit makes residuals smaller than errors, most at the corners of the grid (as in HC3
    # standard errors)
    spread = residual / (1 - leverage(runs, law))
    # centered: the law keeps its level, the draws only scatter around it
    spread -= np.median(spread)

    # the smaller of two spreads, as Silverman: outliers must not widen the smoothing
    width = min(spread.std(), float(np.subtract(*np.quantile(spread, [0.75, 0.25]))) / 1.349)
    rng = np.random.default_rng(how.seed)

    # 0.9 width n^-1/5: Silverman's bandwidth
    # (S, n)
    shape = (how.draws, n)
    drawn = rng.choice(spread, shape)
    drawn = drawn + 0.9 * width * n**-0.2 * rng.standard_normal(shape)

    return refit(runs, runs.loss - residual + drawn, minima(runs, law, delta), delta)


def write_fit(fit: Fit, path: Path) -> None:
    """Write fit.json."""
    write_text(path, fit.model_dump_json(indent=None) + "\n")


def read_fit(path: Path) -> Fit:
    """Read fit.json; DataError when it is none."""
    try:
        return Fit.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise DataError(
            f"{path}: not a fit ({error}); write one with: behavegpt scale fit ROWS --out {path}"
        ) from None


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    """(rows,) float64: one figure of the rows."""
    return np.array([row[name] for row in rows], float)


def _flops_per_param(rows: Sequence[Row]) -> float:
    """Operations per event and parameter: the median of what the rows say."""
    said: list[Any] = [
        row["flops"] / (row["params"] * row["events"]) for row in rows if row.get("flops")
    ]
    return float(np.median(said)) if said else FLOPS_PER_PARAM


def _flops_per_second(rows: Sequence[Row]) -> float | None:
    """Speed of the run with the most operations, if the rows say."""
    timed = [row for row in rows if row.get("flops") and row.get("seconds")]
    # the largest run: small ones do not fill a device
    rates = [(row["flops"], row["flops"] / row["seconds"]) for row in timed]
    return max(rates)[1] if rates else None
