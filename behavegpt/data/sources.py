"""Logs -> one DuckDB table expression: CSV, JSONL and parquet files, folders, globs, `datasets` names, and frames.

Text formats are read as text, so that no sniffer can change a label, and copied once to a parquet file of text.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.config import closest
from behavegpt.data.database import literal, quoted, reading
from behavegpt.data.frames import HUB, as_table, hub_table
from behavegpt.data.schema import ROLES
from behavegpt.errors import DataError

FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".csv.gz": "csv", ".tsv.gz": "csv",
    ".jsonl": "json", ".ndjson": "json", ".jsonl.gz": "json", ".ndjson.gz": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_DELIMITERS = ",\t;|"
_LONGEST_LINE = 1 << 24  # bytes
_JSON_HEAD = 1000  # objects whose keys name the columns


@dataclass(frozen=True)
class Logs:
    """Files of one format, or one table in memory."""

    name: str
    format: str  # csv, json, parquet or table
    headers: dict[Path, tuple[str, ...]]  # columns of each file
    columns: tuple[str, ...]  # those that all files have
    table: pa.Table | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order they were named."""
        return tuple(self.headers)


@dataclass(frozen=True)
class Source:
    """A table expression and the DuckDB types of its columns."""

    name: str
    files: tuple[Path, ...]
    sql: str
    types: dict[str, str]
    file: str  # SQL of the file a row came from
    wrong: str | None = None  # SQL, not null where a value of the row is a JSON list or object
    malformed: str | None = None  # table (file, line) of CSV lines that could not be cut into columns


def find_logs(logs: Any) -> Logs:
    """Files of paths, globs and folders, a `hf:NAME[:split]` data set, or a frame. Raises DataError.

    A frame is a pyarrow Table, a pandas or polars DataFrame, or a mapping of column name to values.
    """
    if isinstance(logs, (str, Path)):
        logs = [logs]
    if not isinstance(logs, (list, tuple)):
        return _table_logs("frame", as_table(logs))
    if not logs:
        raise DataError("no logs were named; name a CSV, JSONL or parquet file, a folder or a glob.")
    if str(logs[0]).startswith(HUB):
        return _table_logs(str(logs[0]), hub_table([str(log) for log in logs]))
    files = list(dict.fromkeys(file for log in logs for file in _expand(str(log))))
    formats = {_format(file): file for file in files}
    if len(formats) > 1:
        one, two = list(formats.values())[:2]
        raise DataError(f"{one} and {two} differ in format; name files of one format only.")
    kind = next(iter(formats))
    headers = {file: _header(file, kind) for file in files}
    shared = set.intersection(*(set(names) for names in headers.values()))
    # A column that is missing from the first thousand objects of one JSONL file is null there.
    found = dict.fromkeys(name for names in headers.values() for name in names if kind == "json" or name in shared)
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return Logs(name, kind, headers, tuple(found))


def check_columns(logs: Logs, needed: Mapping[str, str]) -> None:
    """Raise DataError when a column of `needed` (role -> column) is missing from any file."""
    for role, column in needed.items():
        if column in logs.columns:
            continue
        where, names = next(((f, n) for f, n in logs.headers.items() if column not in n), (logs.name, logs.columns))
        listed = ", ".join(names[:30])
        hint = closest(column, names)
        known = "" if hint.startswith("Known") else f" Columns: {listed}."
        option = f"--{role}" if role in ROLES else "--extra"
        raise DataError(
            f"{where}: no column {column!r} (the {role}). {hint.replace('Known', 'Columns')}{known} "
            f"Name the right one with {option} COLUMN."
        )


def open_source(con: duckdb.DuckDBPyConnection, logs: Logs, columns: Sequence[str], folder: Path) -> Source:
    """The `columns` of the logs as a table expression; text formats are copied to parquet inside `folder`."""
    columns = list(dict.fromkeys(columns))
    file, malformed = "behavegpt_file", None
    with reading(logs.name, logs.files):
        if logs.table is not None:
            con.register("behavegpt_logs", logs.table.select(columns))
            sql, file = "behavegpt_logs", literal(logs.name)
        elif logs.format == "parquet":
            sql = _parquet(logs)
        else:
            copy = folder / "text.parquet"
            con.execute(f"COPY ({_text(logs, columns)}) TO {literal(copy)} (FORMAT parquet)")
            sql = f"read_parquet({literal(copy)})"
        if logs.format == "csv":
            malformed = "behavegpt_malformed"
            con.execute(
                f"CREATE TABLE {malformed} AS SELECT DISTINCT file_path AS file, csv_line AS line, line AS number "
                "FROM reject_errors JOIN reject_scans USING (scan_id, file_id)"
            )
        types = {row[0]: row[1] for row in con.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()}
        wrong = "behavegpt_wrong" if logs.format == "json" else None
        return Source(logs.name, logs.files, sql, types, file, wrong, malformed)


def open_sample(con: duckdb.DuckDBPyConnection, logs: Logs) -> str:
    """A table expression of all columns, for a look at the first rows: text columns are not copied."""
    if logs.table is not None:
        con.register("behavegpt_logs", logs.table)
        return "behavegpt_logs"
    return _parquet(logs) if logs.format == "parquet" else f"({_text(logs, logs.columns)})"


def _parquet(logs: Logs) -> str:
    return f"read_parquet({_listed(logs.files)}, union_by_name=true, filename='behavegpt_file')"


def _text(logs: Logs, columns: Sequence[str]) -> str:
    """Query of the columns of CSV or JSONL files as text, with the file and a mark for lists and objects."""
    if logs.format == "json":
        kinds = ", ".join(f"{literal(c)}: 'JSON'" for c in columns)
        values = ", ".join(f"({quoted(c)}->>'$') AS {quoted(c)}" for c in columns)
        nested = " OR ".join(f"json_type({quoted(c)}) IN ('ARRAY', 'OBJECT')" for c in columns)
        return (
            f"SELECT {values}, behavegpt_file, CASE WHEN {nested} THEN true END AS behavegpt_wrong "
            f"FROM read_json({_listed(logs.files)}, format='newline_delimited', columns={{{kinds}}}, "
            f"filename='behavegpt_file', maximum_object_size={_LONGEST_LINE})"
        )
    values = ", ".join(quoted(c) for c in columns)
    # Files with the same header are read together; DuckDB cannot both match columns by name and keep broken lines.
    groups: dict[tuple[str, tuple[str, ...]], list[Path]] = {}
    for file, names in logs.headers.items():
        groups.setdefault((_delimiter(_head(file)), names), []).append(file)
    return " UNION ALL ".join(
        f"SELECT {values}, behavegpt_file FROM read_csv({_listed(files)}, columns={_all_text(names)}, header=true, "
        f"delim={literal(delimiter)}, quote='\"', escape='\"', auto_detect=false, filename='behavegpt_file', "
        f"store_rejects=true, rejects_limit=0, max_line_size={_LONGEST_LINE})"
        for (delimiter, names), files in groups.items()
    )


def _all_text(names: Sequence[str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names) + "}"


def _listed(files: Sequence[Path]) -> str:
    """Files as a SQL list; the characters of a glob stand for themselves."""
    return "[" + ", ".join(literal(glob.escape(str(file))) for file in files) + "]"


def _table_logs(name: str, table: pa.Table) -> Logs:
    _check_distinct(name, table.column_names)
    return Logs(name, "table", {}, tuple(table.column_names), table)


def _expand(log: str) -> list[Path]:
    path = Path(log)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "_")))
    else:
        found = sorted(Path(p) for p in glob.glob(log, recursive=True) if Path(p).is_file())
    if not found:
        empty = "the glob matches no file" if glob.has_magic(log) else "no such file or folder"
        raise DataError(f"{log}: {'the folder holds no files' if path.is_dir() else empty}; check the path.")
    return found


def _format(file: Path) -> str:
    kinds = [kind for ending, kind in FORMATS.items() if file.name.lower().endswith(ending)]
    if not kinds:
        raise DataError(f"{file}: unknown extension; rename or convert the file. Known: {', '.join(FORMATS)}.")
    return kinds[0]


def _header(file: Path, kind: str) -> tuple[str, ...]:
    """Column names of a file. Raises DataError when there are none, or one occurs twice."""
    with reading(str(file), [file]):
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty (0 bytes); remove it or write it again.")
        if kind == "parquet":
            names = tuple(pq.read_schema(file).names)
        elif kind == "json":
            names = _json_names(file)
        else:
            head = _head(file)
            names = tuple(next(csv.reader([head], delimiter=_delimiter(head)))) if head.strip() else ()
    if not names:
        raise DataError(
            f"{file}: no column names; a CSV file begins with a line of names, a JSONL file with an object."
        )
    _check_distinct(str(file), names)
    return names


def _open_text(file: Path) -> Any:
    opener: Any = gzip.open if file.name.lower().endswith(".gz") else open
    return opener(file, "rt", encoding="utf-8-sig", newline="")


def _head(file: Path) -> str:
    with _open_text(file) as stream:
        return str(stream.readline(_LONGEST_LINE)).rstrip("\r\n")


def _delimiter(head: str) -> str:
    return max(_DELIMITERS, key=head.count)


def _json_names(file: Path) -> tuple[str, ...]:
    """Keys of the first thousand objects; the same key twice in one object is an error."""
    names: dict[str, None] = {}

    def keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if twice:
            raise DataError(f"{file}: the key {twice[0]!r} occurs twice in one object; keep one.")
        return dict(pairs)

    with _open_text(file) as stream:
        for number, line in zip(range(1, _JSON_HEAD + 1), stream, strict=False):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=keys)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}, line {number}: not JSON ({error}); write one object per line.") from None
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number}: {type(row).__name__} found; write one object per line.")
            names.update(dict.fromkeys(row))
    return tuple(names)


def _check_distinct(where: str, names: Sequence[str]) -> None:
    """DuckDB takes names that differ only in case for the same."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.get(name.lower())
        if first is not None:
            twice = "twice" if first == name else f"beside {first!r}, which differs only in case"
            raise DataError(f"{where}: column {name!r} occurs {twice}; rename one of them.")
        seen[name.lower()] = name
