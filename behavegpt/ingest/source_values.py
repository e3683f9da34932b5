"""The columns of a log by their dotted names, one row per event, as one table expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from behavegpt.data.database import literal, one_row, quoted
from behavegpt.errors import DataError
from behavegpt.ingest.nested import Value, check_lengths, part_sql, split_path, typed_value

if TYPE_CHECKING:
    from behavegpt.ingest.sources import Logs

SINCE_START, _START = "time_since_start", 946_684_800  # 2000-01-01
LISTS = 100  # rows that tell whether a row holds a history


def event_values(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    base: str,
    columns: list[str],
    folder: Path,
    time: str | None,
) -> str:
    """A table expression of the columns by their dotted names, one row per event."""
    kinds = column_kinds(con, base)
    _check_texts(con, logs, base, columns, kinds)

    # rows are histories where the time is a list
    many = time is not None and _is_many(
        con, base, value_of(logs, kinds, time, True), kinds.get(time)
    )
    # columns as they stand: nothing to select, and parquet is read without a copy
    if not many and all(column in kinds and column not in logs.parts for column in columns):
        return base

    file = "" if logs.frame is not None else ", behavegpt_file"

    if not many:
        values = (
            f"{value_of(logs, kinds, column, False).sql} AS {quoted(column)}" for column in columns
        )
        return f"(SELECT {', '.join(values)}{file} FROM {base})"

    # each row is a history: lists give one event per element, other values go with all of them
    lists = {
        column: _list(con, base, value_of(logs, kinds, column, True), kinds.get(column))
        for column in columns
    }
    check_lengths(con, logs.name, base, {column: sql for column, sql in lists.items() if sql})

    values = (
        f"unnest({sql}) AS {quoted(column)}"
        if sql
        else f"{value_of(logs, kinds, column, True).sql} AS {quoted(column)}"
        for column, sql in lists.items()
    )

    # unnested once: a view would unnest again in each query
    copy = folder / "events.parquet"
    con.execute(
        f"COPY (SELECT {', '.join(values)}{file} FROM {base}) TO {literal(copy)} (FORMAT parquet)"
    )
    return f"read_parquet({literal(copy)})"


def from_start(con: duckdb.DuckDBPyConnection, sql: str, time: str | None) -> str:
    """The table with EasyTPP's times, which count from the start of each history, as seconds since
    `_START`."""
    if time is None or time.rpartition(".")[2] != SINCE_START:
        return sql
    name, kind = quoted(time), column_types(con, sql)[time]
    moved = (
        f"coalesce((TRY_CAST({name} AS DOUBLE) + {_START})::VARCHAR, {name})"
        if kind == "VARCHAR"
        else f"{name} + {_START}"
    )
    return f"(SELECT * REPLACE ({moved} AS {name}) FROM {sql})"


def _check_texts(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    base: str,
    columns: Sequence[str],
    kinds: Mapping[str, Any],
) -> None:
    """Raise DataError for a path below a column of text in which no row holds such a value as
    JSON."""
    for column in columns:
        path = None if column in logs.parts else split_path(column, kinds.keys())
        if path is None or not path[1] or kinds[path[0]].id != "varchar":
            continue

        # text that is no JSON gives null: texts without any value are not what was meant
        top, steps = path
        value = value_of(logs, kinds, column, False).sql
        texts, values = one_row(con, f"SELECT count({quoted(top)}), count({value}) FROM {base}")
        if texts and not values:
            raise DataError(
                f"{logs.name}: column {top!r} is text, and none of it is JSON with a field "
                f"{'.'.join(steps)!r}; name another column than {column!r}."
            )


def value_of(logs: Logs, kinds: Mapping[str, Any], column: str, many: bool) -> Value:
    """The value of a column by its dotted name; `many`: rows may be histories."""
    if column in logs.parts:
        return Value(part_sql(column))
    path = split_path(column, kinds.keys())
    assert path is not None  # check_columns
    return typed_value(path[0], kinds[path[0]], path[1], many)


def _list(con: duckdb.DuckDBPyConnection, base: str, value: Value, kind: Any) -> str | None:
    """SQL of the list of a history's values; None for a value that goes with all events."""
    if not _is_many(con, base, value, kind):
        return None
    if value.many:
        return f"coalesce({value.sql}, [NULL])"
    parsed = f"CASE WHEN json_valid({value.sql}) THEN from_json({value.sql}, '[\"VARCHAR\"]')"
    return f"coalesce({parsed} ELSE TRY_CAST({value.sql} AS VARCHAR[]) END, [NULL])"


def _is_many(con: duckdb.DuckDBPyConnection, base: str, value: Value, kind: Any) -> bool:
    """Whether a value is a list, or text that looks like one in all of the first rows: ['a',
    'b']."""
    if value.many or kind is None or kind.id != "varchar":
        return value.many
    rows = (
        f"SELECT trim({value.sql}) AS value FROM {base} WHERE {value.sql} IS NOT NULL LIMIT {LISTS}"
    )
    return bool(one_row(con, f"SELECT bool_and(value LIKE '[%]') FROM ({rows})")[0])


def column_types(con: duckdb.DuckDBPyConnection, sql: str) -> dict[str, str]:
    """Column -> DuckDB type of a table expression."""
    return {row[0]: row[1] for row in con.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()}


def column_kinds(con: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    """DuckDB's types as objects, with what they hold."""
    # no rows are read: a relation knows its types
    relation = con.sql(f"SELECT * FROM {sql}")
    return dict(zip(relation.columns, relation.types, strict=True))


def by_position(steps: Sequence[str]) -> bool:
    """Whether a step below a column is a place in a list."""
    return any(step.isdecimal() for step in steps)
