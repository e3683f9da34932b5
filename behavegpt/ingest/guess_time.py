"""Which column is the time: names and types, and whether its values can be read as times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from behavegpt.data.database import one_row, quoted, reading
from behavegpt.data.schema import ROLES
from behavegpt.data.times import DAY, MICROS
from behavegpt.errors import DataError
from behavegpt.ingest.column_names import CLOCKS, NAMES, PARTS, name_parts, name_rank
from behavegpt.ingest.column_sample import (
    FULL,
    ColumnSample,
    checked_schema,
    columns_of,
    element_type,
    first_column,
    free_columns,
)
from behavegpt.ingest.log_table import Source
from behavegpt.ingest.plan import TIME_RANGE, parse_range
from behavegpt.ingest.time_columns import is_time_type, time_column
from behavegpt.ingest.time_join import PLUS, join_times
from behavegpt.ingest.time_survey import survey_column


def guess_time(sample: ColumnSample, role: str, settings: Mapping[str, Any]) -> str | None:
    """The column whose values can be read as times, those with a time of day before dates; a date
    with its clock."""
    free = [
        column
        for column in free_columns(sample, settings)
        if is_time_type(element_type(sample.types[column]))
    ]

    ranks = {
        column: rank for column in free if (rank := name_rank(column, NAMES["time"])) is not None
    }

    # a type for times is a better sign than a word in the name
    typed = [column for column in free if sample.types[column].startswith(("TIMESTAMP", "DATE"))]
    if not ranks:
        named = [column for column in free if name_parts(column) & set(PARTS["time"].split())]
        ranks = dict.fromkeys(typed or named, 0)

    # neither name nor type: text that can be read as times throughout, such as ISO in JSON
    texts = [] if ranks else [column for column in free if _is_text(sample, column)]
    read = {column: _read_times(sample, column, settings) for column in (*ranks, *texts)}
    # throughout: a text column of which some values look like times is another thing
    ranks |= {column: 0 for column in texts if read[column][0] >= FULL}

    keys = {}
    for column, rank in ranks.items():
        share, tells_clock = read[column]
        keys[column] = (int(share < FULL) + int(share < 0.5), int(not tells_clock), rank)

    date = first_column(sample, role, keys)
    # its times have a clock already
    if date is None or read[date][1]:
        return date

    # a date alone: the clock may be in another column
    clocks = {
        column: rank
        for column in _clocks(sample, settings, date)
        if (rank := name_rank(column, CLOCKS)) is not None
    }

    # tried together: a column called `hour` may hold a number of hours
    for clock in sorted(clocks, key=lambda column: clocks[column]):
        readable, tells_clock = _read_times(sample, f"{date}{PLUS}{clock}", settings)
        if readable >= FULL and tells_clock:
            return f"{date}{PLUS}{clock}"
    return date


def _is_text(sample: ColumnSample, column: str) -> bool:
    """Whether a column holds text without a number among it: an id is easily taken for a time."""
    if sample.types[column] != "VARCHAR":
        return False
    query = f"SELECT count(TRY_CAST({quoted(column)} AS DOUBLE)) FROM sample"
    return bool(one_row(sample.con, query)[0] == 0)


def _clocks(sample: ColumnSample, settings: Mapping[str, Any], date: str) -> list[str]:
    taken = {
        date,
        *(column for role in ROLES for column in columns_of(role, settings, sample.logs)),
    }
    return [column for column in sample.types if column not in taken]


def _read_times(sample: ColumnSample, time: str, settings: Mapping[str, Any]) -> tuple[float, bool]:
    """Share of the rows with a readable time, and whether any of them is not at midnight."""
    names = ("tz", "naive_time", "time_unit", "time_format")
    given = {name: settings[name] for name in names if name in settings}
    # only the time is read: names that no column has stand for the others
    schema = checked_schema(
        sample.logs.name, given | {"user": " user", "time": time, "event": " event"}
    )

    source = Source(sample.logs.name, (), "sample", sample.types, "''")
    # a row is a history: its list of times counts value by value
    if sample.types.get(time, "").endswith("]"):
        rows = f"(SELECT unnest({quoted(time)}) AS {quoted(time)} FROM sample)"
        source = replace(source, sql=rows, types={time: element_type(sample.types[time])})

    source = join_times(source, sample.logs, time)
    column, bounds = quoted(time), parse_range(TIME_RANGE)

    with reading(sample.logs.name, sample.logs.files):
        survey = survey_column(sample.con, column, source.types[time], source.sql)
        try:
            read = time_column(column, source.types[time], schema, survey, bounds)
        except DataError:  # a time that two forms fit: `prepare` asks which
            return 1.0, True
        rows, good, clocks = one_row(
            sample.con,
            f"SELECT count(*), count(*) FILTER (stamp >= {bounds[0] * MICROS} AND stamp < "
            f"{bounds[1] * MICROS}), count(*) FILTER (stamp % {DAY * MICROS} <> 0) FROM (SELECT "
            f"{read.stamp} AS stamp FROM {source.sql})",
        )
    # the share is of all rows: a column that is half empty is no time of the log
    return good / max(1, rows), clocks > 0
