"""Thousands of tables of hostile values: each is read or refused with one clear error, never a
traceback.

Tables with the same types are read together, as one log of many: the reader decides by column type,
not by table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.reasons import REASONS
from tests.runs import quick_folder

TABLES = 100  # of the same types, which are read together
# kinds of tables: the slow trial goes on where the quick one ends
QUICK, ALL = 40, 100
SCHEMA = EventSchema(
    user="user", time="time", event="event", location="place", order="n", tz="Australia/Lord_Howe"
)
TEXTS = [
    "a", "b", "", " ", "\x00", "a\x00b", "\u202eabc\u202c", "ش", "שלום", "👩\u200d👧", "e\u0301",
    "\ufeff", "\u2028", "\n", "\r\n", '"', "'", "\\", "%", "{}", "NULL", "None", "nan", "NaN",
    "inf", "-inf", "true", "0", "-0", "-0.0", "7.0", "7", "007", "1e308", "1e999", str(2**63),
    str(-(2**70)), "9" * 400, "x" * 5000, "[1, 2]", '{"a": 1}', "2020-01-01", "🕐",
]  # fmt: skip
MOMENTS = [
    "2020-01-01", "2020-01-01 10:00:00", "2020-01-01T10:00:00Z", "2020-04-05 01:45:00",
    "2020-10-04T02:15:00", "1577874600", "1577874600.5", "1577874600000", "2020-02-30",
    "2020-01-01 25:00:00", "0000-00-00 00:00:00", "9999-12-31 23:59:59",
    "294247-01-10 04:00:54.775807", "290309-12-22 (BC) 00:00:00", "infinity", "-infinity", "epoch",
    "now", "2020-01-01 10:00:00+99:99", "2020-01-01 10:00:00 PM", "2020-01-01 10:00:00 Mars/Base",
    "1e400", "-1", "0x10", "NaN", "١٢", *TEXTS[:20],
]  # fmt: skip
WHOLE = [
    0,
    1,
    -1,
    7,
    10**9,
    1_577_874_600,
    1_577_874_600_000,
    1_577_874_600_000_000,
    2**63 - 1,
    -(2**63),
    None,
]
REAL = [
    0.0,
    -0.0,
    1.5,
    1e300,
    -1e300,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    1_577_874_600.25,
    7.0,
    None,
]
KINDS: dict[str, tuple[pa.DataType, list[object]]] = {
    "text": (pa.string(), [*TEXTS, None]),
    "moment": (pa.string(), [*MOMENTS, None]),
    "large text": (pa.large_string(), [*TEXTS, None]),
    "category": (pa.dictionary(pa.int8(), pa.string()), [*TEXTS[:5], None]),
    "int64": (pa.int64(), WHOLE),
    "int8": (pa.int8(), [0, -128, 127, None]),
    "uint64": (pa.uint64(), [0, 2**64 - 1, 1_577_874_600, None]),
    "double": (pa.float64(), REAL),
    "float": (pa.float32(), [0.0, 1.5, float("nan"), None]),
    "decimal": (pa.decimal128(38, 9), [0, 1, -1, 10**20, None]),
    "bool": (pa.bool_(), [True, False, None]),
    "null": (pa.null(), [None]),
    "list": (pa.list_(pa.int64()), [[1], [], None]),
    "struct": (pa.struct([("a", pa.int64())]), [{"a": 1}, None]),
    "bytes": (pa.binary(), [b"a", b"\xff\x00", None]),
    "timestamp s": (pa.timestamp("s"), [0, 1_577_874_600, -(2**40), 2**40, None]),
    "timestamp": (pa.timestamp("us"), [0, 1_577_874_600_000_000, -(2**62), 2**62, None]),
    "timestamp ns": (pa.timestamp("ns"), [0, 1_577_874_600_000_000_000, None]),
    "timestamp tz": (pa.timestamp("us", "Asia/Kathmandu"), [0, 1_577_874_600_000_000, None]),
    "date": (pa.date32(), [0, 18_262, -(2**20), 2**20, None]),
    "time of day": (pa.time64("us"), [0, 86_399_999_999, None]),
    "duration": (pa.duration("us"), [0, 10**12, None]),
}
COLUMNS = ("user", "time", "event", "place", "n")
LIKELY = {"user": "text", "time": "moment", "event": "text", "place": "text", "n": "int64"}


def column(rng: np.random.Generator, kind: str, rows: int) -> pa.Array:
    dtype, values = KINDS[kind]
    return pa.array([values[i] for i in rng.integers(0, len(values), rows)], dtype)


def signature(rng: np.random.Generator) -> dict[str, str]:
    """A type per column: each second column the usual one, so that most tables get past the first
    check."""
    kinds = list(KINDS)
    return {
        name: LIKELY[name] if rng.random() < 0.6 else kinds[rng.integers(len(kinds))]
        for name in COLUMNS
    }


def check(table: pa.Table) -> bool:
    """Whether the table was read; every row must then be accepted or rejected with a reason."""
    try:
        events = read_events(table, SCHEMA, threads=1)
    except DataError as error:
        assert "'" in str(error) and len(str(error)) < 2000
        return False
    if not pa.types.is_list(table["time"].type):  # a row of lists is a history of any length
        assert events.table.num_rows + events.rejects.num_rows == table.num_rows
    assert set(events.rejects["reason"].to_pylist()) <= set(REASONS[1:])
    assert events.table["user"].null_count == events.table["event"].null_count == 0
    assert events.table["slot"].to_numpy().max(initial=0) < 48
    return True


KINDS_OF_TABLES = pytest.mark.parametrize(
    "kinds_of_tables",
    [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow)],
    ids=str,
)


@KINDS_OF_TABLES
def test_thousands_of_tables(kinds_of_tables: range) -> None:
    read = 0
    for number in kinds_of_tables:
        rng = np.random.default_rng([0, number])
        kinds = signature(rng)
        tables = [
            pa.table({name: column(rng, kind, rows) for name, kind in kinds.items()})
            for rows in rng.integers(0, 9, TABLES + 1)
        ]
        read += check(pa.concat_tables(tables))
    assert read > len(kinds_of_tables) // 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ("user", "time", "n"))
def test_every_kind_in_every_column_alone_and_empty(kind: str, name: str) -> None:
    rng = np.random.default_rng(list(KINDS).index(kind))
    kinds = LIKELY | {name: kind}
    for rows in (0, 1) if name == "time" else (5,):
        check(pa.table({name: column(rng, kind, rows) for name, kind in kinds.items()}))


@pytest.mark.parametrize("seed", range(40))
def test_python_objects(seed: int) -> None:
    """Columns of whatever Python holds, as a dict and as a DataFrame."""
    rng = np.random.default_rng(seed)
    things: list[object] = [
        *TEXTS[:8],
        1,
        2.5,
        None,
        float("nan"),
        2**80,
        True,
        b"x",
        [1],
        {"a": 1},
        object(),
        "\ud800",
    ]
    rows = int(rng.integers(0, 6))
    columns: dict[str, list[object]] = {
        name: column(rng, LIKELY[name], rows).to_pylist() for name in COLUMNS
    }
    for name in COLUMNS:
        if rng.random() < 0.3:
            columns[name] = [things[i] for i in rng.integers(0, len(things), rows)]
    for frame in (columns, pd.DataFrame(columns, dtype=object)):
        try:
            events = read_events(frame, SCHEMA, threads=1)
        except DataError:
            continue
        assert events.table.num_rows + events.rejects.num_rows == rows


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@KINDS_OF_TABLES
def test_prepare_survives_the_same_tables(kinds_of_tables: range, place: Path) -> None:
    kept = 0
    for number in kinds_of_tables:
        rng = np.random.default_rng([1, number])
        kinds = LIKELY | ({} if number % 2 else signature(rng))
        rows = int(rng.integers(1, 30))
        table = pa.table({name: column(rng, kind, rows) for name, kind in kinds.items()})
        file, out = place / f"{number}.parquet", place / f"out {number}"
        pq.write_table(table, file)
        try:
            store = prepare(file, out, SCHEMA, max_reject_share=1.0, threads=1)
        except DataError:
            assert not out.exists()
            continue
        kept += 1
        assert store.manifest.events + sum(store.manifest.rejected.values()) == rows
    assert kept > len(kinds_of_tables) // 4
    assert not list(place.glob("*.tmp-*"))
