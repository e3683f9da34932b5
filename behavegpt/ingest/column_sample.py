"""The first rows of a log, and what is in their columns: what the guess of roles looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
from pydantic import ValidationError

from behavegpt.data.database import one_row, quoted, reading
from behavegpt.data.schema import ROLES, EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.column_names import NAMES, name_rank
from behavegpt.ingest.log_table import open_sample
from behavegpt.ingest.plan_columns import is_label_type
from behavegpt.ingest.sources import Logs
from behavegpt.ingest.time_columns import is_time_type
from behavegpt.ingest.time_join import time_parts

REQUIRED = ("user", "time", "event")
# enough to tell a label from a text, and read in a second
_ROWS = 100_000
_ADDED = ("behavegpt_file", "behavegpt_wrong")  # by json_files.py
# share of rows with a value, or with a time that can be read, that makes a column good
FULL = 0.99


@dataclass(frozen=True)
class ColumnSample:
    """The table `sample` of the first rows, with what is in its columns."""

    con: duckdb.DuckDBPyConnection
    logs: Logs
    types: dict[str, str]
    rows: int
    filled: dict[str, float]  # share of rows with a value
    distinct: dict[str, int]


def take_sample(con: duckdb.DuckDBPyConnection, logs: Logs) -> ColumnSample:
    """The first rows of the logs as the table `sample`. Raises DataError."""
    with reading(logs.name, logs.files):
        con.execute(f"CREATE TABLE sample AS SELECT * FROM {open_sample(con, logs)} LIMIT {_ROWS}")
        described = con.execute("DESCRIBE sample").fetchall()
        types = {row[0]: row[1] for row in described if row[0] not in _ADDED}

        rows = one_row(con, "SELECT count(*) FROM sample")[0]
        filled, distinct = {}, {}

        # one by one: hundreds of distinct counts at once take gigabytes
        for column, kind in types.items():
            value = _value(column, kind)
            count, distinct[column] = one_row(
                con, f"SELECT count({value}), count(DISTINCT {value}) FROM sample"
            )
            filled[column] = count / max(1, rows)

    return ColumnSample(con, logs, types, rows, filled, distinct)


def _value(column: str, kind: str) -> str:
    """SQL of a value, null for an empty text or NaN."""
    if kind in ("FLOAT", "DOUBLE"):
        return f"CASE WHEN NOT isnan({quoted(column)}) THEN {quoted(column)} END"
    # exported tables write an absent text as an empty one
    return f"nullif(trim({quoted(column)}), '')" if kind == "VARCHAR" else quoted(column)


def free_columns(sample: ColumnSample, settings: Mapping[str, Any]) -> list[str]:
    """Columns without a role that could be a label or a time."""
    taken = {column for role in ROLES for column in columns_of(role, settings, sample.logs)}
    taken |= set(settings.get("extra", ()))

    # an object as a whole is no label, the values in it are: `location.city`
    taken |= {path.rpartition(".")[0] for path in sample.logs.nested}

    return [
        column
        for column, kind in sample.types.items()
        if column not in taken and is_label_type(element_type(kind))
    ]


def element_type(kind: str) -> str:
    """The type of an event's value where a row is a history."""
    return kind.removesuffix("[]")


def columns_of(role: str, settings: Mapping[str, Any], logs: Logs) -> tuple[str, ...]:
    """The columns of a role by the settings: none, one, or two that a time joins."""
    column = settings.get(role)
    if not column:
        return ()
    return time_parts(column, logs) if role == "time" else (column,)


def first_column(
    sample: ColumnSample, role: str, ranks: Mapping[str, tuple[Any, ...]]
) -> str | None:
    """The column of the lowest rank. Raises DataError if a needed role has none, or two."""
    best = sorted(ranks, key=lambda column: ranks[column])
    # two columns alike: a guess would be a coin toss
    if len(best) > 1 and ranks[best[0]] == ranks[best[1]]:
        raise DataError(
            f"{sample.logs.name}: {best[0]!r} and {best[1]!r} could both be the {role} "
            f"column; choose one with --{role} COLUMN."
        )

    if best:
        return best[0]

    if role in REQUIRED:
        raise DataError(
            f"{sample.logs.name}: no column looks like the {role} column; name it with --{role} "
            f"COLUMN. Columns: {', '.join([*sample.logs.columns, *sample.logs.nested][:30])}."
            f"{_passed_over(sample, role)}"
        )
    return None


def _passed_over(sample: ColumnSample, role: str) -> str:
    """What to say of columns that are called like the role, but are not in every file, or are no
    text or number."""
    told = ""
    # a column that one file lacks is in none of the sample
    for member in sample.logs.members:
        for name in member.names:
            lacking = next((m.path for m in sample.logs.members if name not in m.names), None)
            if (
                lacking
                and name not in sample.logs.columns
                and name_rank(name, NAMES[role]) is not None
            ):
                return f" {name!r} is missing from {lacking}."

    for column, kind in sample.types.items():
        usable = is_label_type(element_type(kind)) or is_time_type(element_type(kind))
        if not usable and name_rank(column, NAMES[role]) is not None:
            told = f" {column!r} is {kind}, neither text nor number; write it as text."
    return told


def checked_schema(name: str, settings: Mapping[str, Any]) -> EventSchema:
    try:
        return EventSchema.model_validate(
            {name: value for name, value in settings.items() if value not in ("", None)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{name}: {'.'.join(map(str, first['loc'])) or 'columns'} = {first['input']!r}: "
            f"{first['msg']}."
        ) from None
