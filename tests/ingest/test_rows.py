"""Rows read without a database are what `read_events` reads, or left to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.ingest.events import read_events
from behavegpt.ingest.rows import read_rows

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


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "changed", [{}, {"naive_time": "utc"}, {"tz": "UTC", "slot_minutes": 5}, {"order": None}]
)
def test_the_same_table(seed: int, changed: dict[str, Any]) -> None:
    schema = SCHEMA.model_copy(update=changed)
    columns = rows(seed, integers=seed % 2 == 1)
    if seed == 4:
        del columns["b"]
    quick = read_rows(columns, schema)
    read = read_events(
        columns, schema, fields={"event", "location", "x", *(["behavior"] if seed != 4 else [])}
    )
    assert quick is not None and len(read.rejects) == 0
    assert quick.to_pydict() == read.table.to_pydict()
    assert quick.column_names == read.table.column_names


@pytest.mark.parametrize(
    "column,value",
    [
        ("t", "2024-02-30 10:00:00"), ("t", "1960-01-01 00:00:00"), ("t", "2024-03-01"),
        ("t", "2024-03-01 10:00:00Z"), ("t", "2024-03-01 24:00:00"), ("t", 1_700_000_000),
        ("t", None), ("e", None), ("e", ""), ("e", 3),
        ("l", 2.5), ("l", True), ("x", 2**63), ("o", None), ("o", 1.5), ("l", "\ud800"),
    ],
)  # fmt: skip
def test_the_rest_is_left_to_read_events(column: str, value: Any) -> None:
    columns = rows(0, integers=False)
    columns[column][5] = value
    assert read_rows(columns, SCHEMA) is None
    for name in ("t", "e", "l", "x"):
        assert read_rows({n: v for n, v in rows(0, False).items() if n != name}, SCHEMA) is None
