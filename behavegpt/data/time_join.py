"""Times in more than one place: date and time of day in two columns, zones in some files and not in others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.database import literal, quoted
from behavegpt.data.schema import EventSchema
from behavegpt.data.sources import Logs, Source, check_columns
from behavegpt.data.time_columns import TimeColumn, is_number, is_text
from behavegpt.errors import DataError

PLUS = "+"  # between the columns of the date and of the time of day


def time_parts(time: str, columns: Collection[str]) -> tuple[str, ...]:
    """The columns of a schema's time: itself if there is such a column, else the two that a `+` joins."""
    date, plus, clock = time.partition(PLUS)
    return (date.strip(), clock.strip()) if plus and time not in columns else (time,)


def part_columns(logs: Logs, needed: Mapping[str, str]) -> list[str]:
    """The columns to read for roles (role -> column). Raises DataError for one that the logs lack."""
    parts = time_parts(needed["time"], logs.columns)
    for part in parts:
        check_columns(logs, {**needed, "time": part})
    return [*(column for role, column in needed.items() if role != "time"), *parts]


def join_times(source: Source, time: str) -> Source:
    """The source with date and time of day as one column of text, named as the schema names it."""
    parts = time_parts(time, source.types)
    if len(parts) == 1:
        return source
    date, clock = parts
    texts = _date(quoted(date), source.types[date]), _clock(quoted(clock), source.types[clock])
    joined = f"nullif({texts[0]}, '') || ' ' || nullif({texts[1]}, '')"
    sql = f"(SELECT *, {joined} AS {quoted(time)} FROM {source.sql})"
    return replace(source, sql=sql, types=source.types | {time: "VARCHAR"})


def zones_by_file(source: Source, read: TimeColumn, schema: EventSchema) -> TimeColumn:
    """The time column where some parquet files tell instants and others wall clocks, which one type cannot tell.

    Raises DataError when some hold times and others numbers.
    """
    kind = source.types[schema.time]
    if not kind.startswith(("TIMESTAMP", "DATE")) or schema.time_format:
        return read
    types = {}
    for file in source.files:
        if file.suffix in (".parquet", ".pq") and schema.time in (columns := pq.read_schema(file)).names:
            types[file] = columns.field(schema.time).type
    for file, type_ in types.items():
        if not pa.types.is_temporal(type_):
            raise DataError(
                f"{file}: column {schema.time!r} (the time) is {type_}, in other files it is {kind}; write it as one "
                "type in all files."
            )
    naive = [file for file, type_ in types.items() if getattr(type_, "tz", None) is None]
    if not naive or (len(naive) == len(types) and "TIME ZONE" not in kind):
        return read
    wall = f"behavegpt_file IN ({', '.join(map(literal, naive))})" if len(naive) < len(types) else "true"
    local = str(schema.naive_time == "local").lower()
    return replace(read, wall=f"({local} AND {wall})")


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
