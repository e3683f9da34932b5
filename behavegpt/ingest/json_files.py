"""JSON files in DuckDB: lines, arrays and single objects, values below them, and rows that hold a
history."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from behavegpt.data.database import literal, quoted
from behavegpt.data.labels import EXACT
from behavegpt.ingest.log_file import LONGEST_LINE, LogFile, write_utf8
from behavegpt.ingest.nested import (
    Value,
    check_lengths,
    json_list,
    json_value,
    part_sql,
    split_path,
)

if TYPE_CHECKING:
    from behavegpt.ingest.sources import Logs

_SHAPES = 200  # rows by whose shape the paths are read


def json_query(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    columns: Sequence[str],
    folder: Path,
    time: str | None,
) -> str:
    """Query of the columns as text, one row per event, with the file and a mark for lists and
    objects.

    Raises DataError for lists of different lengths in one row.
    """
    # what folders say of every row (KEY=VALUE) stands in no object
    own = [column for column in logs.columns if column not in logs.parts]
    paths = {column: split_path(column, own) for column in columns if column not in logs.parts}
    tops = list(dict.fromkeys(top for top, _ in filter(None, paths.values())))

    base = f"({_read(logs.members, tops, folder)})"

    shapes = _shapes(con, base, tops)
    # rows are histories where the time is a list in the first rows
    many = time is not None and time in paths and _value(paths[time], shapes, True).many

    inner, lists = [], {}
    for column, path in paths.items():
        value = _value(path, shapes, many)
        if value.many:
            is_list = value.sql.startswith("list_transform")
            # a single value beside lists is a list of one: check_lengths then says so
            lists[column] = value.sql if is_list else json_list(value.sql)
            inner.append(f"unnest({lists[column]}) AS {quoted(column)}")
        else:
            inner.append(f"{value.sql} AS {quoted(column)}")

    if len(lists) > 1:
        check_lengths(con, logs.name, base, lists)

    return _texts(columns, logs, f"(SELECT {', '.join([*inner, 'behavegpt_file'])} FROM {base})")


def json_sample(con: duckdb.DuckDBPyConnection, logs: Logs, folder: Path) -> str:
    """Query of all columns and what is seen below them as text."""
    own = [column for column in logs.columns if column not in logs.parts]
    base = f"({_read(logs.members, own, folder)})"
    shapes = _shapes(con, base, own)

    columns = [*logs.columns, *(path for path in logs.nested if path not in logs.columns)]
    paths = {column: split_path(column, own) for column in columns if column not in logs.parts}

    inner = [
        f"{_value(path, shapes, False).sql} AS {quoted(column)}" for column, path in paths.items()
    ]
    return _texts(columns, logs, f"(SELECT {', '.join([*inner, 'behavegpt_file'])} FROM {base})")


def _read(files: Sequence[LogFile], columns: Sequence[str], folder: Path) -> str:
    kinds = ", ".join(f"{literal(column)}: 'JSON'" for column in columns)

    groups: dict[tuple[object, ...], list[LogFile]] = {}
    for file in files:
        # files that are written alike are read together, converted ones each from its copy
        alike = (file.layout, file.compression, file.path if file.converted else None)
        groups.setdefault(alike, []).append(file)

    parts = []
    for group in groups.values():
        first = group[0]
        values, paths, compression = "*", [file.path for file in group], first.compression
        if first.converted:
            paths, compression = [folder / f"text-{files.index(first)}.json"], "none"
            write_utf8(first, paths[0])
            values = f"* REPLACE ({literal(first.path)} AS behavegpt_file)"

        # escaped: a `*` in a file's name is no pattern here
        listed = "[" + ", ".join(literal(glob.escape(str(path))) for path in paths) + "]"
        parts.append(
            f"SELECT {values} FROM read_json({listed}, format={literal(first.layout)}, "
            f"columns={{{kinds}}}, filename='behavegpt_file', hive_partitioning=false, "
            f"compression={literal(compression)}, maximum_object_size={LONGEST_LINE})"
        )

    return " UNION ALL ".join(parts)


def _shapes(
    con: duckdb.DuckDBPyConnection, base: str, columns: Sequence[str]
) -> dict[str, list[Any]]:
    """Parsed values of the columns in the first rows."""
    values = ", ".join(f"{quoted(column)}::VARCHAR" for column in columns)
    # paths are read off values that are there: a schema would have to look at the whole file
    rows = con.execute(f"SELECT {values} FROM {base} LIMIT {_SHAPES}").fetchall()
    shapes: dict[str, list[Any]] = {column: [] for column in columns}
    for row in rows:
        for column, text in zip(columns, row, strict=True):
            if text is not None:
                shapes[column].append(json.loads(text))
    return shapes


def _value(
    where: tuple[str, list[str]] | None, shapes: Mapping[str, list[Any]], many: bool
) -> Value:
    assert where is not None  # check_columns
    return json_value(where[0], shapes[where[0]], where[1], many)


def _texts(columns: Sequence[str], logs: Logs, base: str) -> str:
    names = [quoted(column) for column in columns if column not in logs.parts]
    values = [
        part_sql(column) if column in logs.parts else _text(quoted(column)) for column in columns
    ]

    shown = ", ".join(
        f"{value} AS {quoted(column)}" for value, column in zip(values, columns, strict=True)
    )

    # a list or object where a value is expected: the row is rejected, not written as JSON
    nested = " OR ".join(f"json_type({name}) IN ('ARRAY', 'OBJECT')" for name in names) or "false"
    return (
        f"SELECT {shown}, behavegpt_file, CASE WHEN {nested} THEN true END AS behavegpt_wrong "
        f"FROM {base}"
    )


def _text(name: str) -> str:
    """SQL of a JSON value as text: NaN, which Python writes, is null; whole floats are integers, as
    in every format."""
    text = f"({name}->>'$')"
    number = (
        f"CASE WHEN {text} = 'NaN' THEN NULL WHEN ends_with({text}, 'Infinity') THEN "
        f"replace({text}, 'Infinity', 'inf') WHEN ends_with({text}, '.0') AND abs({text}::DOUBLE) "
        f"< {EXACT['DOUBLE']} THEN split_part({text}, '.', 1) ELSE {text} END"
    )
    return f"CASE WHEN json_type({name}) = 'DOUBLE' THEN {number} ELSE {text} END"
