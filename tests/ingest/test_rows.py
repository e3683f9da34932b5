"""Rows read without a database are what DuckDB reads, or left to it.

`both_readers` compares the two wherever a test of this folder reads rows in memory; here are the
values of which small requests are made, each of which must be read without the database.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest import events
from behavegpt.ingest.events import Events, read_events, read_with_duckdb
from behavegpt.ingest.plan import TIME_RANGE
from behavegpt.ingest.rows import MOST_ROWS, read_rows
from behavegpt.ingest.sources import find_logs
from tests.ingest import test_fuzz as fuzz

SCHEMA = EventSchema(
    user="u",
    time="t",
    event="e",
    location="l",
    behavior="b",
    extra=("x",),
    order="o",
    tz="Europe/London",
)
LABELS = ["a", "B", "ü", "שלום", "7", "007", "a b", "", None, 'say "hi"', "x\ty", "0.5", "-0"]


def rows(seed: int, integers: bool, count: int = 80) -> dict[str, list[Any]]:
    """Few moments, so that most events are tied with another; times around a change of the
    clocks."""
    rng = np.random.default_rng(seed)
    seconds = (
        np.datetime64("2024-03-31", "s").astype(int) + 600 * rng.integers(-9, 30, count)
    ).tolist()
    texts = [LABELS[i] for i in rng.integers(len(LABELS), size=count)]
    label = rng.integers(-3, 5, count).tolist() if integers else texts
    return {
        "u": [f"{i:08}" for i in np.sort(rng.integers(0, 5, count))],
        "t": [str(np.datetime64(s, "s")).replace("T", " T"[s % 7 == 0]) for s in seconds],
        "e": [value or "none" for value in label] if not integers else label,
        "l": [LABELS[i] for i in rng.integers(len(LABELS), size=count)],
        "b": label,
        "x": [None if i == 2 else int(i) for i in rng.integers(0, 4, count)],
        "o": [int(i) for i in rng.integers(0, 3, count)],
    }


SOUND = ["2020-01-01 10:00:00", "2020-04-05T01:45:00Z", "2020-10-04", "1577874600", "", "never"]
FIELDS = {"event", "location", "behavior", "x"}


def quick(logs: Any, schema: EventSchema = SCHEMA, fields: Any = None) -> Events | None:
    """What is read without a database, checked against DuckDB."""
    found = read_rows(find_logs(logs), schema, fields, TIME_RANGE)
    if found is not None:
        expected = read_with_duckdb(find_logs(logs), schema, fields, threads=1)
        for one, other in zip(found, expected, strict=True):
            assert one.equals(other), (one.to_pydict(), other.to_pydict())
    return None if found is None else Events(*found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "changed", [{}, {"naive_time": "utc"}, {"tz": "UTC", "slot_minutes": 5}, {"order": None}]
)
def test_the_same_table(seed: int, changed: dict[str, Any]) -> None:
    columns = rows(seed, integers=seed % 2 == 1)
    if seed == 4:
        del columns["b"]
    fields = FIELDS - ({"behavior"} if seed == 4 else set())
    read = quick(columns, SCHEMA.model_copy(update=changed), fields)
    assert read is not None and len(read.table) == 80 and len(read.rejects) == 0


ZONED = pd.Timestamp("2024-03-31 01:30", tz="Asia/Kathmandu")
# one value put into a column of sound ones (all: the whole column), and the rows it costs
TAKEN: list[tuple[str, Any, int]] = [
    ("t", "2024-02-30 10:00:00", 1), ("t", "1960-01-01 00:00:00", 1), ("t", "2024-03-01", 0),
    ("t", "2024-03-01T10:00:00Z", 0), ("t", "2024-03-31 01:30:00.25+05:45", 0), ("t", None, 1),
    ("t", "1711846800", 0), ("t", " 1711846800.5 ", 0), ("t", " ", 1), ("t", "never", 1),
    ("e", None, 1), ("e", "", 1), ("e", "7.0", 0), ("u", None, 1), ("o", None, 0), ("l", "x", 0),
]  # fmt: skip
COLUMNS: list[tuple[str, Callable[[int], Any], int]] = [
    ("t", lambda i: 1_711_846_800 + i, 0), ("t", lambda i: 1_711_846_800_250 + i, 0),
    ("t", lambda i: float("nan") if i == 3 else 1_711_846_800.25 + i, 1),
    ("t", lambda i: datetime.datetime(2024, 3, 31, 1, i % 60), 0), ("t", lambda i: ZONED, 0),
    ("t", lambda i: datetime.date(2024, 3, 1 + i % 30), 0), ("t", lambda i: -(10**15) + i, 80),
    ("e", lambda i: i % 2 == 0, 0), ("e", lambda i: i / 4, 0), ("l", lambda i: float(i), 0),
    ("l", lambda i: None, 0), ("x", lambda i: ["a", 1, None, 2.5][i % 4], 0),
    ("u", lambda i: [1, 7, 10, 9][i % 4], 0), ("u", lambda i: ["true", "TRUE"][i % 2], 0),
    ("o", lambda i: i / 2, 0), ("o", lambda i: f" {i} ", 0), ("o", lambda i: ["", None][i % 2], 0),
    ("l", lambda i: ["1.50", "2.25"][i % 2], 0), ("l", lambda i: f"2024-05-{1 + i % 9:02}", 0),
    ("l", lambda i: ["2024-05-01T10:00:00.50", "2024-05-01"][i % 2], 0),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "lost"), TAKEN)
def test_one_value_among_others(column: str, value: Any, lost: int) -> None:
    columns = rows(0, integers=False)
    columns[column][5] = value
    read = quick(columns, SCHEMA, FIELDS)
    assert read is not None and (len(read.table), len(read.rejects)) == (80 - lost, lost)


@pytest.mark.parametrize(("column", "made", "lost"), COLUMNS)
@pytest.mark.parametrize("form", ["dict", "frame"])
def test_a_column_of_a_kind(column: str, made: Callable[[int], Any], lost: int, form: str) -> None:
    columns = rows(0, integers=False) | {column: [made(i) for i in range(80)]}
    read = quick(pd.DataFrame(columns) if form == "frame" else columns, SCHEMA, FIELDS)
    assert read is not None and (len(read.table), len(read.rejects)) == (80 - lost, lost)


@pytest.mark.parametrize("rule", ["text", "integer", "number", "decimal:2", "boolean", "timestamp"])
def test_the_stored_rule_writes_the_labels(rule: str) -> None:
    columns = rows(0, integers=False)
    columns["e"] = ["7", "7.0", "1.50", "True", "2024-05-01", "1e3", "-0.0", "a"] * 10
    read = quick(columns, SCHEMA.model_copy(update={"label_rules": {"event": rule}}), FIELDS)
    assert read is not None and len(read.table) == 80


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("t", "13/04/2024 08:05"), ("t", "2024-03-01 24:00:00"), ("t", "20240301"),
        ("t", "2024-03-01 10:00:00 PM"), ("t", "0000-01-01 00:00:00"), ("t", "epoch"),
        ("t", "[1]"), ("o", "1.5"), ("l", [1]), ("l", {"a": 1}), ("l", "\ud800"), ("l", b"x"),
    ],
)  # fmt: skip
def test_the_rest_is_left_to_duckdb(column: str, value: Any) -> None:
    columns = rows(0, integers=False)
    columns[column][5] = value
    assert quick(columns) is None
    for name in ("t", "e", "l", "x"):
        assert quick({n: v for n, v in rows(0, False).items() if n != name}) is None
    assert quick({name: values[:0] for name, values in columns.items()}) is None
    many = {name: values * (MOST_ROWS // 80 + 1) for name, values in rows(0, False).items()}
    assert read_rows(find_logs(many), SCHEMA, None, TIME_RANGE) is None


def test_formats_and_huge_floats_are_left_to_duckdb() -> None:
    columns = rows(0, integers=False)
    german = SCHEMA.model_copy(update={"time_format": ("%d.%m.%Y %H:%M",)})
    assert quick(columns, german) is not None  # ISO times beside them
    columns["t"][5] = "1.4.2024 10:00"
    assert quick(columns, german) is None
    columns = rows(0, integers=False) | {"e": [2.0**53] * 80}
    assert quick(columns) is None
    with pytest.raises(DataError, match="floating-point number"):
        read_events(columns, SCHEMA)


@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(i, marks=pytest.mark.slow) for i in range(12, 60))]
)
def test_hostile_tables(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables of the values of test_fuzz.py, of likely types and of any."""
    monkeypatch.setattr(events, "read_rows", read_rows)
    rng = np.random.default_rng(seed)
    taken = 0
    for number in range(6):
        kinds = fuzz.LIKELY if number % 2 else fuzz.signature(rng)
        size = int(rng.integers(1, 9))
        table = pa.table({name: fuzz.column(rng, kind, size) for name, kind in kinds.items()})
        if number % 3:
            sound = pa.array(rng.choice(SOUND, size).tolist(), pa.string())
            table = table.set_column(1, "time", sound)
        taken += quick(table, fuzz.SCHEMA) is not None
    assert taken
