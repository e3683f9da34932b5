"""Times of a few rows, read without a database as `time_columns` has DuckDB read them.

Left to DuckDB: formats, spreadsheets' days, numbers that may be dates written as digits, and texts
whose reading only it knows. Shapes: N rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.schema import EventSchema
from behavegpt.data.time_formats import reads_iso
from behavegpt.data.times import MICROS
from behavegpt.errors import DataError
from behavegpt.ingest.time_columns import BEYOND, PER_SECOND, SERIAL, resolve_unit
from behavegpt.ingest.time_survey import survey_numbers

_ISO = re.compile(
    "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    "(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]{1,6})?)?"
    "(Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])?)?"
)
_PLAIN = re.compile("....-..-...[0-9]{2}:[0-9]{2}:[0-9]{2}")
_NUMBER = re.compile("-?[0-9]{1,18}([.,][0-9]+)?")
_ONLY_DUCKDB = re.compile("(?i)[0-9]|inf|nan|epoch|^ *\\[")  # in what is none of these
_OTHER_HOURS = re.compile("0000|...........24")  # a year and an hour that Python lacks
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO = timedelta(microseconds=1)
_LIMIT = 1 << 62  # microseconds: nobody's time, but near what stands for infinity


class RowTimes(NamedTuple):
    """Times of N rows as `time_columns` describes them."""

    stamps: np.ndarray  # (N,) int64 microseconds, 0 where there is none
    wall: np.ndarray | bool  # (N,), or one for all
    empty: np.ndarray  # (N,) bool
    unread: np.ndarray  # (N,) bool: not empty, but no time


class _Text(NamedTuple):
    """What one text is: a time, a number, or neither."""

    stamp: int | None = None
    zoned: bool = False
    plain: bool = False
    number: int | float | None = None
    empty: bool = False


def read_times(
    array: pa.ChunkedArray, schema: EventSchema, bounds: tuple[int, int]
) -> RowTimes | None:
    """Times of an Arrow column (N,); `bounds` are seconds. None where DuckDB must decide."""
    # only where both readers surely agree: a doubt is left to DuckDB
    kind, local = array.type, schema.naive_time == "local"
    if pa.types.is_timestamp(kind) or pa.types.is_date32(kind):
        return _of_moments(array, local and getattr(kind, "tz", None) is None)

    values = array.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # each text once: a few rows of one user share their dates
        known = {text: _read_text(text) for text in set(values) - {None}}
        texts = [_Text(empty=True) if text is None else known[text] for text in values]
    elif pa.types.is_integer(kind) or pa.types.is_float64(kind):
        texts = [_Text(number=value, empty=value is None) for value in values]
    else:
        return None

    read = [text for text in texts if text is not None]
    # before 1970 the two round in different directions
    if len(read) < len(texts) or bounds[0] < 0:
        return None

    unit = _unit(read, len(values) - values.count(None), schema)
    if unit is None:
        return None

    stamps = [
        text.stamp if text.number is None else _epoch(text.number, unit, bounds) for text in read
    ]

    missing = np.array([stamp is None for stamp in stamps])
    empty = np.array([text.empty for text in read])
    wall = np.array([local and text.number is None and not text.zoned for text in read])

    return RowTimes(np.array([s or 0 for s in stamps], np.int64), wall, empty, missing & ~empty)


def _of_moments(array: pa.ChunkedArray, wall: bool) -> RowTimes | None:
    """Arrow's dates and timestamps; nanoseconds are rounded as DuckDB rounds those since 1970."""
    is_date = pa.types.is_date32(array.type)
    ticks = array.cast(pa.int32()).cast(pa.int64()) if is_date else array.cast(pa.int64())
    values = ticks.fill_null(0).to_numpy()

    unit = "D" if is_date else array.type.unit
    if unit == "ns":
        # DuckDB rounds those before 1970 the other way
        if (values < 0).any():
            return None
        values, unit = (values + 500) // 1000, "us"

    each = {"D": MICROS * 86_400, "s": MICROS, "ms": 1000, "us": 1}[unit]
    # the product would not fit 64 bits
    if ((values > _LIMIT // each) | (values < -_LIMIT // each)).any():
        return None

    empty = array.is_null().to_numpy()
    return RowTimes(values * each, wall, empty, np.zeros(len(empty), bool))


def _read_text(text: str) -> _Text | None:
    """A text that is plainly one of ISO time, number and neither; None for any other."""
    bare = text.strip(" ")
    plain = _PLAIN.fullmatch(text) is not None

    if _ISO.fullmatch(bare):
        try:
            moment = datetime.fromisoformat(bare)
        except ValueError:  # no day of the calendar
            return _Text(plain=True) if plain and not _OTHER_HOURS.match(text) else None
        zoned = moment.tzinfo is not None
        stamp = ((moment if zoned else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICRO
        return _Text(stamp, zoned, plain)

    if _NUMBER.fullmatch(bare):
        fraction = "." in bare or "," in bare
        return _Text(number=float(bare.replace(",", ".")) if fraction else int(bare))

    return None if _ONLY_DUCKDB.search(text) else _Text(empty=not bare)


def _unit(read: Sequence[_Text], values: int, schema: EventSchema) -> str | None:
    """The unit of numbers, of a column whose texts are read one by one."""
    there = [text for text in read if not text.empty]

    odd = sum(text.number is None and text.stamp is None and not text.plain for text in there)
    plain = sum(text.plain for text in there)

    if schema.time_format:  # plain times stand beside formats, the rest may be in one of them
        alike = plain == len(there) and all(text.stamp is not None for text in there)
        return schema.time_unit if alike and reads_iso(schema.time_format) else None

    numbers = np.array([text.number for text in there if text.number is not None], np.float64)
    survey = survey_numbers(values, plain, odd, numbers[np.isfinite(numbers)])

    if schema.time_unit == "auto" and survey is None:
        return None

    try:
        unit = schema.time_unit if survey is None else resolve_unit(schema, survey, "")
    except DataError:
        return None
    return None if unit == SERIAL else unit


def _epoch(value: int | float, unit: str, bounds: tuple[int, int]) -> int | None:
    """Microseconds of a number, see `time_columns`; None where it is not finite."""
    if not math.isfinite(value):
        return None

    per_second = PER_SECOND["s" if unit == "auto" else unit]
    if not bounds[0] * per_second <= value <= bounds[1] * per_second:
        return BEYOND

    # halves away from zero, as DuckDB rounds
    if isinstance(value, float):
        micros = value * (MICROS / per_second)
        return math.trunc(micros) + (micros - math.trunc(micros) >= 0.5)
    return value * (MICROS // per_second) if per_second <= MICROS else value // 1000
