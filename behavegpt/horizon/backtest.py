"""How good a forecast would have been on the last days of a log, beside what needs no learning.

    forecast          learned from what was known then
    history density   each behavior at the rate of the user's past (baselines/history_density.py)
    the same again    what the user did in the days before, moved by their number

Temporal mean average precision of metrics/horizon.py; and of the learned probabilities how far off
they are: mean absolute difference between the probability of a behavior within a day of its time,
and how often that was so, in ten groups of equal size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.baselines.history_density import history_density
from behavegpt.config import check_settings
from behavegpt.data.memory_columns import Columns, memory_columns
from behavegpt.data.times import DAY
from behavegpt.errors import DataError
from behavegpt.horizon.expected import Moments, happened
from behavegpt.horizon.learn import Step, expected_of, learn, moments_at, warn_of_few
from behavegpt.ingest.asked import seconds_of
from behavegpt.ingest.whole_log import read_whole_log
from behavegpt.metrics.horizon import Timeline, t_map
from behavegpt.options import ForecastOptions
from behavegpt.ragged import owners, ranges
from behavegpt.tabular import Tabular

GROUPS = 10


@dataclass(frozen=True, repr=False)
class Backtest(Tabular):
    """Figures of forecasts of the last days of a log."""

    figures: dict[str, dict[str, float]]  # model -> t_map (by behavior), t_map_w (by event)
    calibration_error: float  # of the learned probabilities within a day
    now: int  # epoch seconds: where the days began
    days: int
    users: int  # with a past
    events: int  # of known users and behaviors, in the days

    def to_table(self) -> pa.Table:
        """Columns model, t_map, t_map_w."""
        rows = [{"model": name, **figures} for name, figures in self.figures.items()]
        return pa.Table.from_pylist(rows)

    def facts(self) -> dict[str, Any]:
        """What the figures are of."""
        began = datetime.fromtimestamp(self.now, UTC).isoformat()
        counts = {"days": self.days, "users": self.users, "events": self.events}
        return {"now": began, **counts, "calibration_error": self.calibration_error}


def backtest(
    log: Any,
    days: int = 7,
    *,
    now: Any = None,
    columns: Mapping[str, Any] | None = None,
    seed: int = 0,
    step: Step = lambda done, of: None,
) -> Backtest:
    """Forecast `days` days of a log from what came before, by default its last ones; arguments as
    of `forecast`. Raises ConfigError and DataError."""
    chosen = check_settings(ForecastOptions, {"days": days, "seed": seed}, "forecast")
    tokenizer, encoded = read_whole_log(log, columns or {}, "a forecast")
    schema, classes = tokenizer.event_schema, tokenizer.behaviors.classes
    whole = memory_columns(encoded.columns, schema.slot_minutes)

    moment = int(whole.time.max()) - chosen.days * DAY
    if now is not None:
        moment = seconds_of(now, schema, "now")
    known, offsets = _until(moment, whole, encoded.offsets)
    warn_of_few(whole.time, moment + chosen.days * DAY, chosen.days)

    # users without a past are not asked about: nothing can be known of them
    users = np.flatnonzero(np.diff(offsets) > 0)
    forecaster = learn(known, offsets, schema, classes, chosen.days, seed=seed, step=step)
    moments = moments_at(whole, encoded.offsets, users, np.full(len(users), moment), schema)
    expected, chances = expected_of(forecaster, whole, moments, chosen.days)

    ends = encoded.offsets[users + 1]
    real = _real(whole, moments, ends)
    score = chances.mean(axis=1).astype(float)
    forecasts = {
        "forecast": Timeline(expected.moment, expected.behavior, expected.days, score),
        "history density": _density(whole, moments, chosen.days),
        "the same again": _again(whole, moments, chosen.days),
    }
    figures = {
        name: t_map(real, timeline, classes, horizon=chosen.days)
        for name, timeline in forecasts.items()
    }
    return Backtest(
        figures,
        _calibration_error(chances[:, -1], happened(whole, expected, moments, ends)[:, -1]),
        moment,
        chosen.days,
        len(users),
        len(real.user),
    )


def _until(moment: int, whole: Columns, offsets: np.ndarray) -> tuple[Columns, np.ndarray]:
    """The events up to a moment, and offsets (users + 1,) of them. Raises DataError unless there
    are some before it, and some behind."""
    past = whole.time <= moment
    if past.all() or not past.any():
        side = "after" if past.all() else "before"
        began = datetime.fromtimestamp(moment, UTC).isoformat()
        raise DataError(
            f"the log has no events {side} {began}, where the days begin; take a longer log, fewer "
            "days, or another time."
        )
    return Columns(*(column[past] for column in whole)), np.append(0, np.cumsum(past))[offsets]


def _stretch(columns: Columns, begin: np.ndarray, end: np.ndarray, now: np.ndarray) -> Timeline:
    """The known behaviors of events begin .. end - 1 of each moment, all certain."""
    rows = ranges(begin, end - begin)
    moment = owners(end - begin)
    known = columns.behavior[rows] >= 0
    rows, moment = rows[known], moment[known]
    days = (columns.time[rows] - now[moment]) / DAY
    return Timeline(moment, columns.behavior[rows].astype(np.int64), days, np.ones(len(rows)))


def _real(columns: Columns, moments: Moments, ends: np.ndarray) -> Timeline:
    return _stretch(columns, moments.end, ends, moments.now)


def _again(columns: Columns, moments: Moments, days: int) -> Timeline:
    """The days before, moved; the latest are the surest."""
    past = _stretch(columns, moments.begin, moments.end, moments.now)
    recent = past.days > -days
    moved = past.days[recent] + days
    return Timeline(past.user[recent], past.behavior[recent], moved, moved)


def _density(columns: Columns, moments: Moments, days: int) -> Timeline:
    """Rates, from the last event of each user on."""
    lengths = moments.end - moments.begin
    rows = ranges(moments.begin, lengths)
    offsets = np.append(0, np.cumsum(lengths))
    return history_density(columns.behavior[rows], columns.time[rows], offsets, days)


def _calibration_error(chance: np.ndarray, came: np.ndarray) -> float:
    """Mean absolute difference of mean probability and share, over groups of equal size."""
    groups = np.array_split(np.argsort(chance, kind="stable"), min(GROUPS, max(len(chance), 1)))
    return float(np.mean([abs(chance[group].mean() - came[group].mean()) for group in groups]))
