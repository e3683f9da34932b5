"""How a column of times is written: surveyed over all rows, then read by one SQL expression.

ISO times and epoch numbers are read row by row; other forms (time_formats.py) and the unit of
numbers are decided once for the column, and stay in the schema for whatever is read by it later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from behavegpt.data.database import literal
from behavegpt.data.schema import EventSchema
from behavegpt.data.time_formats import (
    DIGITS,
    ENOUGH,
    choose_formats,
    has_offset,
    has_zone,
    reads_iso,
    shown,
    sort_formats,
)
from behavegpt.data.times import MICROS
from behavegpt.errors import DataError
from behavegpt.ingest.time_survey import (
    FLOATS,
    INTEGERS,
    PLAIN,
    UNITS,
    TimeSurvey,
    clean,
    float_of,
    is_number,
    is_text,
)

SERIAL = "excel"  # days since 1899-12-30 on a wall clock
_SERIAL_EPOCH = 25_569  # of 1970-01-01
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
BEYOND = -(2**63) + 1  # stamp of a number too large for a time: read, but out of range


@dataclass(frozen=True)
class TimeColumn:
    """SQL of a time column: `stamp` BIGINT microseconds or null, `wall` whether it is a wall-clock
    time."""

    stamp: str
    wall: str
    unit: str  # the unit of numbers, or the schema's `auto` if there are none
    formats: tuple[str, ...] = ()  # strptime formats, empty for ISO times and numbers
    remark: str | None = None  # what was decided, for people


def is_time_type(sql_type: str) -> bool:
    """Whether values of a DuckDB type can be times."""
    return sql_type.startswith(("TIMESTAMP", "ENUM", *FLOATS)) or sql_type in (
        "DATE",
        "VARCHAR",
        *INTEGERS,
    )


def time_column(
    column: str,
    sql_type: str,
    schema: EventSchema,
    survey: TimeSurvey | None,
    bounds: tuple[int, int],
    where: str = "",
    wall: str | None = None,
) -> TimeColumn:
    """How to read a quoted column of a DuckDB type; `bounds` are seconds, `where` names the logs in
    errors.

    `wall` is SQL of whether a time is a wall clock, where the type does not tell (Source.wall).

    Raises DataError where the values fit two readings.
    """
    local = str(schema.naive_time == "local").lower()

    if survey is None:
        # the type says all: instants, or wall clocks without a zone
        zoned = "TIME ZONE" in sql_type or sql_type.startswith("TIMESTAMPTZ")
        target = "TIMESTAMPTZ" if zoned else "TIMESTAMP"
        is_wall = f"({local} AND {wall})" if wall else "false" if zoned else local
        return TimeColumn(f"epoch_us(TRY_CAST({column} AS {target}))", is_wall, schema.time_unit)

    where = f"{where}: column {schema.time!r}" if where else f"column {schema.time!r}"

    formats = schema.time_format or _formats(schema, survey, where)
    if formats:
        stamp, wall = _by_formats(column, sql_type, formats, local)
        remark = _remark_of_formats(schema, survey, formats)
        return TimeColumn(stamp, wall, schema.time_unit, formats, remark)

    unit = resolve_unit(schema, survey, where)
    stamp, wall = _by_unit(column, sql_type, survey, unit, bounds, local)
    return TimeColumn(stamp, wall, unit, (), _remark_of_unit(schema, unit))


def _formats(schema: EventSchema, survey: TimeSurvey, where: str) -> tuple[str, ...]:
    """The formats of a column that is neither ISO times nor epoch numbers, empty for those."""
    # a unit was named: the column holds numbers, whatever they look like
    if schema.time_unit != "auto":
        return ()
    # digits such as 20240401 are numbers too: a form only where nearly all are days of the calendar
    for form, count in zip(DIGITS.values(), survey.digits, strict=True):
        if count and count >= ENOUGH * survey.numbers and survey.numbers >= ENOUGH * survey.values:
            return (form,)

    return choose_formats(survey.shapes, survey.values, where) if survey.odd else ()


def _by_formats(column: str, sql_type: str, formats: Sequence[str], local: str) -> tuple[str, str]:
    """Stamp and wall of a column that is written in formats; ISO times are read beside them."""
    text = clean(column)
    if is_number(sql_type):
        text = f"(CASE WHEN {column} BETWEEN 0 AND 1e15 THEN {column}::BIGINT::VARCHAR END)"

    formats = sort_formats(form.strip("[] ") for form in formats)

    # Offsets apart from zones in words: in one list, DuckDB takes an offset over to the next row
    # without one.
    offset = _parsed(text, [form for form in formats if has_offset(form)])
    named = _parsed(text, [form for form in formats if has_zone(form) and not has_offset(form)])
    naive = _parsed(text, [form for form in formats if not has_zone(form)])

    zoned = f"coalesce({offset}, {named})"

    if is_number(sql_type) or not reads_iso(formats):
        return f"coalesce({zoned}, {naive})", f"({local} AND {zoned} IS NULL)"

    iso = (
        f"CASE WHEN regexp_matches({text}, '^[0-9]{{4}}[-/]') THEN epoch_us(TRY_CAST({text} AS "
        "TIMESTAMPTZ)) END"
    )
    wall = f"({local} AND {zoned} IS NULL AND ({naive} IS NOT NULL OR NOT {_names_zone(text)}))"
    return f"coalesce({zoned}, {naive}, {iso})", wall


def _parsed(text: str, formats: Sequence[str]) -> str:
    return (
        f"epoch_us(try_strptime({text}, [{', '.join(map(literal, formats))}]))"
        if formats
        else "NULL::BIGINT"
    )


def _by_unit(
    column: str, sql_type: str, survey: TimeSurvey, unit: str, bounds: tuple[int, int], local: str
) -> tuple[str, str]:
    """Stamp and wall of a column of ISO times and numbers."""
    wall_of_number = local if unit == SERIAL else "false"

    if not is_text(sql_type):
        return _epoch(column, sql_type.startswith(FLOATS), unit, bounds), wall_of_number

    # the cast without a zone takes a fraction of the time: most logs need no other
    fast = f"epoch_us(TRY_CAST({column} AS TIMESTAMP))"

    if survey.plain == survey.values:
        return fast, local

    text, is_plain = f"trim({column})", PLAIN.format(column)

    # The session's zone is UTC: a naive text becomes its own wall clock, a zoned one the instant,
    # `10:00 PM` null.
    stamp = f"epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))"
    wall = f"({local} AND NOT {_names_zone(text)})"

    if survey.numbers:
        as_float, as_int = float_of(column), f"TRY_CAST({text} AS BIGINT)"
        # Integers stay integers: a nanosecond epoch does not fit a double.
        stamp = (
            f"CASE WHEN {as_float} IS NULL THEN {stamp} WHEN {as_int} IS NOT NULL AND NOT "
            f"contains({text}, '.') THEN {_epoch(as_int, False, unit, bounds)} ELSE "
            f"{_epoch(as_float, True, unit, bounds)} END"
        )
        wall = f"CASE WHEN {as_float} IS NULL THEN {wall} ELSE {wall_of_number} END"

    return (
        f"CASE WHEN {is_plain} THEN {fast} ELSE {stamp} END",
        f"CASE WHEN {is_plain} THEN {local} ELSE {wall} END",
    )


def _epoch(value: str, is_float: bool, unit: str, bounds: tuple[int, int]) -> str:
    """SQL of the microseconds of a number in `unit`; numbers outside `bounds` (seconds) become
    `BEYOND`."""
    if unit == SERIAL:
        # A serial has some ten decimals: to the millisecond, or 13:00 would be 12:59:59.999999.
        days = f"({value}::DOUBLE - {_SERIAL_EPOCH})"
        low, high = bounds[0] / 86_400, bounds[1] / 86_400
        exact, readable = f"round({days} * 86400000)::BIGINT * 1000", f"isfinite({value}::DOUBLE)"
        return (
            f"CASE WHEN NOT ({readable}) THEN NULL WHEN {days} BETWEEN {low} AND {high} THEN "
            f"{exact} ELSE {BEYOND} END"
        )

    # auto: the column has no number at all
    per_second = PER_SECOND["s" if unit == "auto" else unit]
    low, high = bounds[0] * per_second, bounds[1] * per_second

    if is_float:
        exact = f"round({value}::DOUBLE * {MICROS / per_second!r})::BIGINT"
        readable = f"isfinite({value}::DOUBLE)"
    elif per_second <= MICROS:
        exact, readable = f"{value}::BIGINT * {MICROS // per_second}", f"{value} IS NOT NULL"
    else:
        exact, readable = f"{value}::BIGINT // {per_second // MICROS}", f"{value} IS NOT NULL"

    return (
        f"CASE WHEN NOT ({readable}) THEN NULL WHEN {value} BETWEEN {low} AND {high} THEN {exact} "
        f"ELSE {BEYOND} END"
    )


def resolve_unit(schema: EventSchema, survey: TimeSurvey, where: str) -> str:
    """The unit in which the median number is a plausible time, unless the schema names it."""
    if schema.time_unit != "auto" or not survey.numbers:
        return schema.time_unit

    if survey.serials >= ENOUGH * survey.numbers:
        return SERIAL

    if survey.dates * 2 > survey.numbers:
        raise DataError(
            f"{where} looks like dates written as numbers (YYYYMMDD), but not all of them are days "
            "of the calendar; say so with --time-format %Y%m%d, or name the unit if they are epoch "
            "numbers: --time-unit s."
        )

    # numbers that are plausible in each unit or a coarser one
    below = (*survey.below, survey.numbers)
    # the median number decides: a few zeros or typing errors must not
    unit = next(
        unit for unit, count in zip(UNITS, below, strict=True) if count * 2 >= survey.numbers
    )

    if unit == "ns" and survey.below_ns * 2 >= survey.numbers:
        raise DataError(
            f"{where} holds numbers of 18 digits that are before 1998 in ns; ticks of .NET (100 ns "
            "since the year 1) and of Windows (since 1601) look so: write them as timestamps, or "
            "name the unit with --time-unit ns."
        )

    return unit


def _remark_of_formats(
    schema: EventSchema, survey: TimeSurvey, formats: tuple[str, ...]
) -> str | None:
    if schema.time_format:
        return None
    example = shown(formats, survey.shapes)
    return f"times of {schema.time!r} are read as {' or '.join(formats)}" + (
        f": {example}" if example else ""
    )


def _remark_of_unit(schema: EventSchema, unit: str) -> str | None:
    if unit != SERIAL or schema.time_unit != "auto":
        return None
    return (
        f"times of {schema.time!r} are read as serial days of a spreadsheet (45383.5 is 2024-04-01 "
        "12:00); if they are seconds, say --time-unit s"
    )


def _names_zone(text: str) -> str:
    """SQL: a readable ISO time that ends in Z, a zone's name or an offset; the date's hyphens come
    before the 11th."""
    letter = f"upper(right({text}, 1)) BETWEEN 'A' AND 'Z'"
    return f"({letter} OR contains({text}, '+') OR contains(substr({text}, 11), '-'))"
