"""Logs -> one DuckDB table expression.

Text formats are read as text, so that no sniffer can change a label, and copied once to a parquet
file of text. Only the columns that are asked for are read; dotted names reach below them
(nested.py).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.database import literal, quoted, reading, scratch
from behavegpt.ingest.arrow_files import ipc_batches
from behavegpt.ingest.csv_files import copy_csv, csv_query
from behavegpt.ingest.frames import as_frame, plain_array
from behavegpt.ingest.json_files import json_query, json_sample
from behavegpt.ingest.log_file import LogFile
from behavegpt.ingest.nested import part_sql, split_path
from behavegpt.ingest.source_values import (
    column_kinds,
    column_types,
    event_values,
    from_start,
    value_of,
)
from behavegpt.ingest.sources import Logs

_SAMPLE = 100_000  # rows that the guess of columns looks at


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
    # one column may have several roles
    columns = list(dict.fromkeys(columns))
    with reading(logs.name, logs.files):
        if logs.format == "json":
            # as text, once: the guess, the dictionaries and the events read it again and again
            copy = folder / "text.parquet"
            query = json_query(con, logs, columns, folder, time)
            con.execute(f"COPY ({query}) TO {literal(copy)} (FORMAT parquet)")
            sql = from_start(con, f"read_parquet({literal(copy)})", time)
            types = column_types(con, sql)
            return Source(
                logs.name, logs.files, sql, types, "behavegpt_file", wrong="behavegpt_wrong"
            )

        base = _base(con, logs, _owned(logs, columns), folder)
        sql = from_start(con, event_values(con, logs, base, columns, folder, time), time)
        malformed = "behavegpt_malformed" if logs.format == "csv" else None
        file = literal(logs.name) if logs.frame is not None else "behavegpt_file"
        types = column_types(con, sql)
        return Source(logs.name, logs.files, sql, types, file, malformed=malformed)


def open_sample(con: duckdb.DuckDBPyConnection, logs: Logs) -> str:
    """A table expression of all columns and what is below them, for a look at the first rows."""
    own = [column for column in logs.columns if column not in logs.parts]
    if logs.format == "json":
        return f"({json_sample(con, logs, scratch(con))})"

    if logs.format == "csv":
        # unchecked: the first rows are looked at, and the copy will check all
        base = f"({csv_query(logs.members, own, scratch(con), check=False)})"
    elif logs.format == "parquet":
        base = _parquet_files(logs)
    else:
        # Arrow is read here: DuckDB sees the rows as a table in memory
        con.register("behavegpt_logs", _head(logs))
        base = "behavegpt_logs"

    kinds = column_kinds(con, base)
    # seen in some file, and of a column that DuckDB reads
    below = [path for path in logs.nested if (split := split_path(path, own)) and split[0] in kinds]

    expressions = [quoted(name) for name in own]
    expressions += [f"{part_sql(name)} AS {quoted(name)}" for name in logs.parts]
    expressions += [f"{value_of(logs, kinds, path, False).sql} AS {quoted(path)}" for path in below]
    return f"(SELECT {', '.join(expressions)} FROM {base})"


def _owned(logs: Logs, columns: Sequence[str]) -> list[str]:
    """The columns of the files in which the values are."""
    paths = (split_path(column, logs.columns) for column in columns if column not in logs.parts)
    return list(dict.fromkeys(top for top, _ in filter(None, paths)))


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
            # DuckDB reads parquet faster than through copies, if it can read every type
            column_types(con, _parquet_files(logs))
            return _parquet_files(logs)
        # another column has a type that it cannot read, or that differs between the files
        except duckdb.Error:
            pass

    # through Arrow, which reads what DuckDB does not
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
            # only what is asked for: a type that DuckDB cannot read may be in another column
            arrays = [plain_array(name, batch[name]) for name in columns]
            table = pa.Table.from_arrays(
                [*arrays, pa.array([str(member.path)] * len(batch))], [*columns, "behavegpt_file"]
            )
            # a file without batches has no schema to write by: see below
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
