"""Figures of a sweep and its fit, as Fig. 7 and 8 of the paper: one function per figure, each
writes one PNG.

Rows of several names (other starts, other models) go on the same axes; the curves are those of the
fitted law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from behavegpt.figures import BLUE, GRID, INK, MARKERS, ORANGE, VERMILION, figure
from behavegpt.grid import Row
from behavegpt.scaling.fit import PAPER, Fit
from behavegpt.scaling.law import Law, Runs, fit_factors, log_residuals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

POINTS = 60  # of a curve
BAND = 0.18  # opacity


def draw_sweep(
    rows: Sequence[Row], fit: Fit, folder: Path, floor: float | None = None
) -> list[Path]:
    """Draw every figure into a folder; `floor` is the loss of the best possible prediction, where
    it is known."""
    figures: dict[str, Callable[[Sequence[Row], Fit, Path, float | None], Path]] = {
        # file -> what draws it
        "loss_by_events.png": loss_by_events,
        "loss_by_params.png": loss_by_params,
        "frontier.png": frontier,
        "residuals.png": residuals,
    }
    return [draw(rows, fit, folder / name, floor) for name, draw in figures.items()]


class _Axis(NamedTuple):
    """What a figure of losses has on its horizontal axis."""

    by: str
    other: str  # what a line of rows shares
    label: str
    title: str


def loss_by_events(rows: Sequence[Row], fit: Fit, out: Path, floor: float | None = None) -> Path:
    """Loss against training events, a line for each size (Fig. 7a and 8)."""
    axis = _Axis("events", "params", "training events D (one pass)", "Loss against data")
    return _loss_by(axis, rows, fit, out, floor)


def loss_by_params(rows: Sequence[Row], fit: Fit, out: Path, floor: float | None = None) -> Path:
    """Loss against parameters, a line for each data size (Fig. 7b)."""
    label = f"parameters N ({fit.count.replace('_', ' ')})"
    axis = _Axis("params", "events", label, "Loss against model size")
    return _loss_by(axis, rows, fit, out, floor)


def frontier(rows: Sequence[Row], fit: Fit, out: Path, floor: float | None = None) -> Path:
    """Loss against operations with the fitted frontier (left); the optimal ratio of events to
    parameters (right)."""
    low, high = fit.range["flops"]
    # a decade further: what the law is fitted for
    flops = np.geomspace(low, high * 10, POINTS)

    with figure(out, (11, 4.2), columns=2) as (_, (left, right)):
        _draw_losses(left, rows, fit, flops)
        _floor(left, floor)
        left.legend(loc="upper right")

        _draw_ratios(right, rows, fit, flops)
        # beyond the largest run the curve extrapolates
        right.axvspan(high, high * 10, color=GRID, alpha=0.4, linewidth=0)
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)

        for axes in (left, right):
            _log(axes.set_xscale, axes.xaxis)

    return out


def _draw_losses(axes: Axes, rows: Sequence[Row], fit: Fit, flops: np.ndarray) -> None:
    """Each run's loss by its operations, and the frontier of the law over `flops` (points,)."""
    for _, marker, color, same in _series(rows, "params"):
        # N times D times the same factor for all runs, as the law's optimum counts
        spent = fit.flops_per_param * np.array([row["params"] * row["events"] for row in same])
        losses = [row["loss"] for row in same]
        axes.plot(spent, losses, marker=marker, color=color, markersize=4, linewidth=1)

    best = fit.law.loss(*fit.law.optimum(flops, fit.flops_per_param))
    axes.plot(flops, best, color=INK, linestyle="--", label="fitted frontier")

    laws = _column(fit.laws)
    _band(axes, fit, flops, laws.loss(*laws.optimum(flops, fit.flops_per_param)), INK)
    axes.set(
        title="Loss against operations",
        xlabel="training operations (FLOP)",
        ylabel="nats per event",
    )


def _draw_ratios(axes: Axes, rows: Sequence[Row], fit: Fit, flops: np.ndarray) -> None:
    """The optimal ratio of events to parameters over `flops` (points,): by the rows' own law and by
    the paper's exponents fitted to the same rows."""
    for law, color, label in (
        (fit.law, BLUE, "these rows"),
        (_papers(rows), ORANGE, "the paper's exponents"),
    ):
        params, events = law.optimum(flops, fit.flops_per_param)
        axes.plot(flops, events / params, color=color, label=label)

    params, events = _column(fit.laws).optimum(flops, fit.flops_per_param)
    ratios = events / params  # (S, points)
    _band(axes, fit, flops, ratios, BLUE)
    axes.axhline(PAPER["ratio"], color=VERMILION, linestyle=":", label="the paper's ratio, 5")

    # a band of the bootstrap may span decades at the ends: the axis keeps to its bulk
    axes.set_ylim(np.quantile(ratios, 0.01) / 3, np.quantile(ratios, 0.99) * 3)
    _log(axes.set_yscale, axes.yaxis)
    axes.set(
        title="Optimal events per parameter",
        xlabel="training operations (gray: beyond the rows)",
    )


def residuals(rows: Sequence[Row], fit: Fit, out: Path, floor: float | None = None) -> Path:
    """Observed over expected loss, by events (left) and parameters (right): a pattern means the law
    does not hold."""
    with figure(out, (10, 3.8), columns=2) as (_, panels):
        for axes, by, other in zip(panels, ("events", "params"), ("params", "events"), strict=True):
            for _, marker, color, same in _series(rows, other):
                # in percent, as the fit weighs errors: relative ones
                off = 100 * np.expm1(log_residuals(_runs(same), fit.law))
                axes.plot(
                    [row[by] for row in same],
                    off,
                    marker=marker,
                    color=color,
                    markersize=4,
                    linewidth=0.8,
                )

            axes.axhline(0, color=INK, linewidth=1)
            _log(axes.set_xscale, axes.xaxis)

            axes.set(xlabel={"events": "training events D", "params": "parameters N"}[by])

        panels[0].set(title=f"Observed minus expected loss (median {fit.error:.2%})", ylabel="%")

    return out


def _loss_by(axis: _Axis, rows: Sequence[Row], fit: Fit, out: Path, floor: float | None) -> Path:
    # the paper's exponents with these rows' factors: whether its law would do as well
    laws = {"-": fit.law, ":": _papers(rows)}
    with figure(out, (8.6, 4.6)) as (_, (axes,)):
        for name, marker, color, same in _series(rows, axis.other):
            x = np.array([row[axis.by] for row in same])
            fixed = float(np.mean([row[axis.other] for row in same]))
            text = f"{_short(fixed)} {'events' if axis.other == 'events' else 'parameters'}{name}"
            losses = [row["loss"] for row in same]
            axes.plot(x, losses, marker=marker, color=color, markersize=5, linewidth=0, label=text)

            # within the rows: a curve beyond them is drawn by `frontier` alone, which says so
            grid = np.geomspace(x.min(), x.max(), POINTS)

            for style, law in laws.items():
                curve = law.loss(grid, fixed) if axis.by == "params" else law.loss(fixed, grid)
                axes.plot(grid, curve, color=color, linestyle=style, linewidth=1.2)

        _name_laws(axes, fit)
        _floor(axes, floor)
        axes.set_ylim(*_limits(rows, fit, floor))
        _log(axes.set_xscale, axes.xaxis)
        axes.set(
            title=axis.title, xlabel=axis.label, ylabel="held-out cross-entropy (nats per event)"
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)

    return out


def _name_laws(axes: Axes, fit: Fit) -> None:
    """Both laws in the legend, and the fitted floor."""
    ours = f"fit: alpha {fit.alpha.value:.2f}, beta {fit.beta.value:.2f}"
    theirs = f"alpha {PAPER['alpha']}, beta {PAPER['beta']} (the paper's)"
    # an entry of the legend without a curve of its own: every size has one
    axes.plot([], [], color=INK, label=ours)
    axes.plot([], [], color=INK, linestyle=":", label=theirs)
    axes.axhspan(fit.L_0.low, fit.L_0.high, color=BLUE, alpha=BAND / 2, linewidth=0)
    axes.axhline(fit.L_0.value, color=BLUE, linewidth=1, label=f"fitted L_0 {fit.L_0.value:.3f}")


def _limits(rows: Sequence[Row], fit: Fit, floor: float | None) -> tuple[float, float]:
    """Of the vertical axis: a floor far below the points would press them together."""
    losses = np.array([row["loss"] for row in rows])
    # equal losses would leave an axis of no height
    span = max(np.ptp(losses), 1e-3 * losses.max())

    near = [x for x in (fit.L_0.value, floor) if x is not None and losses.min() - span < x]
    return min([losses.min(), *near]) - 0.05 * span, losses.max() + 0.05 * span


def _series(rows: Sequence[Row], by: str) -> list[tuple[str, str, Any, list[Row]]]:
    """(name to add to a label, marker, color, rows in order) of the rows that share a name and a
    size or data size."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(str(row.get("name", "")) for row in rows))
    keys = sorted({_group(row, by) for row in rows})

    series = []
    for number, name in enumerate(names):
        for place, key in enumerate(keys):
            same = [
                row for row in rows if str(row.get("name", "")) == name and _group(row, by) == key
            ]
            # from dark to light by size, within a map that stays readable in gray
            color = colormaps["viridis"](0.9 * place / max(1, len(keys) - 1))
            same.sort(key=lambda row: (row["events"], row["params"]))
            if same:
                marker = "o" if number == 0 else MARKERS[(number - 1) % len(MARKERS)]
                series.append((f", {name}" if len(names) > 1 else "", marker, color, same))

    return series


def _group(row: Row, by: str) -> float:
    """Rows whose `by` agrees to 5 % belong together: subsets end with a whole user."""
    return round(float(np.log(row[by])) * 20)


def _papers(rows: Sequence[Row]) -> Law:
    # the paper prints exponents; its factors belong to its vocabulary
    return fit_factors(_runs(rows), PAPER["alpha"], PAPER["beta"])


def _runs(rows: Sequence[Row]) -> Runs:
    params, events, losses = zip(
        *((row["params"], row["events"], row["loss"]) for row in rows), strict=True
    )
    return Runs.of(params, events, losses)


def _column(laws: Law) -> Law:
    """Laws (S, 1), to be broadcast against points."""
    return Law(*(values[:, None] for values in laws))


def _band(axes: Axes, fit: Fit, x: np.ndarray, values: np.ndarray, color: str) -> None:
    """The confidence band of curves (S, points)."""
    # of the draws at each point, not of the parameters: those are correlated
    low, high = np.quantile(values, [fit.edge, 1 - fit.edge], axis=0)
    axes.fill_between(x, low, high, color=color, alpha=BAND, linewidth=0)


def _floor(axes: Axes, floor: float | None) -> None:
    if floor is not None:
        axes.axhline(
            floor, color=VERMILION, linestyle="--", linewidth=1, label=f"best possible {floor:.3f}"
        )


def _log(set_scale: Callable[[str], None], axis: Axis) -> None:
    """A logarithmic axis with plain labels at the powers of ten."""
    set_scale("log")
    axis.set_major_formatter(lambda value, _: _short(value))
    axis.set_minor_formatter(lambda value, _: "")


def _short(value: float) -> str:
    """1.2 M, 32 k, 1e12."""
    # beyond, k and M would need four digits
    if 1e3 <= value < 1e9:
        unit, text = (1e6, "M") if value >= 1e6 else (1e3, "k")
        return f"{value / unit:.3g} {text}"
    return f"{value:.0e}".replace("e+", "e") if value >= 1e9 else f"{value:.3g}"
