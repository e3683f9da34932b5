"""Where a column's values lie: in the file, in the name of its folder, below another column, in
lists of a history."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.prepare import prepare, preview
from behavegpt.ingest.sources import find_logs

SCHEMA = EventSchema(user="user", time="time", event="event")
TIMES = ["2024-03-01 10:00:00", "2024-03-02 11:00:00", "2024-03-03 12:00:00"]
WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "parquet": pq.write_table,
    "csv": lambda table, path: table.to_pandas().to_csv(path, index=False),
    "jsonl": lambda table, path: path.write_text(
        "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    ),
    "json": lambda table, path: path.write_text(json.dumps(table.to_pylist())),
    "feather": pyarrow.feather.write_feather,
}
FORMATS = tuple(WRITERS)


def write(rows: Any, folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    WRITERS[kind](table, folder / f"log.{kind}")
    return folder / f"log.{kind}"


def events(logs: Any, schema: EventSchema = SCHEMA) -> list[tuple[Any, ...]]:
    table = read_events(logs, schema).table
    names = [
        "user",
        "time",
        "event",
        *(name for name in table.column_names if name in ("location", *schema.extra)),
    ]
    return [tuple(row.values()) for row in table.select(names).to_pylist()]


# --- folders called KEY=VALUE ---


@pytest.mark.parametrize("kind", FORMATS)
def test_a_files_own_columns_win_over_its_folders_name(kind: str, tmp_path: Path) -> None:
    rows = [{"user": f"u{i % 30}", "time": TIMES[i % 3], "event": "x"} for i in range(90)]
    log = write(rows, tmp_path / "user=alice" / "time=2024-03-01" / "event=none" / "User=bob", kind)
    assert events(log) == events(pa.Table.from_pylist(rows))
    assert find_logs(log).parts == ()
    store = prepare(tmp_path / "user=alice", tmp_path / "out", SCHEMA, split="time:1,0,0")
    assert store.manifest.users == 30 and len(np.unique(store.columns["slot"])) == 3
    assert preview(tmp_path / "user=alice", SCHEMA).users == 30
    tokenizer = EventTokenizer.from_store(store, 9)
    assert len(tokenizer.encode(log).users) == 30
    assert len(tokenizer.encode([str(log)]).users) == 30


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_that_only_folders_tell_is_used_by_its_name(kind: str, tmp_path: Path) -> None:
    for user, place in (("al ice", "x%2Fy"), ("007", "__HIVE_DEFAULT_PARTITION__")):
        rows = [{"time": time, "event": f"e{i}"} for i, time in enumerate(TIMES)]
        write(rows, tmp_path / f"user={user.replace(' ', '%20')}" / f"place={place}", kind)
    schema = SCHEMA.model_copy(update={"location": "place"})
    assert find_logs(tmp_path).parts == ("user", "place")
    found = events(tmp_path, schema)
    assert {(row[0], row[3]) for row in found} == {("al ice", "x/y"), ("007", None)}
    assert len(found) == 6
    guessed, guesses = guess_schema(tmp_path, {})
    assert (guessed.user, guessed.location) == ("user", "place")
    assert {"user", "place"} <= {guess.column for guess in guesses}
    assert (
        prepare(
            tmp_path, tmp_path.parent / f"{tmp_path.name} out", schema, split="time:1,0,0"
        ).manifest.users
        == 2
    )


def test_a_folder_that_not_all_files_have_tells_nothing(tmp_path: Path) -> None:
    rows = [{"time": TIMES[0], "event": "x"}]
    write(rows, tmp_path / "user=a", "csv")
    write(rows, tmp_path / "other", "csv")
    with pytest.raises(DataError, match=r"other/log\.csv: no column 'user'"):
        read_events(tmp_path, SCHEMA)


def test_the_innermost_folder_wins_and_relative_paths_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write([{"time": TIMES[0], "event": "x"}], tmp_path / "user=a" / "user=b", "csv")
    monkeypatch.chdir(tmp_path)
    assert events("user=a/user=b/log.csv")[0][0] == events("*/*/*.csv")[0][0] == "b"
    monkeypatch.chdir(tmp_path / "user=a")
    assert events("user=b")[0][0] == "b"


# --- dotted paths ---

SNOWPLOW = "contexts_com_acme_page_1"
NESTED = [
    {
        "properties": {"distinct_id": f"u{i}", "time": time, "geo": {"city": city}},
        "event": f"e{i}",
        SNOWPLOW: [{"kind": f"k{i}", "id": i}],
        "event_params": [
            {"key": "page", "value": {"string_value": f"p{i}", "int_value": None}},
            {"key": "count", "value": {"string_value": None, "int_value": i}},
        ],
        "a.b": f"dot{i}",
    }
    for i, (time, city) in enumerate(zip(TIMES, ("Rome", None, "Oslo"), strict=True))
]
DEEP = EventSchema(
    user="properties.distinct_id",
    time="properties.time",
    event="event",
    location="properties.geo.city",
    extra=(
        f"{SNOWPLOW}.kind",
        f"{SNOWPLOW}.0.id",
        "event_params.page",
        "event_params.count",
        "a.b",
    ),
)
EXPECTED = [
    ("u0", "e0", "Rome", "k0", "0", "p0", "0", "dot0"),
    ("u1", "e1", None, "k1", "1", "p1", "1", "dot1"),
    ("u2", "e2", "Oslo", "k2", "2", "p2", "2", "dot2"),
]


@pytest.mark.parametrize(
    "kind", ["parquet", "jsonl", "json", "feather", "arrow frame", "pandas", "polars", "dict"]
)
def test_values_below_a_column(kind: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(NESTED)
    if kind in FORMATS:
        log: Any = write(NESTED, tmp_path, kind)
    elif kind == "polars":
        log = pytest.importorskip("polars").from_arrow(table)
    else:
        columns = {name: [row[name] for row in NESTED] for name in NESTED[0]}
        log = {"arrow frame": table, "pandas": pd.DataFrame(columns), "dict": columns}[kind]
    assert [row[:1] + row[2:] for row in events(log, DEEP)] == EXPECTED
    assert {"properties.geo.city", "properties.distinct_id", f"{SNOWPLOW}.kind"} <= {
        g.column for g in guess_schema(log, GIVEN)[1]
    }


GIVEN = {
    "user": "properties.distinct_id",
    "time": "properties.time",
    "event": "event",
    "location": "",
}


def test_a_prepared_folder_of_nested_columns_predicts_from_any_form(tmp_path: Path) -> None:
    log = write(NESTED, tmp_path, "jsonl")
    store = prepare(log, tmp_path / "out", DEEP, split="time:1,0,0")
    tokenizer = EventTokenizer.from_store(store, 9)
    flat = {
        "properties.distinct_id": ["u0"],
        "properties.time": [TIMES[0]],
        "event": ["e0"],
        "properties.geo.city": ["Rome"],
        f"{SNOWPLOW}.kind": ["k0"],
        f"{SNOWPLOW}.0.id": [0],
        "event_params.page": ["p0"],
        "event_params.count": [0],
        "a.b": ["dot0"],
    }
    for form in (log, pa.Table.from_pylist(NESTED), flat):
        unknown = tokenizer.encode(form).unknown
        assert unknown.pop("location") == (0 if form is flat else 1)  # the null
        assert not any(unknown.values())


@pytest.mark.parametrize("kind", ["csv", "frame"])
def test_json_in_a_column_of_text(kind: str, tmp_path: Path) -> None:
    properties = ['{"city": "Rome", "n": 1}', "", '{"city": "Oslo, \\"N\\""}']
    frame = pd.DataFrame(
        {"user": ["a", "b", "c"], "time": TIMES, "event": "x", "properties": properties}
    )
    schema = SCHEMA.model_copy(update={"location": "properties.city", "extra": ("properties.n",)})
    log: Any = frame
    if kind == "csv":
        frame.to_csv(tmp_path / "a.csv", index=False)
        log = tmp_path / "a.csv"
    assert [row[3:] for row in events(log, schema)] == [
        ("Rome", "1"),
        (None, None),
        ('Oslo, "N"', None),
    ]


def test_objects_whose_fields_differ_in_type() -> None:
    """As rows of a request: one value is a number, the next a text."""
    columns = {
        "user": ["a", "b"],
        "time": TIMES[:2],
        "event": ["x", "y"],
        "geo": [{"id": 1}, {"id": "two"}],
    }
    assert [
        row[3] for row in events(columns, SCHEMA.model_copy(update={"location": "geo.id"}))
    ] == ["1", "two"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "feather"])
def test_a_path_that_leads_nowhere_is_told(kind: str, tmp_path: Path) -> None:
    log = write(NESTED, tmp_path, kind)
    for path, hint in (
        ("properties.distinct_idd", "distinct_id"),
        ("propertees.time", "properties"),
    ):
        with pytest.raises(
            DataError, match=f"{path.rpartition('.')[2] if kind != 'jsonl' else path}.*{hint}"
        ):
            read_events(log, DEEP.model_copy(update={"user": path}))
    with pytest.raises(DataError, match=r"event\.user"):
        read_events(log, DEEP.model_copy(update={"location": "event.user"}))


# --- one row per user ---

HISTORIES = [
    {"user": "a", "time": TIMES[:2], "event": ["x", "y"], "place": "home"},
    {"user": "b", "time": TIMES[2:], "event": ["it's, z"], "place": None},
    {"user": "c", "time": [], "event": [], "place": "work"},
]
FLAT = [("a", "x", "home"), ("a", "y", "home"), ("b", "it's, z", None)]


@pytest.mark.parametrize(
    "kind", [*FORMATS, "json text csv", "arrow frame", "pandas", "polars", "dict", "list text"]
)
def test_one_row_per_user(kind: str, tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"location": "place"})
    table = pa.Table.from_pylist(HISTORIES)
    columns = table.to_pydict()
    if kind in FORMATS and kind != "csv":
        log: Any = write(HISTORIES, tmp_path, kind)
    elif kind.endswith("csv"):
        how = repr if kind == "csv" else json.dumps
        frame = pd.DataFrame(columns).assign(
            time=lambda f: f["time"].map(how), event=lambda f: f["event"].map(how)
        )
        frame.to_csv(tmp_path / "a.csv", index=False)
        log = tmp_path / "a.csv"
    elif kind == "polars":
        log = pytest.importorskip("polars").from_arrow(table)
    elif kind == "list text":
        log = columns | {
            name: [json.dumps(value) for value in columns[name]] for name in ("time", "event")
        }
    else:
        log = {"arrow frame": table, "pandas": pd.DataFrame(columns), "dict": columns}[kind]
    assert [(row[0], *row[2:]) for row in events(log, schema)] == FLAT
    guessed = guess_schema(log, {})[0]
    assert (guessed.user, guessed.time, guessed.event) == ("user", "time", "event")
    if not isinstance(log, Path):
        return
    assert prepare(log, tmp_path / "out", schema, split="time:1,0,0").manifest.events == 3


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "roles"),
    [
        (("who", "when", "what"), ("who", "when", "what")),
        # neither name nor type tells the time, the values do; one column is left for the event
        (("user", "x", "did"), ("user", "x", "did")),
        # a number is no time unless its column is called like one: it may be an id
        (("user", "number", "did"), None),
    ],
)
def test_columns_of_unknown_names(
    tmp_path: Path, kind: str, columns: tuple[str, ...], roles: tuple[str, ...] | None
) -> None:
    moments = pd.Timestamp("2024-03-01 09:00") + pd.to_timedelta(np.arange(40) * 31, unit="min")
    times = moments.astype("int64") // 10**9 if columns[1] == "number" else moments.astype(str)
    users, events = np.arange(40) % 4, np.arange(40) % 7
    rows = pd.DataFrame(
        dict(
            zip(columns, ([f"u{u}" for u in users], times, [f"e{e}" for e in events]), strict=True)
        )
    )
    file = write(rows.to_dict("records"), tmp_path, kind)
    if roles is None:
        with pytest.raises(DataError, match="no column looks like the time"):
            guess_schema(file, {})
        return
    schema = guess_schema(file, {})[0]
    assert (schema.user, schema.time, schema.event, schema.location) == (*roles, None)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "feather", "dict"])
def test_histories_as_lists_of_objects_and_as_objects_of_lists(kind: str, tmp_path: Path) -> None:
    first = [{"at": TIMES[0], "what": "x"}, {"at": TIMES[1], "what": None}]
    objects = [
        {"user": "a", "events": first},
        {"user": "b", "events": [{"at": TIMES[2], "what": "z"}]},
    ]
    lists = [
        {"user": "a", "events": {"at": TIMES[:2], "what": ["x", None]}},
        {"user": "b", "events": {"at": TIMES[2:], "what": ["z"]}},
    ]
    schema = EventSchema(user="user", time="events.at", event="events.what")
    for number, rows in enumerate((objects, lists)):
        log: Any = (
            pa.Table.from_pylist(rows).to_pydict()
            if kind == "dict"
            else write(rows, tmp_path / str(number), kind)
        )
        found = read_events(log, schema)
        assert list(zip(*(found.table[n].to_pylist() for n in ("user", "event")), strict=True)) == [
            ("a", "x"),
            ("b", "z"),
        ]
        assert found.rejects["reason"].to_pylist() == ["event is null"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "feather", "dict"])
def test_lists_that_differ_in_length_are_refused(kind: str, tmp_path: Path) -> None:
    rows = [{"user": "a", "time": TIMES[:2], "event": ["x"]}]
    log = pa.Table.from_pylist(rows).to_pydict() if kind == "dict" else write(rows, tmp_path, kind)
    with pytest.raises(
        DataError, match=r"'time' has 2 elements and 'event' 1|'event' has 1 elements and 'time' 2"
    ):
        read_events(log, SCHEMA)


def test_a_row_without_lists_among_histories_is_a_reject(tmp_path: Path) -> None:
    rows = [
        {"user": "a", "time": TIMES[:2], "event": ["x", "y"]},
        {"user": "b", "time": None, "event": None},
    ]
    for kind in ("parquet", "jsonl"):
        found = read_events(write(rows, tmp_path / kind, kind), SCHEMA)
        assert (len(found.table), found.rejects["reason"].to_pylist()) == (2, ["time is null"])


def test_lists_beside_single_times_are_no_labels(tmp_path: Path) -> None:
    rows = [{"user": "a", "time": TIMES[0], "event": ["x", "y"]}]
    with pytest.raises(DataError, match="of type"):
        read_events(write(rows, tmp_path, "parquet"), SCHEMA)
    assert read_events(write(rows, tmp_path, "jsonl"), SCHEMA).rejects["reason"].to_pylist() == [
        "a value has the wrong type"
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "dict"])
def test_easytpp(kind: str, tmp_path: Path) -> None:
    rows = [
        {
            "dim_process": 5,
            "seq_len": 3,
            "seq_idx": i,
            "time_since_start": [0.0, 1.25, 9000.5],
            "type_event": [i, 4, 2],
            "time_since_last_event": [0.0, 1.25, 8999.25],
        }
        for i in range(2)
    ]
    log = pa.Table.from_pylist(rows).to_pydict() if kind == "dict" else write(rows, tmp_path, kind)
    schema = EventSchema(user="seq_idx", time="time_since_start", event="type_event")
    assert [(user, event) for user, _, event in events(log, schema)] == [
        ("0", "0"),
        ("0", "4"),
        ("0", "2"),
        ("1", "1"),
        ("1", "4"),
        ("1", "2"),
    ]
    times = read_events(log, schema).table["time"].to_numpy()[:3] / 1e6
    assert (times - 946_684_800).tolist() == [0.0, 1.25, 9000.5]
