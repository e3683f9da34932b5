"""What the times of a log look like: how many are empty, numbers or texts, and in which shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np

from behavegpt.data.database import literal, named_rows
from behavegpt.data.time_formats import DIGITS, Shape, add_shapes

INTEGERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
)
FLOATS = ("FLOAT", "DOUBLE", "DECIMAL")
_SERIALS = (30_000, 60_000)  # 1982 to 2064: told without being named
# unit of epoch numbers below this magnitude
UNITS = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": float("inf")}
_LEAST_NS = 9e17  # 1998: nobody wrote nanoseconds before
# days as numbers, YYYYMMDD: no epoch in seconds of our days is as small
_DATES = (19_000_101, 21_001_231)
PLAIN = "{0} LIKE '____-__-_____:__:__'"  # no room for a zone
# characters of a text that may be a time; shapes that are looked at
_LONGEST, _MOST_SHAPES = 60, 5000


class TimeSurvey(NamedTuple):
    """Counts of the values of a column that is not of a type for times; they add up over parts of a
    log."""

    values: int
    plain: int  # ISO times without a zone
    odd: int  # texts that are neither ISO times nor numbers
    numbers: int
    # numbers below the limits of all units but the last, in the order of UNITS
    below: tuple[int, ...]
    below_ns: int  # numbers below _LEAST_NS
    serials: int  # numbers that may be serial days of a spreadsheet
    dates: int  # numbers that may be YYYYMMDD
    digits: tuple[int, ...]  # numbers that are times written as digits, in the order of DIGITS
    shapes: dict[str, Shape]  # of the odd texts


def survey_column(
    con: duckdb.DuckDBPyConnection, column: str, sql_type: str, table: str
) -> TimeSurvey | None:
    """The survey of a quoted column; None where the type alone decides how to read it."""
    if not is_text(sql_type) and not is_number(sql_type):
        return None

    [counts] = named_rows(con, _count_query(column, sql_type, table))
    counts |= {name: tuple(counts[name]) for name in ("below", "digits")}
    return TimeSurvey(**counts, shapes=_shapes(con, column, table) if counts["odd"] else {})


def add_surveys(surveys: Sequence[TimeSurvey | None]) -> TimeSurvey | None:
    """The survey of all parts of a log together."""
    known = [survey for survey in surveys if survey is not None]
    if not known:
        return None

    sums: dict[str, Any] = {}
    for name in set(TimeSurvey._fields) - {"shapes"}:
        # integers, and tuples of integers position by position
        counts = np.array([getattr(survey, name) for survey in known]).sum(axis=0).tolist()
        sums[name] = tuple(counts) if isinstance(counts, list) else counts
    return TimeSurvey(**sums, shapes=add_shapes([survey.shapes for survey in known]))


def survey_numbers(values: int, plain: int, odd: int, numbers: np.ndarray) -> TimeSurvey | None:
    """The survey of a column whose odd texts have no digit; `numbers` are finite (N,) float64.

    None where some may be times written as digits.
    """
    size = np.abs(numbers)
    for length in DIGITS:
        scale = 10.0 ** (length - 8)
        if ((numbers >= _DATES[0] * scale) & (numbers <= (_DATES[1] + 1) * scale)).any():
            return None
    return TimeSurvey(
        values=values,
        plain=plain,
        odd=odd,
        numbers=len(numbers),
        below=tuple(int((size < limit).sum()) for limit in list(UNITS.values())[:-1]),
        below_ns=int((size < _LEAST_NS).sum()),
        serials=int(((numbers >= _SERIALS[0]) & (numbers <= _SERIALS[1])).sum()),
        dates=0,
        digits=(0,) * len(DIGITS),
        shapes={},
    )


def is_text(sql_type: str) -> bool:
    """Whether a DuckDB type holds texts."""
    return sql_type == "VARCHAR" or sql_type.startswith("ENUM")


def is_number(sql_type: str) -> bool:
    """Whether a DuckDB type holds numbers."""
    return sql_type in INTEGERS or sql_type.startswith(FLOATS)


def _count_query(column: str, sql_type: str, table: str) -> str:
    text = is_text(sql_type)
    plain = PLAIN.format(column) if text else "false"

    number = float_of(column) if text else f"{column}::DOUBLE"

    odd = f"CASE WHEN number IS NULL AND NOT plain THEN {_is_odd(column)} END" if text else "false"

    below = ", ".join(
        f"count(*) FILTER (abs(number) < {limit})" for limit in list(UNITS.values())[:-1]
    )

    # CASE, not AND: DuckDB would evaluate both sides for all rows.
    digits = ", ".join(
        f"count(CASE WHEN number BETWEEN {_DATES[0] * 10 ** (length - 8)} AND "
        f"{_DATES[1] + 1}e{length - 8} "
        f"THEN try_strptime(number::BIGINT::VARCHAR, {literal(form)}) END)"
        for length, form in DIGITS.items()
    )

    return f"""
        SELECT
            count({column}) AS values,
            count(*) FILTER (plain) AS plain,
            count(*) FILTER ({odd}) AS odd,
            count(number) AS numbers,
            [{below}] AS below,
            count(*) FILTER (abs(number) < {_LEAST_NS}) AS below_ns,
            count(*) FILTER (number BETWEEN {_SERIALS[0]} AND {_SERIALS[1]}) AS serials,
            count(*) FILTER (number BETWEEN {_DATES[0]} AND {_DATES[1]}) AS dates,
            [{digits}] AS digits
        FROM (
            SELECT {column}, plain, CASE WHEN isfinite(number) THEN number END AS number
            FROM (
                SELECT
                    {column}, {plain} AS plain,
                    CASE WHEN NOT ({plain}) THEN {number} END AS number
                FROM {table}
            )
        )
    """


def _shapes(con: duckdb.DuckDBPyConnection, column: str, table: str) -> dict[str, Shape]:
    """The most frequent shapes of the odd texts: digits become 9, and the first three numbers are
    looked at."""
    numbers = "'^[^0-9]*([0-9]+)[^0-9]+([0-9]+)[^0-9]+([0-9]+)', ['first', 'second', 'third']"
    integer = "coalesce(TRY_CAST(number.{} AS INTEGER), 0)".format
    first, second, third = integer("first"), integer("second"), integer("third")

    odd = (
        f"CASE WHEN {float_of(column)} IS NULL AND NOT ({PLAIN.format(column)}) THEN "
        f"{_is_odd(column)} END"
    )

    query = f"""
        SELECT
            shape,
            count(*) AS rows,
            count(*) FILTER ({first} BETWEEN 13 AND 31) AS first_is_day,
            count(*) FILTER ({second} BETWEEN 13 AND 31) AS second_is_day,
            [min({first}), max({first})] AS first,
            [min({third}), max({third})] AS third,
            min(text) AS example
        FROM (
            SELECT
                text,
                translate(text, '0123456789', '9999999999') AS shape,
                regexp_extract(text, {numbers}) AS number
            FROM (
                SELECT {clean(column)} AS text
                FROM {table}
                WHERE length({column}) <= {_LONGEST} AND {odd}
            )
        )
        WHERE contains(shape, '9')
        GROUP BY shape
        ORDER BY count(*) DESC, shape
        LIMIT {_MOST_SHAPES}
    """

    shapes = {}
    for row in named_rows(con, query):
        shape = row.pop("shape")
        shapes[shape] = Shape(**row | {name: tuple(row[name]) for name in ("first", "third")})
    return shapes


def clean(column: str) -> str:
    """SQL of a text of a time without what formats cannot name: brackets, non-breaking spaces, a
    zone in words."""
    plain = (
        f"trim(replace(replace(replace({column}, chr(160), ' '), chr(8239), ' '), chr(9), ' '), ' "
        "[]')"
    )
    short = f"replace(replace({plain}, '.m.', 'm'), '.M.', 'M')"
    return (
        f"CASE WHEN contains({column}, '(') THEN regexp_replace({short}, ' [(][^()]*[)]$', '') "
        f"ELSE {short} END"
    )


def _is_odd(column: str) -> str:
    """SQL of whether a text that is no number is no ISO time either."""
    iso = f"regexp_matches({column}, '^ *[0-9]{{4}}[-/]')"
    return (
        f"CASE WHEN {iso} THEN TRY_CAST(trim({column}) AS TIMESTAMPTZ) IS NULL ELSE "
        f"trim({column}) <> '' END"
    )


def float_of(column: str) -> str:
    """SQL of a text as a number, with a decimal comma or point."""
    return f"TRY_CAST(replace(trim({column}), ',', '.') AS DOUBLE)"
