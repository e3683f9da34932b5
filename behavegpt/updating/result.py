"""What an update found: as tables of any library, and for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from behavegpt.tabular import Tabular

FIGURES = ("recall", "macro_recall", "ndcg@3", "cross_entropy", "calibration_error")
NAMES = {"model": "model before", "user_recent": "decayed user counts"}
MOST_DAYS = 14  # that a table shows


class Sheet(NamedTuple):
    """A table as text."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    title: str


@dataclass(frozen=True, repr=False)
class UpdateResult(Tabular):
    """An update; the object itself is the table of metrics on the new events, before they were
    learned."""

    row: dict[str, Any]  # as in RUN/updates.jsonl
    model: Path  # RUN/model, of this update unless it was rolled back

    @property
    def verdict(self) -> str:
        """`updated`, `rolled back`, or `updated, not judged`."""
        return str(self.row["verdict"])

    def to_table(self) -> pa.Table:
        """A row for each model: targets and figures on the new events; null where one has none."""
        scored = self.row["prequential"]
        columns: dict[str, Any] = {"model": list(scored)}
        for name in ("targets", *FIGURES):
            columns[name] = [figures.get(name) for figures in scored.values()]
        return pa.table(columns)

    def sheets(self) -> list[Sheet]:
        """The drift report: the new events predicted, judged, by field, and by day."""
        return [self._predicted(), self._judged(), self._fields(), self._days()]

    def _predicted(self) -> Sheet:
        scored = self.row["prequential"]
        rows = [
            [NAMES.get(name, name), *(_text(figures.get(figure)) for figure in FIGURES)]
            for name, figures in scored.items()
        ]
        people = f"{self.row['users']:,} users, {self.row['new_users']:,} of them new"
        title = (
            f"{scored['model']['targets']:,} new events of {people}, predicted before they were "
            "learned"
        )
        return Sheet(("model", *FIGURES), rows, title)

    def _judged(self) -> Sheet:
        held = self.row["held_out"]
        columns = ("events of users held out", "ndcg@3 before", "after", "difference", "verdict")
        change = f"{held['difference']:+.4f}"
        if "interval" in held:
            change += " [{:+.4f}, {:+.4f}]".format(*held["interval"])
        figures = (_text(held["before"]), _text(held["after"]), change)
        return Sheet(columns, [[f"{held['targets']:,}", *figures, self.verdict]], "")

    def _fields(self) -> Sheet:
        drift = self.row["drift"]
        rows = []
        for field, shares in drift["unknown"].items():
            labels = (f"{number:,}" for number in self.row["labels"][field])
            rows.append([field, *(f"{shares[part]:.2%}" for part in ("before", "new")), *labels])
        shift = f"{drift['behavior_shift']:.3f}"
        columns = ("field", "unknown earlier", "unknown now", "labels before", "labels after")
        return Sheet(columns, rows, f"drift; shares of behaviors moved by {shift} of 1")

    def _days(self) -> Sheet:
        days = self.row["drift"]["by_day"]
        names = list(self.row["prequential"])
        rows = [
            [day["day"], f"{day['targets']:,}", *(_text(day[name]) for name in names)]
            for day in days[:MOST_DAYS]
        ]
        more = f", the first {MOST_DAYS} of {len(days)}" if len(days) > MOST_DAYS else ""
        shown = (NAMES.get(name, name) for name in names)
        return Sheet(("day", "targets", *shown), rows, f"recall by day{more}")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
