"""Logs -> one DuckDB table expression: text, parquet and Arrow files, folders, globs, `datasets`
names, and frames.

Text formats are read as text, so that no sniffer can change a label, and copied once to a parquet
file of text. Only the columns that are asked for are read; dotted names reach below them
(nested.py).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.config import closest
from behavegpt.data.database import literal, quoted, reading, scratch
from behavegpt.data.schema import ROLES
from behavegpt.errors import DataError
from behavegpt.ingest.csv_files import copy_csv, csv_query
from behavegpt.ingest.files import LogFile, ipc_batches, look_at
from behavegpt.ingest.find_files import expand, without_repeats
from behavegpt.ingest.frames import HUB, Frame, as_frame, hub_table, plain_array
from behavegpt.ingest.json_files import json_query, json_sample
from behavegpt.ingest.nested import arrow_paths, part_sql, split_path
from behavegpt.ingest.source_values import (
    LISTS,
    by_position,
    column_kinds,
    column_types,
    event_values,
    from_start,
    value_of,
)
from behavegpt.paths import check_unicode

_SAMPLE = 100_000  # rows that the guess of columns looks at


@dataclass(frozen=True)
class Logs:
    """Files of one format, or one frame in memory."""

    name: str
    format: str  # csv, json, parquet, arrow or table
    members: tuple[LogFile, ...]
    # those that all files have, and those that the names of all their folders tell
    columns: tuple[str, ...]
    parts: tuple[str, ...] = ()  # the latter
    frame: Frame | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order they were named."""
        return tuple(member.path for member in self.members)

    @property
    def nested(self) -> tuple[str, ...]:
        """Dotted paths that are seen below the columns."""
        if self.frame is not None:
            return arrow_paths(self.frame.sample(LISTS).schema)
        return tuple(dict.fromkeys(path for member in self.members for path in member.nested))

    def has(self, column: str) -> bool:
        """Whether there is such a column, or what a dotted name begins with."""
        return split_path(column, self.columns) is not None


@dataclass(frozen=True)
class Source:
    """A table expression and the DuckDB types of its columns."""

    name: str
    files: tuple[Path, ...]
    sql: str
    types: dict[str, str]
    file: str  # SQL of the file a row came from
    wrong: str | None = None  # SQL, not null where a value of the row is a JSON list or object
    # table (file, line, number, lines) of CSV records that could not be cut into columns
    malformed: str | None = None
    # SQL of whether a row's time is a wall clock, where its type does not tell
    wall: str | None = None


def find_logs(logs: Any, encoding: str | None = None) -> Logs:
    """Files of paths, globs and folders, a `hf:NAME[:split]` data set, or a frame. Raises
    DataError.

    A frame is a pyarrow Table, a pandas or polars DataFrame, or a mapping of column name to values.
    `encoding` is that of text files; UTF-8, or UTF-16 with a byte order mark, need none.
    """
    if isinstance(logs, Logs):
        return logs
    if isinstance(logs, (str, Path)):
        logs = [logs]
    if not isinstance(logs, (list, tuple)):
        frame = as_frame(logs)
        return Logs("frame", "table", (), frame.names, (), frame)
    if not logs:
        raise DataError(
            "no logs were named; name a CSV, JSONL or parquet file, a folder or a glob."
        )
    if str(logs[0]).startswith(HUB):
        frame = as_frame(hub_table([str(log) for log in logs]))
        return Logs(str(logs[0]), "table", (), frame.names, (), frame)
    files = list(dict.fromkeys(file for log in logs for file in expand(str(log))))
    for file in files:
        check_unicode(file)
    members = without_repeats([look_at(file, encoding) for file in files])
    formats = {member.kind: member.path for member in members}
    if len(formats) > 1:
        one, two = list(formats.values())[:2]
        raise DataError(f"{one} and {two} differ in format; name files of one format only.")
    kind = next(iter(formats))
    shared = set.intersection(*(set(member.names) for member in members))
    # A column that is missing from the first thousand objects of one JSONL file is null there.
    names = dict.fromkeys(
        name for member in members for name in member.names if kind == "json" or name in shared
    )
    # What a file says of itself wins over the name of the folder in which it lies.
    own = {name.lower() for member in members for name in member.names}
    told = set.intersection(*({name for name, _ in member.parts} for member in members))
    parts = tuple(name for name, _ in members[0].parts if name in told and name.lower() not in own)
    name = str(files[0]) if len(members) == 1 else f"{files[0]} and {len(members) - 1} more"
    return Logs(name, kind, members, (*names, *parts), parts)


def check_columns(logs: Logs, needed: Mapping[str, str]) -> None:
    """Raise DataError when a column of `needed` (role -> column) is missing from any file."""
    for role, column in needed.items():
        found = split_path(column, logs.columns)
        # Fields of typed columns are looked up in their types when they are read; those of JSON are
        # known by example.
        if found and (
            not found[1] or logs.format != "json" or column in logs.nested or by_position(found[1])
        ):
            continue
        missing = (m for m in logs.members if split_path(column, m.names) is None)
        where, names = next(((m.path, m.names) for m in missing), (logs.name, logs.columns))
        names = (*names, *logs.parts, *logs.nested)
        listed = ", ".join(dict.fromkeys(names[:30]))
        hint = closest(column, names)
        known = "" if hint.startswith("Known") else f" Columns: {listed}."
        option = f"--{role}" if role in ROLES else "--extra"
        headless = (
            ", or put a line of names first if the file has none" if logs.format == "csv" else ""
        )
        raise DataError(
            f"{where}: no column {column!r} (the {role}). "
            f"{hint.replace('Known', 'Columns')}{known} "
            f"Name the right one with {option} COLUMN{headless}."
        )


def open_source(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    columns: Sequence[str],
    folder: Path,
    time: str | None = None,
) -> Source:
    """The `columns` of the logs as a table expression; text formats are copied to parquet inside
    `folder`.

    Where `time` is a list in each row, a row is a history: lists give one event per element, other
    values go with all.
    """
    columns = list(dict.fromkeys(columns))
    with reading(logs.name, logs.files):
        if logs.format == "json":
            copy = folder / "text.parquet"
            query = json_query(con, logs, columns, folder, time)
            con.execute(f"COPY ({query}) TO {literal(copy)} (FORMAT parquet)")
            sql = from_start(con, f"read_parquet({literal(copy)})", time)
            return Source(
                logs.name,
                logs.files,
                sql,
                column_types(con, sql),
                "behavegpt_file",
                "behavegpt_wrong",
            )
        malformed = "behavegpt_malformed" if logs.format == "csv" else None
        file = literal(logs.name) if logs.frame is not None else "behavegpt_file"
        base = _base(con, logs, _owned(logs, columns), folder)
        sql = from_start(con, event_values(con, logs, base, columns, folder, time), time)
        return Source(logs.name, logs.files, sql, column_types(con, sql), file, None, malformed)


def open_sample(con: duckdb.DuckDBPyConnection, logs: Logs) -> str:
    """A table expression of all columns and what is below them, for a look at the first rows."""
    own = [column for column in logs.columns if column not in logs.parts]
    if logs.format == "json":
        return f"({json_sample(con, logs, scratch(con))})"
    if logs.format == "csv":
        base = f"({csv_query(logs.members, own, scratch(con), check=False)})"
    elif logs.format == "parquet":
        base = _parquet_files(logs)
    else:
        con.register("behavegpt_logs", _head(logs))
        base = "behavegpt_logs"
    kinds = column_kinds(con, base)
    below = [path for path in logs.nested if (found := split_path(path, own)) and found[0] in kinds]
    expressions = [quoted(name) for name in own]
    expressions += [f"{part_sql(name)} AS {quoted(name)}" for name in logs.parts]
    expressions += [f"{value_of(logs, kinds, path, False).sql} AS {quoted(path)}" for path in below]
    return f"(SELECT {', '.join(expressions)} FROM {base})"


def _owned(logs: Logs, columns: Sequence[str]) -> list[str]:
    """The columns of the files in which the values are."""
    found = (split_path(column, logs.columns) for column in columns if column not in logs.parts)
    return list(dict.fromkeys(top for top, _ in filter(None, found)))


def _base(con: duckdb.DuckDBPyConnection, logs: Logs, columns: list[str], folder: Path) -> str:
    """A table expression of columns as they are in the files."""
    if logs.frame is not None:
        con.register("behavegpt_logs", logs.frame.select(columns))
        return "behavegpt_logs"
    if logs.format == "csv":
        copy = folder / "text.parquet"
        copy_csv(con, logs.members, columns, copy, folder)
        return f"read_parquet({literal(copy)})"
    if logs.format == "parquet":
        try:
            column_types(con, _parquet_files(logs))
            return _parquet_files(logs)
        # another column has a type that it cannot read, or that differs between the files
        except duckdb.Error:
            pass
    copies = [
        _copy(member, columns, folder / f"copy-{i}.parquet")
        for i, member in enumerate(logs.members)
    ]
    return f"read_parquet({_listed(copies)}, union_by_name=true, hive_partitioning=false)"


def _parquet_files(logs: Logs) -> str:
    return (
        f"read_parquet({_listed(logs.files)}, union_by_name=true, filename='behavegpt_file', "
        "hive_partitioning=false)"
    )


def _copy(member: LogFile, columns: list[str], target: Path) -> Path:
    """Some columns of a parquet or Arrow file, with its name, as a parquet file that DuckDB
    reads."""
    writer = None
    with reading(str(member.path), [member.path]):
        if member.kind == "parquet":
            opened = pq.ParquetFile(member.path)
            batches, schema = opened.iter_batches(columns=columns), opened.schema_arrow
        else:
            batches, schema = ipc_batches(member.path, columns), None
        for batch in batches:
            arrays = [plain_array(name, batch[name]) for name in columns]
            table = pa.Table.from_arrays(
                [*arrays, pa.array([str(member.path)] * len(batch))], [*columns, "behavegpt_file"]
            )
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table.cast(writer.schema))
        if writer is None:
            empty = (
                schema.empty_table().select(columns)
                if schema
                else pa.table({name: pa.nulls(0, pa.string()) for name in columns})
            )
            pq.write_table(empty.append_column("behavegpt_file", pa.array([], pa.string())), target)
        else:
            writer.close()
    return target


def _head(logs: Logs) -> pa.Table:
    """The first rows of a frame or of Arrow files."""
    if logs.frame is not None:
        return logs.frame.sample(_SAMPLE)
    tables, rows = [], 0
    for member in logs.members:
        for batch in ipc_batches(member.path):
            tables.append(
                pa.Table.from_batches([batch]).append_column(
                    "behavegpt_file", pa.array([str(member.path)] * len(batch))
                )
            )
            rows += len(batch)
            if rows >= _SAMPLE:
                break
    table = (
        pa.concat_tables(tables, promote_options="permissive")
        if tables
        else pa.table({c: pa.array([], pa.string()) for c in logs.columns})
    )
    return as_frame(table).sample(_SAMPLE)


def _listed(files: Sequence[Path]) -> str:
    """Files as a SQL list; the characters of a glob stand for themselves."""
    return "[" + ", ".join(literal(glob.escape(str(file))) for file in files) + "]"
