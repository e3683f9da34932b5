"""Files, globs, folders and frames: what is found, what is guessed, and the one clear error for
what is wrong."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.sources import find_logs

SCHEMA = EventSchema(user="u", time="t", event="e", location="l")
ROWS = pd.DataFrame(
    {
        "u": ["7", "007", "ü", "7"],
        "t": [
            "2020-01-01 10:00:00",
            "2020-01-02 10:00:00",
            "2020-01-03 10:00:00",
            "2020-01-01 09:00:00",
        ],
        "e": ['say "hi", now', "two\nlines", "שלום", "a;b\tc|d"],
        "l": ["1", None, "3.50", "NA"],
    }
)


def texts(logs: object, schema: EventSchema = SCHEMA) -> list[dict[str, object]]:
    return read_events(logs, schema).table.to_pylist()


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"logs.{kind}"
    if kind == "parquet":
        ROWS.to_parquet(file)
    elif kind.startswith("jsonl"):
        ROWS.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        ROWS.to_csv(file, index=False, sep="\t" if kind.startswith("tsv") else ",")
    return file


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_formats_give_the_same_events(tmp_path: Path, kind: str) -> None:
    rows = texts(write(tmp_path, kind))
    assert rows == texts(ROWS)
    assert [row["user"] for row in rows] == ["007", "7", "7", "ü"]
    assert [row["event"] for row in rows] == ["two\nlines", "a;b\tc|d", 'say "hi", now', "שלום"]
    assert [row["location"] for row in rows] == [None, "NA", "1", "3.50"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_delimiters_are_found(tmp_path: Path, separator: str) -> None:
    ROWS.to_csv(tmp_path / "logs.csv", index=False, sep=separator, encoding="utf-8-sig")
    assert texts(tmp_path / "logs.csv") == texts(ROWS)


def test_files_globs_folders_and_lists(tmp_path: Path) -> None:
    for i in range(3):
        ROWS.iloc[i::3].to_csv(tmp_path / f"part {i} [x].csv", index=False)
    everything = texts(ROWS)
    assert texts(tmp_path) == everything
    assert texts(str(tmp_path / "*.csv")) == everything
    assert texts(sorted(tmp_path.iterdir())) == everything
    # a file named twice counts once
    assert texts([*sorted(tmp_path.iterdir()), tmp_path]) == everything


def test_what_is_no_part_of_a_log_is_passed_over(tmp_path: Path) -> None:
    """What Spark, editors and Delta keep in folders beside the data, and links to a file that is
    there already."""
    whole = write(tmp_path / "in", "csv")
    for name in (".ipynb_checkpoints", "_temporary/0", "_delta_log"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.csv").write_bytes(whole.read_bytes())
    (tmp_path / "in" / "link.csv").symlink_to(whole.name)
    (tmp_path / "in" / "hard.csv").hardlink_to(whole)
    assert [str(path) for path in find_logs(tmp_path / "in").files] == [
        str(tmp_path / "in" / "hard.csv")
    ]
    assert [path.name for path in find_logs([whole, tmp_path / "in" / "link.csv"]).files] == [
        whole.name
    ]
    for place in ("_kind=a", "_kind=b"):  # one content of two meanings
        (tmp_path / "parts" / place).mkdir(parents=True)
        (tmp_path / "parts" / place / "x.csv").hardlink_to(whole)
    assert len(find_logs(tmp_path / "parts").files) == 2


def test_what_is_no_file_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for log in (tmp_path / "pipe.csv", "/dev/null", "-"):
        with pytest.raises(DataError, match="a pipe or a device; write the log to a file"):
            find_logs(log)
    for log in ("s3://bucket/a.csv", "https://example.org/a.csv"):
        with pytest.raises(DataError, match="not read from addresses; download"):
            find_logs(log)


def test_the_guess_says_which_file_lacks_a_column_and_what_cannot_be_a_label(
    tmp_path: Path,
) -> None:
    rows = pd.DataFrame({"user_id": ["a"], "time": ["2024-01-01"], "event": [b"x"]})
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'event' is BLOB, neither text nor number"):
        guess_schema(tmp_path / "a.parquet", {})
    rows.drop(columns="user_id").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"'user_id' is missing from .*b\.parquet"):
        guess_schema(tmp_path, {})


def test_files_may_differ_in_the_order_of_columns(tmp_path: Path) -> None:
    ROWS.iloc[:2].to_csv(tmp_path / "a.csv", index=False)
    ROWS.iloc[2:][["l", "e", "t", "u"]].assign(more=1).to_csv(
        tmp_path / "b.csv", index=False, sep=";"
    )
    assert texts(tmp_path) == texts(ROWS)


@pytest.mark.parametrize("kind", ["pandas", "arrow", "dict", "polars"])
def test_frames(kind: str) -> None:
    polars = pytest.importorskip("polars")
    columns = pa.Table.from_pandas(ROWS).to_pydict()
    frames = {
        "pandas": ROWS,
        "arrow": pa.table(columns),
        "dict": columns,
        "polars": polars.DataFrame(columns),
    }
    assert texts(frames[kind]) == texts(ROWS)


def test_numbers_keep_their_names_in_every_format(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"u": [1, 2, 10], "t": [1.6e9, 1.6e9, 1.6e9], "e": [7.0, 8.0, 9.0], "l": [5.0, None, 6.0]}
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    expected = texts(frame)
    assert [row["user"] for row in expected] == ["1", "10", "2"]
    assert [row["event"] for row in expected] == ["7", "9", "8"]
    assert [row["location"] for row in expected] == ["5", "6", None]
    assert all(texts(tmp_path / f"a.{kind}") == expected for kind in ("csv", "jsonl", "parquet"))


def test_kinds_of_labels() -> None:
    columns = {
        "u": pd.Categorical(["b", "a", None]),
        "t": pd.to_datetime(["2020-01-01"] * 3),
        "e": [2**63, 1, 2],
        "l": pa.nulls(3),
    }
    assert [row["event"] for row in texts(columns)] == ["1", str(2**63)]
    mixed = {
        "u": [1, "1", "a", 2.0],
        "t": ["2020-01-01"] * 4,
        "e": ["x"] * 4,
        "l": [True, False, None, True],
    }
    rows = sorted((row["user"], str(row["location"])) for row in texts(mixed))
    assert rows == [("1", "false"), ("1", "true"), ("2", "true"), ("a", "None")]


def test_rejects_carry_file_values_and_reason(tmp_path: Path) -> None:
    lines = [
        {"u": "a", "t": "2020-01-01", "e": "x", "l": "1"},
        {"u": ["a"], "t": "2020-01-01", "e": "x"},
        {"u": "", "t": "2020-01-01", "e": "x"},
        {"u": "a", "t": "soon", "e": "x"},
        {"u": "a", "t": "2020-01-01", "e": None},
    ]
    file = tmp_path / "logs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    events = read_events(file, SCHEMA)
    assert events.table.num_rows == 1
    reasons = {row["reason"]: row for row in events.rejects.to_pylist()}
    assert set(reasons) == {
        "a value has the wrong type",
        "user is null",
        "time cannot be read",
        "event is null",
    }
    assert reasons["time cannot be read"]["time"] == "soon"
    assert all(row["file"] == str(file) for row in reasons.values())


def test_csv_lines_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    file = tmp_path / "logs.csv"
    file.write_text(
        "u,t,e,l\na,2020-01-01,x,1\na,2020-01-01,x,1,2,3\nb,2020-01-01\nb,2020-01-01,y,2\n"
    )
    events = read_events(file, SCHEMA)
    assert events.table["user"].to_pylist() == ["a", "b"]
    assert events.rejects["reason"].to_pylist() == ["line cannot be cut into columns"] * 2


def test_order_column_decides_ties() -> None:
    schema = EventSchema(user="u", time="t", event="e", order="n")
    for order in (
        [10, 9, 2**53 + 1, 2**53],
        ["10", "9", str(2**53 + 1), str(2**53)],
        [1.5, -2.0, 4.0, 3.0],
    ):
        rows = texts(
            {"u": ["a"] * 4, "t": ["2020-01-01"] * 4, "e": list("bacd"), "n": order}, schema
        )
        assert "".join(str(row["event"]) for row in rows) == "abdc"
    bad = read_events(
        {"u": ["a"] * 2, "t": ["2020-01-01"] * 2, "e": ["x"] * 2, "n": ["1", "one"]}, schema
    )
    assert bad.rejects["reason"].to_pylist() == ["order is not a number"]


def test_columns_with_names_of_our_own() -> None:
    names = [
        "stamp",
        "wall",
        "reason",
        "file",
        "label",
        "raw",
        "code",
        "d0",
        "s",
        "filename",
        'qu"ote',
        "sel ect",
    ]
    schema = EventSchema(user="u", time="t", event="e", extra=tuple(names))
    columns = {
        "u": ["a", None],
        "t": ["2020-01-01"] * 2,
        "e": ["x"] * 2,
        **{name: [name] * 2 for name in names},
    }
    events = read_events(columns, schema)
    assert all(events.table[name].to_pylist() == [name] for name in names)
    assert events.rejects.num_rows == 1


def test_guess() -> None:
    frame = {"User ID": [1], "created_at": ["2020-01-01"], "sku": [1], "venue": [2], "price": [1.0]}
    schema, guesses = guess_schema(frame, {"tz": "Europe/London", "behavior": None})
    assert (schema.user, schema.time, schema.event, schema.location) == (
        "User ID",
        "created_at",
        "sku",
        "venue",
    )
    assert (schema.behavior, schema.tz) == (None, "Europe/London")
    assert {guess.column: guess.role for guess in guesses}["price"] is None
    assert guess_schema(frame, {"location": ""})[0].location is None
    assert guess_schema(frame, {"event": "price"})[0].event == "price"
    by_type = {"user": [1], "when it was": pa.array([0], pa.timestamp("us")), "event": [1]}
    assert guess_schema(by_type, {})[0].time == "when it was"


@pytest.mark.parametrize(
    ("frame", "given", "message"),
    [
        ({"a": [1], "b": [2]}, {}, "--user"),
        ({"user": [1], "event": [2], "time": [True]}, {}, "--time"),
        ({"user_id": [1], "userid": [2], "event": [2], "time": [1]}, {}, "both"),
        ({"user": [1], "event": [2], "time": [1]}, {"event": "evnt"}, "Did you mean 'event'"),
        ({"user": [1], "event": [2], "time": [1]}, {"tz": "Mars/Base"}, "IANA"),
    ],
)
def test_guess_errors_name_the_option(
    frame: dict[str, list[object]], given: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        guess_schema(frame, given)


def _broken(folder: Path, name: str) -> str:
    """Make a log that is wrong in one way; returns the path to read."""
    data = {
        "empty.csv": b"", "blank.csv": b"\n\n", "header twice.csv": b"u,t,e,u\n1,2,3,4\n",
        "case.csv": b"u,t,e,E\n1,2,3,4\n", "missing.csv": b"user,t,e,l\n1,2,3,4\n",
        "latin.csv": b"u,t,e,l\n\xe9,1,2,3\n",
        "logs.xlsx": b"PK", "words.jsonl": b"hello\n", "list.jsonl": b"[1, 2]\n",
        "keys.jsonl": b'{"u": 1, "u": 2}\n', "text.parquet": b"u,t,e,l\n",
        "torn.csv.gz": gzip.compress(b"u,t,e,l\n" + bytes(range(48, 122)) * 999)[:300],
    }  # fmt: skip
    if name in data:
        (folder / name).write_bytes(data[name])
    elif name == "twice.parquet":
        pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["u", "u"]), folder / name)
    elif name == "two":
        ROWS.to_csv(folder / "a.csv", index=False)
        ROWS[["u", "t", "e"]].to_csv(folder / "b.csv", index=False)
        return str(folder)
    elif name == "formats":
        write(folder, "csv")
        write(folder, "parquet")
        return str(folder)
    elif name == "no files":
        (folder / "inner").mkdir()
    elif name == "list.parquet":
        pq.write_table(
            pa.table({"u": [[1]], "t": ["2020-01-01"], "e": ["x"], "l": ["y"]}), folder / name
        )
    return str(folder / ("inner" if name == "no files" else name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.csv", "empty"), ("blank.csv", "no column names"),
        ("header twice.csv", "'u' occurs twice"), ("case.csv", "differs only in case"),
        ("missing.csv", "no column 'u' .the user.*--user"), ("latin.csv", "UTF-8"),
        ("logs.xlsx", "unknown extension"), ("words.jsonl", "line 1: not JSON"),
        ("list.jsonl", "one object per line"), ("keys.jsonl", "occurs twice"),
        ("torn.csv.gz", "cannot be read"), ("text.parquet", "cannot be read"),
        ("twice.parquet", "occurs twice"), ("two", "b.csv: no column 'l'"),
        ("formats", "differ in format"), ("no files", "no files"),
        ("list.parquet", "of type"), ("nowhere.csv", "no such file"),
        ("no*.csv", "glob matches no file"), ("nul\0.csv", "no such file"),
    ],
)  # fmt: skip
def test_one_clear_error_that_names_the_file(tmp_path: Path, name: str, message: str) -> None:
    path = _broken(tmp_path, name)
    with pytest.raises(DataError, match=message) as error:
        read_events(path, SCHEMA)
    assert tmp_path.name in str(error.value)


def test_no_logs_and_no_frame() -> None:
    for nothing in ([], 7, None):
        with pytest.raises(DataError):
            find_logs(nothing)


def test_hugging_face_data_sets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    ROWS.to_parquet(folder / "train.parquet")
    assert texts(f"hf:{folder}:train") == texts(ROWS)
    with pytest.raises(DataError, match="hf:"):
        find_logs(f"hf:{tmp_path}/none")


def test_wide_unicode_survives(tmp_path: Path) -> None:
    labels = [
        "\u202eabc",
        "a\u0000b",
        "👩‍👩‍👧",
        "\ufeffx",
        "  spaced  ",
        "'; DROP TABLE s; --",
        '"',
        "\\",
        "%_",
    ]
    frame = pd.DataFrame({"u": labels, "t": "2020-01-01", "e": labels, "l": labels})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    expected = sorted(labels, key=lambda text: text.encode())
    assert [row["user"] for row in texts(frame)] == expected
    assert [row["user"] for row in texts(tmp_path / "a.parquet")] == expected
    assert [row["user"] for row in texts(tmp_path / "a.jsonl")] == expected


def test_nan_is_null_and_infinity_is_a_label() -> None:
    columns = {
        "u": ["a"] * 3,
        "t": ["2020-01-01"] * 3,
        "e": ["x"] * 3,
        "l": np.array([np.nan, np.inf, 1.5]),
    }
    assert {row["location"] for row in texts(columns)} == {None, "inf", "1.5"}
