"""Times in more than one place: date and time of day in two columns, zones in some files and not in
others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import pyarrow as pa

from behavegpt.data.database import literal, quoted
from behavegpt.errors import DataError
from behavegpt.ingest.arrow_files import arrow_schema
from behavegpt.ingest.log_table import Source
from behavegpt.ingest.nested import split_path
from behavegpt.ingest.sources import Logs, check_columns
from behavegpt.ingest.time_survey import is_number, is_text

PLUS = "+"  # between the columns of the date and of the time of day


def time_parts(time: str, logs: Logs | Collection[str]) -> tuple[str, ...]:
    """The columns of a schema's time: itself if the logs have such a column, else the two that a
    `+` joins."""
    date, plus, clock = time.partition(PLUS)
    # a column may have a + in its own name
    known = logs.has(time) if isinstance(logs, Logs) else time in logs
    return (date.strip(), clock.strip()) if plus and not known else (time,)


def part_columns(logs: Logs, needed: Mapping[str, str]) -> list[str]:
    """The columns to read for roles (role -> column). Raises DataError for one that the logs
    lack."""
    parts = time_parts(needed["time"], logs)
    for part in parts:
        check_columns(logs, {**needed, "time": part})
    return [*(column for role, column in needed.items() if role != "time"), *parts]


def join_times(source: Source, logs: Logs, time: str) -> Source:
    """The source with one column of times: date and time of day joined as text, zones told apart by
    file.

    Raises DataError when some files hold times and others numbers.
    """
    parts = time_parts(time, logs)
    if len(parts) == 1:
        return replace(source, wall=_wall_files(source, logs, time))

    # joined as text: what the two look like together is surveyed like any other column
    date, clock = parts
    texts = _date(quoted(date), source.types[date]), _clock(quoted(clock), source.types[clock])

    # null where one of the two is empty: a date without its time is no moment
    joined = f"nullif({texts[0]}, '') || ' ' || nullif({texts[1]}, '')"

    sql = f"(SELECT *, {joined} AS {quoted(time)} FROM {source.sql})"
    return replace(source, sql=sql, types=source.types | {time: "VARCHAR"})


def _wall_files(source: Source, logs: Logs, time: str) -> str | None:
    """SQL of whether a row's file tells wall clocks, where some files do and others tell
    instants."""
    kind = source.types[time]
    if not kind.startswith(("TIMESTAMP", "DATE")) or not logs.members:
        return None

    types = {member.path: _type_in(arrow_schema(member), time) for member in logs.members}

    for file, type_ in types.items():
        if type_ is not None and not pa.types.is_temporal(type_):
            raise DataError(
                f"{file}: column {time!r} (the time) is {type_}, in other files it is {kind}; "
                "write it as one type in all files."
            )

    # parquet files of one column may differ in having a zone; DuckDB then makes all zoned
    naive = [
        file
        for file, type_ in types.items()
        if type_ is not None and getattr(type_, "tz", None) is None
    ]

    if len(naive) < len(types):
        return f"behavegpt_file IN ({', '.join(map(literal, naive))})" if naive else None
    # a worker's only file, read as the type of all files
    return "true" if "TIME ZONE" in kind else None


def _type_in(schema: pa.Schema, column: str) -> pa.DataType | None:
    """The type of a column or of what a dotted name reaches; None if it is not in the file, or
    known by its rows."""
    path = split_path(column, schema.names)
    if path is None:
        return None

    type_ = schema.field(path[0]).type
    for step in path[1]:
        if not pa.types.is_struct(type_) or type_.get_field_index(step) < 0:
            return None
        type_ = type_.field(step).type

    return type_.value_type if pa.types.is_nested(type_) and hasattr(type_, "value_type") else type_


def _date(column: str, kind: str) -> str:
    if is_number(kind):
        return f"{column}::BIGINT::VARCHAR"
    if is_text(kind):  # a spreadsheet's and pandas' dates have midnight behind them
        return f"regexp_replace(trim({column}::VARCHAR), '[ T]0?0:00(:00([.]0+)?)?$', '')"
    return f"strftime({column}::DATE, '%Y-%m-%d')"


def _clock(column: str, kind: str) -> str:
    """SQL of a time of day: hours as numbers, HHMM and HHMMSS as texts, anything else as it is."""
    if kind.startswith("TIMESTAMP"):
        return f"strftime({column}::TIMESTAMP, '%H:%M:%S')"

    text = f"trim({column}::VARCHAR)"
    if not is_text(kind) and not is_number(kind):
        return text

    digits = "^([0-9]{2})([0-9]{2})([0-9]{2})?$"

    # as numbers 0830 has lost its zero: only texts can be HHMM
    fixed = (
        ""
        if is_number(kind)
        else (
            f"WHEN regexp_full_match({text}, '{digits}') "
            f"THEN regexp_replace(regexp_replace({text}, '{digits}', '\\1:\\2:\\3'), ':$', '') "
        )
    )

    return (
        f"CASE WHEN regexp_full_match({text}, '[0-9]{{1,2}}([.]0)?') "
        f"THEN lpad(split_part({text}, '.', 1), 2, '0') || ':00:00' {fixed}ELSE {text} END"
    )
