"""The figures of a probe: as tables of any library, as JSON, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.io import write_json
from behavegpt.probing.scoring import Interval, interval
from behavegpt.tabular import Tabular


@dataclass(frozen=True)
class Score:
    """One figure of one set of features, fold by fold; a difference where `against` names a second
    set."""

    features: str
    against: str | None
    probe: str
    metric: str
    weeks: int  # age of the features
    width: int  # number of features
    values: np.ndarray  # (folds x seeds,)
    folds: int

    @property
    def interval(self) -> Interval:
        """Mean and 95 % interval over the folds."""
        return interval(self.values, self.folds)

    def minus(self, other: Score) -> Score:
        """The difference, fold by fold: what makes a fold hard for both does not blur it."""
        return replace(self, against=other.features, values=self.values - other.values)

    def row(self) -> dict[str, Any]:
        """Of the tables and of probe.json, there with the figure of each fold."""
        # the values of the folds go into probe.json alone: a table has one figure a row
        names = ("features", "against", "probe", "metric", "weeks", "width")
        own = {name: getattr(self, name) for name in names}
        return own | self.interval._asdict()


@dataclass(frozen=True, repr=False)
class Scores(Tabular):
    """Rows of figures."""

    rows: tuple[Score, ...]

    def to_table(self) -> pa.Table:
        """Columns features, against (of differences), probe, metric, weeks, width, mean, low,
        high."""
        texts, whole, real = pa.string(), pa.int64(), pa.float64()
        schema = pa.schema(
            [(name, texts) for name in ("features", "against", "probe", "metric")]
            + [(name, whole) for name in ("weeks", "width")]
            + [(name, real) for name in ("mean", "low", "high")]
        )
        return pa.Table.from_pylist([row.row() for row in self.rows], schema)

    def of(self, **wanted: Any) -> tuple[Score, ...]:
        """The rows with these values, such as metric="ROC-AUC"."""
        return tuple(
            row
            for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())
        )


@dataclass(frozen=True, repr=False)
class ProbeResult(Tabular):
    """The result of a probe; the object itself is the table of its scores."""

    facts: dict[str, Any]  # model, date, labels, users, settings
    scores: Scores
    differences: Scores  # paired by fold
    staleness: Scores  # by the age of the features; empty unless asked for

    def to_table(self) -> pa.Table:
        """`scores` as a table."""
        return self.scores.to_table()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures, the first one is plotted."""
        return tuple(dict.fromkeys(row.metric for row in self.scores.rows))

    def to_dict(self) -> dict[str, Any]:
        """What probe.json holds."""
        named = {
            "scores": self.scores,
            "differences": self.differences,
            "staleness": self.staleness,
        }
        return self.facts | {name: _rows(scores.rows) for name, scores in named.items()}

    def save(self, folder: str | Path) -> Path:
        """Write probe.json and probe.png into a folder, which is made if absent."""
        from behavegpt.probing.plot import draw

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "probe.json", self.to_dict())
        draw(self, folder / "probe.png")
        return folder


def _rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [score.row() | {"values": score.values.tolist()} for score in scores]
