"""Files as people have them: each way of writing one table gives the same events, or one error with
the remedy."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
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
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.log_file import _one_line_end
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.sources import find_logs

SCHEMA = EventSchema(user="user", time="time", event="event")
ROWS = pd.DataFrame(
    {
        "user": ["ann", "bob", "café", "ann", "bob"],
        "time": [f"2024-03-0{day} 10:00:00" for day in (1, 2, 3, 4, 5)],
        "event": ["tea", "häm", "a,b", "milk", "tea"],
    }
)


def events(
    logs: Any, schema: EventSchema = SCHEMA, encoding: str | None = None
) -> list[tuple[Any, ...]]:
    table = read_events(find_logs(logs, encoding), schema).table
    return [tuple(row.values()) for row in table.select(["user", "time", "event"]).to_pylist()]


CSV = ROWS.to_csv(index=False)
LINES = ROWS.to_json(orient="records", lines=True)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def ipc(folder: Path, name: str, stream: bool) -> None:
    table = pa.Table.from_pandas(ROWS, preserve_index=False)
    opener = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opener(str(folder / name), table.schema) as writer:
        writer.write_table(table, 2)


WAYS: dict[str, Callable[[Path], object]] = {
    "index.csv": lambda d: ROWS.to_csv(d / "index.csv"),
    "index twice.csv": lambda d: ROWS.assign(**{"Unnamed: 0": 1}).to_csv(d / "index twice.csv"),
    "r.csv": lambda d: (d / "r.csv").write_text(ROWS.to_csv().replace(",user", "user", 1)),
    "trailing.csv": lambda d: (d / "trailing.csv").write_text(CSV.replace("\n", ",\n")),
    "trailing rows.csv": lambda d: (d / "trailing rows.csv").write_text(
        CSV.replace("\n", ",\n").replace(",\n", "\n", 1)
    ),
    "trailing header.csv": lambda d: (d / "trailing header.csv").write_text(
        CSV.replace("\n", ",\n", 1)
    ),
    "excel.csv": lambda d: (d / "excel.csv").write_text(
        "sep=;\r\n" + ROWS.to_csv(index=False, sep=";", lineterminator="\r\n")
    ),
    "excel odd.csv": lambda d: (d / "excel odd.csv").write_text(
        "sep=^\n" + ROWS.to_csv(index=False, sep="^")
    ),
    "quoted.csv": lambda d: ROWS.to_csv(d / "quoted.csv", index=False, quoting=1),
    "utf16.csv": lambda d: (d / "utf16.csv").write_text(CSV, encoding="utf-16"),
    "bom.csv": lambda d: (d / "bom.csv").write_text(CSV, encoding="utf-8-sig"),
    "gz in name only.csv.gz": lambda d: (d / "gz in name only.csv.gz").write_text(CSV),
    "gz inside.csv": lambda d: (d / "gz inside.csv").write_bytes(gzip.compress(CSV.encode())),
    "utf32.csv": lambda d: (d / "utf32.csv").write_text(CSV, encoding="utf-32"),
    "lines end in two ways.csv": lambda d: (d / "lines end in two ways.csv").write_bytes(
        CSV.replace("\n", "\r\n", 2).encode()
    ),
    "first CR.csv": lambda d: (d / "first CR.csv").write_bytes(CSV.replace("\n", "\r", 1).encode()),
    "a.csv.zst": lambda d: (d / "a.csv.zst").write_bytes(zstd(CSV.encode())),
    "a.csv.bz2": lambda d: (d / "a.csv.bz2").write_bytes(bz2.compress(CSV.encode())),
    "a.csv.xz": lambda d: (d / "a.csv.xz").write_bytes(lzma.compress(CSV.encode())),
    "a.tsv": lambda d: ROWS.to_csv(d / "a.tsv", index=False, sep="\t"),
    "a.jsonl": lambda d: (d / "a.jsonl").write_text(LINES),
    "bom.jsonl": lambda d: (d / "bom.jsonl").write_text(LINES, encoding="utf-8-sig"),
    "utf16.jsonl": lambda d: (d / "utf16.jsonl").write_text(LINES, encoding="utf-16"),
    "gz inside.jsonl": lambda d: (d / "gz inside.jsonl").write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.zst": lambda d: (d / "a.jsonl.zst").write_bytes(zstd(LINES.encode())),
    "lines.json": lambda d: (d / "lines.json").write_text(LINES),
    "array.json": lambda d: ROWS.to_json(d / "array.json", orient="records"),
    "pretty.json": lambda d: (d / "pretty.json").write_text(
        json.dumps(ROWS.to_dict("records"), indent=2)
    ),
    "array.json.gz": lambda d: (d / "array.json.gz").write_bytes(
        gzip.compress(ROWS.to_json(orient="records").encode())
    ),
    "array.jsonl": lambda d: ROWS.to_json(d / "array.jsonl", orient="records"),
    "objects.json": lambda d: (d / "objects.json").write_text(
        "\n".join(json.dumps(r, indent=1) for r in ROWS.to_dict("records"))
    ),
    "a.feather": lambda d: pyarrow.feather.write_feather(ROWS, d / "a.feather"),
    "zstd.feather": lambda d: pyarrow.feather.write_feather(
        ROWS, d / "zstd.feather", compression="zstd"
    ),
    "a.arrow": lambda d: ipc(d, "a.arrow", stream=False),
    "stream.arrow": lambda d: ipc(d, "stream.arrow", stream=True),
    "parquet inside.csv": lambda d: ROWS.to_parquet(d / "parquet inside.csv"),
    "no ending": lambda d: ROWS.to_parquet(d / "no ending"),
}


@pytest.mark.parametrize("name", WAYS)
def test_one_table_written_in_many_ways(name: str, tmp_path: Path) -> None:
    WAYS[name](tmp_path)
    assert events(tmp_path / name) == events(ROWS)
    schema, guesses = guess_schema(tmp_path / name, {})
    assert (schema.user, schema.time, schema.event) == ("user", "time", "event")
    assert {"user", "time", "event"} <= {guess.column for guess in guesses}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "csv.gz"])
def test_other_encodings(encoding: str, kind: str, tmp_path: Path) -> None:
    text = {"csv": CSV, "csv.gz": CSV, "jsonl": LINES, "json": ROWS.to_json(orient="records")}[kind]
    text = text.replace("\\u00e9", "é").replace("\\u00e4", "ä")
    data = text.encode(encoding)
    file = tmp_path / f"a.{kind}"
    file.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    assert events(file, encoding=encoding) == events(ROWS)
    assert prepare(
        file, tmp_path / "out", SCHEMA, encoding=encoding, split="time:1,0,0"
    ).manifest.events == len(ROWS)
    if encoding != "utf-16":  # which says so itself
        guess = "latin-1" if encoding == "cp1252" else encoding
        with pytest.raises(
            DataError, match=f"looks like {guess}. Pass --encoding {guess}"
        ) as error:
            events(file)
        assert str(file) in str(error.value)


@pytest.mark.parametrize("encoding", ["ebcdic", "base64", "rot13", "zip", "hex", ""])
def test_names_of_no_encoding_are_refused(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(DataError, match="not known; try utf-8"):
        prepare(tmp_path / "a.csv", tmp_path / "out", SCHEMA, encoding=encoding)


def test_a_line_that_is_not_utf8_is_told_with_its_number(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    lines = [f"ann,2024-03-01 10:00:00,e{i}" for i in range(100_000)]
    lines[90_000] = "ann,2024-03-01 10:00:00,caf\xe9 \x80"
    file.write_bytes(("user,time,event\n" + "\n".join(lines) + "\n").encode("latin-1"))
    with pytest.raises(DataError, match=r"line 90002: cannot be read as UTF-8.*--encoding"):
        read_events(file, SCHEMA)
    rejects = read_events(find_logs(file, "utf-8"), SCHEMA).rejects
    assert rejects["reason"].to_pylist() == ["line cannot be cut into columns"]
    with pytest.raises(DataError, match="--encoding 'klingon': not known"):
        find_logs(file, "klingon")


# --- quotes ---


def quotes(
    folder: Path, changes: dict[int, str], rows: int = 5000, names: str = "user,time,event,note"
) -> Path:
    lines = [f"u{i % 7},2024-03-01 10:00:00,e{i % 3},n{i}" for i in range(rows)]
    for number, line in changes.items():
        lines[number] = line
    (folder / "a.csv").write_text("\n".join([names, *lines]) + "\n")
    return folder / "a.csv"


WITH_NOTE = EventSchema(user="user", time="time", event="event")


@pytest.mark.parametrize(
    "changes",
    [
        {1000: 'u1,2024-03-01 10:00:00,"oops,n'},  # to the end of the file
        {
            1000: 'u1,2024-03-01 10:00:00,"oops,n',
            3000: 'u1,2024-03-01 10:00:00,"fine",n',
        },  # to the next quoted field
        {
            1000: 'u1,2024-03-01 10:00:00,"oops,n',
            3000: 'u1,2024-03-01 10:00:00,fine",n',
        },  # as if it were a field
        {
            1000: 'u1,2024-03-01 10:00:00,e,"oops',
            3000: 'u1,2024-03-01 10:00:00,e,fine"',
        },  # in a column nobody reads
        {1000: 'u1,2024-03-01 10:00:00,e,"oops', 1002: 'u1,2024-03-01 10:00:00,e,fine"'},
        {1000: '"u1,2024-03-01 10:00:00,e,n', 3000: 'u1",2024-03-01 10:00:00,e,n'},
        {1000: 'u1,2024-03-01 10:00:00,e,"'},
        {
            4999: 'u1,2024-03-01 10:00:00,e,"oops'
        },  # the last line swallows nothing, and is not whole either
    ],
)
def test_a_quote_that_is_not_closed_is_refused_with_its_line(
    changes: dict[int, str], tmp_path: Path
) -> None:
    file = quotes(tmp_path, changes)
    if changes.keys() == {4999}:
        assert len(read_events(file, WITH_NOTE).rejects) == 1
        return
    with pytest.raises(DataError, match=r"a\.csv, line 1002: a quote"):
        read_events(file, WITH_NOTE)


def test_ninety_thousand_rows_behind_a_quote(tmp_path: Path) -> None:
    file = quotes(tmp_path, {59_999: 'u1,2024-03-01 10:00:00,"oops,n'}, 90_000)
    with pytest.raises(DataError, match="line 60001"):
        prepare(file, tmp_path / "out", WITH_NOTE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "field",
    ['"two\nlines"', '"a\nlist, with commas, and more, of it\nof, words, in, it\nend"',
     '"say ""hi"""', '"x,y"', "5'6", '"Main St 1\n10115 Berlin\nGermany"'],
)  # fmt: skip
def test_fields_of_several_lines_are_read(field: str, tmp_path: Path) -> None:
    file = quotes(
        tmp_path, {10: f"u1,2024-03-01 10:00:00,e,{field}", 20: f"u1,2024-03-01 10:00:00,{field},n"}
    )
    found = read_events(file, WITH_NOTE)
    assert (len(found.table), len(found.rejects)) == (5000, 0)
    expected = next(csv.reader(io.StringIO(field)))[0] if "\n" not in field else field[1:-1]
    assert expected in found.table["event"].to_pylist()


def test_the_share_of_rejects_is_of_lines(tmp_path: Path) -> None:
    """Records of three lines with a column too many: each counts for three."""
    file = quotes(
        tmp_path, dict.fromkeys(range(100, 140), 'u1,2024-03-01 10:00:00,e,n,"one\ntwo\nthree"')
    )
    with pytest.raises(DataError, match="120 of 5,080 rows cannot be used"):
        prepare(file, tmp_path / "out", WITH_NOTE)
    store = prepare(file, tmp_path / "out", WITH_NOTE, max_reject_share=0.03, split="time:1,0,0")
    assert store.manifest.rejected == {"line cannot be cut into columns": 120}


# --- no header ---


@pytest.mark.parametrize(
    "text",
    ["ann,2024-03-01 10:00:00,tea\nbob,2024-03-02 10:00:00,milk\n", "1,5,3\n2,4,4\n",
     "7\t1709283600\tx\n7\t1709283601\ty\n",
     "ann,01.03.2024,tea\nbob,02.03.2024,tea\n", "ann,2024-03-01,ann\nann,2024-03-02,ann\n"],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_a_missing_header_is_said(text: str, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{ending}"
    file.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    with pytest.raises(
        DataError, match=r"looks like data, not like names of columns; put a line of names before"
    ):
        find_logs(file)


@pytest.mark.parametrize(
    "text",
    [
        "0,1,2\nann,2024-03-01,tea\n",
        "user,2024,2025\nann,1,2\n",
        "user,time,event\n",
        "2024-03-01,2024-03-02\na,b\n",
    ],
)
def test_odd_headers_are_headers(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert find_logs(tmp_path / "a.csv").columns == tuple(text.partition("\n")[0].split(","))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("a.xlsx", b"PK\x03\x04 sheet", "zip archive or an Excel"),
     ("a.csv", b"PK\x03\x04 sheet", "zip archive or an Excel"),
     ("a.feather", b"FEA1" + bytes(20), "Feather file of version 1"),
     ("a.db", b"SQLite format 3\0" + bytes(9), "SQLite"),
     ("a.csv.gz", gzip.compress(gzip.compress(b"user,time", mtime=0), mtime=0), "gzip inside gzip"),
     ("a.csv.gz", gzip.compress(b"PAR1 and so on", mtime=0), "parquet inside gzip"),
     ("a.orc", b"ORC" + bytes(9), "ORC"), ("a.avro", b"Obj\x01" + bytes(9), "Avro"),
     ("a.feather", b"hello", "cannot be read"),
     ("a.arrow", b"ARROW1\0\0" + bytes(9), "cannot be read")],
)  # fmt: skip
def test_files_of_another_kind_say_what_to_do(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_events(tmp_path / name, SCHEMA)


def test_line_ends_inside_quotes_stay_as_they_are(tmp_path: Path) -> None:
    """Also where they are cut by the pieces that are copied."""
    text = 'user,time,event\r\na,2024-01-01,"x\r\ny"\nb,2024-01-01,"say ""\r\n"" z"\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert read_events(tmp_path / "a.csv", SCHEMA).table["event"].to_pylist() == [
        "x\r\ny",
        'say "\r\n" z',
    ]
    for size in range(1, 9):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert "".join(_one_line_end(pieces)) == text.replace("event\r\n", "event\n").replace(
            'z"\r\n', 'z"\n'
        )


def test_line_ends_that_change_late_are_told(tmp_path: Path) -> None:
    rows = "".join(f"u{i % 9},2024-01-01 00:00:{i % 60:02d},x\n" for i in range(60_000))
    (tmp_path / "a.csv").write_bytes(f"user,time,event\n{rows}u,2024-01-01,x\r\n".encode())
    with pytest.raises(DataError, match="lines end in different ways"):
        read_events(tmp_path / "a.csv", SCHEMA)


def test_nan_in_json_is_null(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"location": "place"})
    lines = [{"user": "a", "time": "2024-03-01", "event": "x", "place": value} for value in
             (float("nan"), "NaN", 1.5, 2.0, float("inf"), float("-inf"), None)]  # fmt: skip
    lines += [
        {"user": float("nan"), "time": "2024-03-01", "event": "x"},
        {"user": "a", "time": float("nan"), "event": "x"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "a.json").write_text(json.dumps(lines))
    for name in ("a.jsonl", "a.json"):
        found = read_events(tmp_path / name, schema)
        assert sorted(found.table["location"].to_pylist(), key=str) == [
            "-inf",
            "1.5",
            "2",
            "NaN",
            None,
            None,
            "inf",
        ]
        assert sorted(found.rejects["reason"].to_pylist()) == ["time is null", "user is null"]


# --- columns nobody asks for ---


class Odd:
    pass


@pytest.mark.parametrize(
    "values",
    [[Odd(), 1, "x", None, b"y"], [{"a": 1}, [1], "x", 2, None],
     pd.period_range("2024", periods=5, freq="D"), pd.IntervalIndex.from_breaks(range(6)),
     [1 + 2j] * 5, [2**80, 1, 2, 3, 4], pd.arrays.SparseArray([0, 0, 1, 2, 0]),
     [[1], [[2]], None, [], 3], ["\ud800", "a", "b", "c", "d"]],
)  # fmt: skip
def test_unused_columns_of_frames_cannot_fail(values: Any) -> None:
    odd = pd.Series(values, dtype=object) if isinstance(values, list) else values
    frame = ROWS.assign(odd=odd)
    assert events(frame) == events(ROWS)
    assert events({name: frame[name].tolist() for name in frame}) == events(ROWS)
    schema, guesses = guess_schema(frame, {})
    assert schema.user == "user" and "odd" in {guess.column for guess in guesses}
    if isinstance(values, pd.arrays.SparseArray) or (isinstance(values, list) and 2**80 in values):
        return
    with pytest.raises(DataError, match="odd"):
        read_events(frame, EventSchema(user="user", time="time", event="event", extra=("odd",)))


def test_unused_columns_of_polars_and_arrow() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(ROWS.to_dict("list")).with_columns(
        polars.Series("odd", [Odd()] * 5, dtype=polars.Object)
    )
    assert events(frame) == events(ROWS)
    table = pa.Table.from_pandas(ROWS, preserve_index=False)
    kinds = [
        pa.array(np.zeros(5, np.float16)),
        pa.nulls(5),
        pa.array([1] * 5, pa.decimal256(60, 2)),
        pa.array([None] * 5, pa.month_day_nano_interval()),
    ]
    for values in kinds:
        assert events(table.append_column("odd", values)) == events(ROWS)
        assert guess_schema(table.append_column("odd", values), {})[0].user == "user"


def test_unused_columns_of_parquet_may_differ_between_files(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(ROWS, preserve_index=False)
    pq.write_table(table[:2].append_column("odd", pa.array([{"a": 1}] * 2)), tmp_path / "a.parquet")
    pq.write_table(table[2:].append_column("odd", pa.array([[1]] * 3)), tmp_path / "b.parquet")
    assert events(tmp_path) == events(ROWS)


def test_a_period_is_refused() -> None:
    frame = ROWS.assign(time=pd.period_range("2024-03-01", periods=5, freq="D"))
    with pytest.raises(DataError, match=r"column 'time': a pandas period is a span.*start_time"):
        read_events(frame, SCHEMA)
    with pytest.raises(DataError, match="column 'event'"):
        read_events(ROWS.assign(event=frame["time"]), SCHEMA)
    with pytest.raises(DataError, match="column 'time'"):
        read_events({"user": ["a"], "time": [pd.Period("2024")], "event": ["x"]}, SCHEMA)


@pytest.mark.parametrize("nothing", ["", " ", ["logs.csv", ""]])
def test_an_empty_path_is_refused(
    nothing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs.csv").write_text(CSV)
    with pytest.raises(DataError, match="empty path"):
        find_logs(nothing)
