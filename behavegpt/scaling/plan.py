"""Which model for a budget: size, events and expected loss, with intervals, from fit.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from behavegpt.config import check_settings
from behavegpt.errors import DataError
from behavegpt.options import PlanOptions
from behavegpt.scaling.fit import Fit, interval

FAR = 10.0  # times the range of the rows: from there on a law is a guess


def plan_compute(fit: Fit, flops: float) -> dict[str, Any]:
    """The model and data of the lowest expected loss for so many training operations.

    As the other plans, raises DataError where the rows do not identify the law.
    """
    check_settings(PlanOptions, {"compute": flops}, "plan")
    # an interval from nothing to everything would look like a plan
    _refuse_unidentified(fit)
    size, data = fit.law.optimum(flops, fit.flops_per_param)
    sizes, events = fit.laws.optimum(flops, fit.flops_per_param)

    return _plan(fit, float(size), float(data), sizes, events)


def plan_events(fit: Fit, events: float) -> dict[str, Any]:
    """The model for which one pass over so many events is the optimal use of compute."""
    check_settings(PlanOptions, {"events": events}, "plan")
    _refuse_unidentified(fit)
    return _plan(
        fit, float(fit.law.size_for(events)), events, fit.laws.size_for(events), np.array(events)
    )


def plan_hours(fit: Fit, hours: float, flops_per_second: float) -> dict[str, Any]:
    """As `plan_compute`, for a time on devices of a given total speed, as reached and not as on
    paper."""
    return plan_compute(fit, hours * 3600 * flops_per_second)


def _refuse_unidentified(fit: Fit) -> None:
    if fit.unidentified:
        figures = dict.fromkeys(name for names in fit.unidentified.values() for name in names)
        raise DataError(
            f"nothing can be planned from rows that leave {', '.join(figures)} open: "
            f"{' '.join(fit.unidentified)}"
        )


def _plan(
    fit: Fit, size: float, data: float, sizes: np.ndarray, events: np.ndarray
) -> dict[str, Any]:
    """The expected loss is that of the planned model; its interval is over the laws, not over
    runs."""
    # N and D, whichever the budget gave: operations are k N D
    flops = fit.flops_per_param * size * data
    values = {
        "params": interval(size, sizes, fit.edge),
        "events": interval(data, np.broadcast_to(events, sizes.shape), fit.edge),
        "ratio": interval(data / size, events / sizes, fit.edge),
        "loss": interval(fit.law.loss(size, data), fit.laws.loss(size, data), fit.edge),
    }
    return {
        **{name: value.model_dump() for name, value in values.items()},
        "flops": flops,
        "confidence": fit.confidence,
        "warnings": [*fit.warnings, *_beyond(fit, {"params": size, "events": data})],
    }


def _beyond(fit: Fit, planned: dict[str, float]) -> list[str]:
    # the law holds where it was fitted; beyond, it is believed on its form alone
    warnings = []
    for name, value in planned.items():
        low, high = fit.range[name]
        factor = max(value / high, low / value)
        if factor > 1:
            trust = "a guess" if factor > FAR else "an extrapolation"
            warnings.append(
                f"{name} {value:.3g} is {factor:.1f} times outside {low:.3g} to {high:.3g}: "
                f"{trust}."
            )

    return warnings
