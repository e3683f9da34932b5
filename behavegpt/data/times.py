"""Times: raw values -> instants -> local weekday and slot, right through daylight-saving changes.

A naive time is a wall clock of the schema's zone. A wall time that happens twice (clocks go back) is the earlier
instant; one that never happens (clocks go forward) is moved forward by the gap: 02:30 becomes 03:30.
Seconds and microseconds are int64 since 1970-01-01 UTC; a wall time is counted the same way as if it were UTC.
"""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError

MICROS = 1_000_000
DAY = 86_400
DST_RULE = (
    "A wall time that occurs twice is read as the earlier instant; one that never occurs is moved forward by the gap."
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP = 5 * DAY  # no zone has changed its offset and changed it back within five days since 1969
_UNITS = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": float("inf")}  # unit of epoch numbers below this magnitude
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
FLOATS = ("FLOAT", "DOUBLE", "DECIMAL")
_PLAIN = "{0} LIKE '____-__-_____:__:__'"  # no room for a zone
_BEYOND = -(2**63) + 1  # stamp of a number too large for a time: read, but out of range


@dataclass(frozen=True)
class Zone:
    """UTC offsets in seconds: `offsets[i]` holds before `changes[i]` (ascending instants), the last one after all."""

    changes: np.ndarray  # (C,) int64
    offsets: np.ndarray  # (C + 1,) int64

    def wall(self, instant: np.ndarray) -> np.ndarray:
        """Wall-clock seconds (N,) int64 of instants in seconds (N,)."""
        return instant + self.offsets[np.searchsorted(self.changes, instant, side="right")]

    def instant(self, wall: np.ndarray) -> np.ndarray:
        """Instants in seconds (N,) int64 of wall-clock seconds (N,), by the rule in the module's head."""
        # The old offset holds until both clocks have passed the change: later of the two readings of it.
        thresholds = self.changes + np.maximum(self.offsets[:-1], self.offsets[1:])
        return wall - self.offsets[np.searchsorted(thresholds, wall, side="right")]


@cache
def zone(name: str, first_year: int = 1969, last_year: int = 2101) -> Zone:
    """The zone's offset changes between two years, found in zoneinfo's rules by bisection."""
    info = zoneinfo.ZoneInfo(name)
    if name == "UTC":  # no changes: a search would only take time
        return Zone(np.zeros(0, np.int64), np.zeros(1, np.int64))

    def offset(second: int) -> int:
        local = (_EPOCH + timedelta(seconds=second)).astimezone(info).utcoffset()
        return int((local or timedelta()).total_seconds())

    start, stop = (int((datetime(y, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) for y in (first_year, last_year))
    changes, offsets = [], [offset(start)]
    for low in range(start, stop, _STEP):
        high = low + _STEP
        if offset(high) == offsets[-1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if offset(middle) != offsets[-1] else (middle, high)
        changes.append(high)
        offsets.append(offset(high))
    return Zone(np.array(changes, np.int64), np.array(offsets, np.int64))


def calendar(seconds: np.ndarray, schema: EventSchema) -> tuple[np.ndarray, np.ndarray]:
    """Local weekday (N,) uint8, 0 = Monday, and slot of the day (N,) uint8/uint16 of instants in seconds (N,)."""
    local = zone(schema.tz).wall(seconds)
    day = local // DAY
    slot = (local - day * DAY) // (60 * schema.slot_minutes)
    return ((day + 3) % 7).astype(np.uint8), slot.astype(np.uint8 if schema.slots <= 256 else np.uint16)


def instants(stamps: np.ndarray, is_wall: np.ndarray | bool, schema: EventSchema) -> np.ndarray:
    """Microsecond instants (N,) int64 of stamps (N,) int64, wall-clock times where `is_wall` (scalar or (N,)) holds."""
    if schema.tz == "UTC" or is_wall is False:
        return stamps
    seconds = stamps // MICROS
    return stamps + (zone(schema.tz).instant(seconds) - seconds) * MICROS * is_wall


def parse_date(text: str, tz: str = "UTC") -> int:
    """Epoch seconds of an ISO date or time; a naive one is a wall time of `tz`. Raises DataError."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise DataError(f"{text!r} is not a date; write one like 2013-05-01 or 2013-05-01T12:00.") from None
    naive = moment.tzinfo is None
    seconds = int((moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(seconds=1))
    return int(zone(tz).instant(np.array([seconds]))[0]) if naive else seconds


@dataclass(frozen=True)
class TimeColumn:
    """SQL of a time column: `stamp` BIGINT microseconds or null, `wall` whether it is a wall-clock time."""

    stamp: str
    wall: str
    unit: str  # the unit of epoch numbers, or the schema's `auto` if there are none


def is_time_type(sql_type: str) -> bool:
    """Whether values of a DuckDB type can be times."""
    return sql_type.startswith(("TIMESTAMP", "ENUM", *FLOATS)) or sql_type in ("DATE", "VARCHAR", *INTEGERS)


def count_query(column: str, sql_type: str, table: str) -> str | None:
    """SQL of the counts that `time_column` decides by, None if the type alone decides.

    Finite numbers, those below the first three limits of `_UNITS`, dates in disguise, plain texts, values.
    """
    text = _is_text(sql_type)
    if not text and sql_type not in INTEGERS and not sql_type.startswith(FLOATS):
        return None
    plain = _PLAIN.format(column) if text else "false"
    number = f"TRY_CAST(trim({column}) AS DOUBLE)" if text else f"{column}::DOUBLE"
    below = ", ".join(f"count(*) FILTER (abs(number) < {limit})" for limit in list(_UNITS.values())[:-1])
    return (
        f"SELECT count(number), {below}, count(*) FILTER (number BETWEEN 19000101 AND 21001231), "
        "count(*) FILTER (plain), count(value) FROM (SELECT value, plain, CASE WHEN isfinite(number) THEN number END "
        f"AS number FROM (SELECT {column} AS value, {plain} AS plain, CASE WHEN NOT ({plain}) THEN {number} END "
        f"AS number FROM {table}))"
    )


def time_column(
    column: str, sql_type: str, schema: EventSchema, counts: tuple[int, ...] | None, bounds: tuple[int, int]
) -> TimeColumn:
    """How to read a time column of a DuckDB type; `counts` is the row of `count_query`, `bounds` are seconds."""
    local = str(schema.naive_time == "local").lower()
    if counts is None:
        zoned = "TIME ZONE" in sql_type or sql_type.startswith("TIMESTAMPTZ")
        target = "TIMESTAMPTZ" if zoned else "TIMESTAMP"
        return TimeColumn(f"epoch_us(TRY_CAST({column} AS {target}))", "false" if zoned else local, schema.time_unit)
    unit = _resolve_unit(schema, counts)
    if not _is_text(sql_type):
        return TimeColumn(_epoch(column, sql_type.startswith(FLOATS), unit, bounds), "false", unit)
    fast = f"epoch_us(TRY_CAST({column} AS TIMESTAMP))"
    numbers, plain, values = counts[0], counts[-2], counts[-1]
    if plain == values:
        return TimeColumn(fast, local, unit)
    text, is_plain = f"trim({column})", _PLAIN.format(column)
    # The session's zone is UTC: a naive text becomes its own wall clock, a zoned one the instant, `10:00 PM` null.
    stamp = f"epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))"
    wall = f"NOT {_has_zone(text)}"
    if numbers:
        as_float, as_int = f"TRY_CAST({text} AS DOUBLE)", f"TRY_CAST({text} AS BIGINT)"
        # Integers stay integers: a nanosecond epoch does not fit a double.
        stamp = (
            f"CASE WHEN {as_float} IS NULL THEN {stamp} WHEN {as_int} IS NOT NULL AND NOT contains({text}, '.') "
            f"THEN {_epoch(as_int, False, unit, bounds)} ELSE {_epoch(as_float, True, unit, bounds)} END"
        )
        wall = f"({as_float} IS NULL AND {wall})"
    return TimeColumn(
        f"CASE WHEN {is_plain} THEN {fast} ELSE {stamp} END", f"({local} AND ({is_plain} OR {wall}))", unit
    )


def _epoch(value: str, is_float: bool, unit: str, bounds: tuple[int, int]) -> str:
    """SQL of the microseconds of an epoch number in `unit`; numbers outside `bounds` (seconds) become `_BEYOND`."""
    per_second = _PER_SECOND["s" if unit == "auto" else unit]  # auto: the column has no number at all
    low, high = bounds[0] * per_second, bounds[1] * per_second
    if is_float:
        exact, readable = f"round({value}::DOUBLE * {MICROS / per_second!r})::BIGINT", f"isfinite({value}::DOUBLE)"
    elif per_second <= MICROS:
        exact, readable = f"{value}::BIGINT * {MICROS // per_second}", f"{value} IS NOT NULL"
    else:
        exact, readable = f"{value}::BIGINT // {per_second // MICROS}", f"{value} IS NOT NULL"
    return f"CASE WHEN NOT ({readable}) THEN NULL WHEN {value} BETWEEN {low} AND {high} THEN {exact} ELSE {_BEYOND} END"


def _is_text(sql_type: str) -> bool:
    return sql_type == "VARCHAR" or sql_type.startswith("ENUM")


def _has_zone(text: str) -> str:
    """SQL: a readable ISO time that ends in Z, a zone's name or an offset; the date's hyphens come before the 11th."""
    letter = f"upper(right({text}, 1)) BETWEEN 'A' AND 'Z'"
    return f"({letter} OR contains({text}, '+') OR contains(substr({text}, 11), '-'))"


def _resolve_unit(schema: EventSchema, counts: tuple[int, ...]) -> str:
    """The unit in which the median number is a plausible time, unless the schema names it."""
    numbers, dates = counts[0], counts[4]
    if schema.time_unit != "auto" or not numbers:
        return schema.time_unit
    if dates * 2 > numbers:
        raise DataError(
            f"column {schema.time!r} looks like dates written as numbers (YYYYMMDD); write them as YYYY-MM-DD, "
            "or name the unit if they are epoch numbers: --time-unit s."
        )
    below = (*counts[1:4], numbers)
    return next(unit for unit, count in zip(_UNITS, below, strict=True) if count * 2 >= numbers)
