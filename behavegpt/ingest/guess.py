"""Which column is what: roles guessed from names and contents, printed before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import duckdb
from pydantic import ValidationError

from behavegpt.data.database import connect, one_row, quoted, reading
from behavegpt.data.schema import ROLES, EventSchema
from behavegpt.data.times import DAY, MICROS
from behavegpt.errors import DataError
from behavegpt.ingest.column_names import CLOCKS, NAMES, PARTS, name_parts, name_rank
from behavegpt.ingest.plan import TIME_RANGE, parse_range
from behavegpt.ingest.plan_columns import is_label_type
from behavegpt.ingest.sources import Logs, Source, check_columns, find_logs, open_sample
from behavegpt.ingest.time_columns import is_time_type, time_column
from behavegpt.ingest.time_join import PLUS, join_times, time_parts
from behavegpt.ingest.time_survey import survey_column
from behavegpt.io import temporary_folder

_REQUIRED = ("user", "time", "event")
_SAMPLE = 100_000
# share of rows with a value, or with a time that can be read, that makes a column good
_FULL = 0.99
_UNIQUE = 0.9  # share of distinct values beyond which a column numbers the rows; from _FEW rows on
_FEW = 20
_ADDED = ("behavegpt_file", "behavegpt_wrong")  # by json_files.py


@dataclass(frozen=True)
class ColumnGuess:
    """One line of the printed table; counts are of the first 100,000 rows."""

    column: str
    type: str
    role: str | None
    nulls: int
    distinct: int
    example: str | None


@dataclass(frozen=True)
class _Sample:
    """The table `sample` of the first rows, with what is in its columns."""

    con: duckdb.DuckDBPyConnection
    logs: Logs
    types: dict[str, str]
    rows: int
    filled: dict[str, float]  # share of rows with a value
    distinct: dict[str, int]


def guess_schema(logs: Any, given: Mapping[str, Any]) -> tuple[EventSchema, list[ColumnGuess]]:
    """Roles of the columns of `logs`; `given` holds settings of EventSchema that win, None where
    none is given.

    An empty text for an optional role means that the logs have none. Raises DataError naming the
    option to pass.
    """
    found = find_logs(logs)
    settings = {name: value for name, value in given.items() if value is not None}
    for role in ROLES:
        for column in _columns_of(role, settings, found):
            check_columns(found, {role: column})
    with temporary_folder() as folder, connect(folder) as con:
        sample = _sample(con, found)
        for role in NAMES:
            if role not in settings:
                guess = _guess_time if role == "time" else _guess
                settings[role] = guess(sample, role, settings)
        schema = _validated(found.name, settings)
        return schema, _table(sample, schema)


def guess_columns(logs: Any, schema: EventSchema) -> list[ColumnGuess]:
    """The table of columns with the roles of `schema`."""
    with temporary_folder() as folder, connect(folder) as con:
        return _table(_sample(con, find_logs(logs)), schema)


def _columns_of(role: str, settings: Mapping[str, Any], logs: Logs) -> tuple[str, ...]:
    column = settings.get(role)
    if not column:
        return ()
    return time_parts(column, logs) if role == "time" else (column,)


def _validated(name: str, settings: Mapping[str, Any]) -> EventSchema:
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


def _sample(con: duckdb.DuckDBPyConnection, logs: Logs) -> _Sample:
    with reading(logs.name, logs.files):
        con.execute(
            f"CREATE TABLE sample AS SELECT * FROM {open_sample(con, logs)} LIMIT {_SAMPLE}"
        )
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
    return _Sample(con, logs, types, rows, filled, distinct)


def _value(column: str, kind: str) -> str:
    """SQL of a value, null for an empty text or NaN."""
    if kind in ("FLOAT", "DOUBLE"):
        return f"CASE WHEN NOT isnan({quoted(column)}) THEN {quoted(column)} END"
    return f"nullif(trim({quoted(column)}), '')" if kind == "VARCHAR" else quoted(column)


def _free(sample: _Sample, settings: Mapping[str, Any]) -> list[str]:
    """Columns without a role that could be a label or a time."""
    taken = {column for role in ROLES for column in _columns_of(role, settings, sample.logs)}
    taken |= set(settings.get("extra", ()))
    # an object as a whole is no label, the values in it are: `location.city`
    taken |= {path.rpartition(".")[0] for path in sample.logs.nested}
    return [
        c for c, kind in sample.types.items() if c not in taken and is_label_type(_element(kind))
    ]


def _element(kind: str) -> str:
    """The type of an event's value where a row is a history."""
    return kind.removesuffix("[]")


def _guess(sample: _Sample, role: str, settings: Mapping[str, Any]) -> str | None:
    """The column of a label: of those with values the one whose name comes first."""
    free = _free(sample, settings)
    ranks = {
        column: rank for column in free if (rank := name_rank(column, NAMES[role])) is not None
    }
    if role in PARTS and all(_tier(sample, role, column) > 1 for column in ranks):
        parts, behind = set(PARTS[role].split()), len(NAMES[role])
        ranks = {column: behind for column in free if name_parts(column) & parts} | ranks
    tiers = {column: _tier(sample, role, column) for column in ranks}
    if role not in _REQUIRED:
        ranks = {column: rank for column, rank in ranks.items() if tiers[column] == 0}
    return _first(sample, role, {column: (tiers[column], rank) for column, rank in ranks.items()})


def _tier(sample: _Sample, role: str, column: str) -> int:
    """How well the contents suit the role, 0 is best."""
    filled, distinct = sample.filled[column], sample.distinct[column]
    if role in ("location", "behavior"):
        return int(filled < 0.5)
    if role == "event" and not sample.types[column].endswith("]"):
        numbers_rows = sample.rows > _FEW and distinct > _UNIQUE * sample.rows
        if filled >= _FULL and (distinct < 2 or numbers_rows):
            return 3 if numbers_rows else 1
    return 0 if filled >= _FULL else 2 if filled > 0.5 else 4 if filled > 0 else 5


def _first(sample: _Sample, role: str, ranks: Mapping[str, tuple[Any, ...]]) -> str | None:
    """The column of the lowest rank. Raises DataError if a needed role has none, or two."""
    best = sorted(ranks, key=lambda column: ranks[column])
    if len(best) > 1 and ranks[best[0]] == ranks[best[1]]:
        raise DataError(
            f"{sample.logs.name}: {best[0]!r} and {best[1]!r} could both be the {role}; name one "
            f"with --{role} COLUMN."
        )
    if best:
        return best[0]
    if role in _REQUIRED:
        raise DataError(
            f"{sample.logs.name}: no column looks like the {role}; name it with --{role} COLUMN. "
            f"Columns: {', '.join(sample.logs.columns[:30])}.{_passed_over(sample, role)}"
        )
    return None


def _passed_over(sample: _Sample, role: str) -> str:
    """What to say of columns that are called like the role, but are not in every file, or are no
    text or number."""
    told = ""
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
        usable = is_label_type(_element(kind)) or is_time_type(_element(kind))
        if not usable and name_rank(column, NAMES[role]) is not None:
            told = f" {column!r} is {kind}, neither text nor number; write it as text."
    return told


def _guess_time(sample: _Sample, role: str, settings: Mapping[str, Any]) -> str | None:
    """The column whose values can be read as times, those with a time of day before dates; a date
    with its clock."""
    free = [
        column for column in _free(sample, settings) if is_time_type(_element(sample.types[column]))
    ]
    ranks = {
        column: rank for column in free if (rank := name_rank(column, NAMES["time"])) is not None
    }
    typed = [column for column in free if sample.types[column].startswith(("TIMESTAMP", "DATE"))]
    if not ranks:
        named = [column for column in free if name_parts(column) & set(PARTS["time"].split())]
        ranks = dict.fromkeys(typed or named, 0)
    read = {column: _read_times(sample, column, settings) for column in ranks}
    keys = {
        c: (int(read[c][0] < _FULL) + int(read[c][0] < 0.5), int(not read[c][1]), r)
        for c, r in ranks.items()
    }
    date = _first(sample, role, keys)
    if date is None or read[date][1]:
        return date
    clocks = {
        column: rank
        for column in _clocks(sample, settings, date)
        if (rank := name_rank(column, CLOCKS)) is not None
    }
    for clock in sorted(clocks, key=lambda column: clocks[column]):
        readable, tells_clock = _read_times(sample, f"{date}{PLUS}{clock}", settings)
        if readable >= _FULL and tells_clock:
            return f"{date}{PLUS}{clock}"
    return date


def _clocks(sample: _Sample, settings: Mapping[str, Any], date: str) -> list[str]:
    taken = {
        date,
        *(column for role in ROLES for column in _columns_of(role, settings, sample.logs)),
    }
    return [column for column in sample.types if column not in taken]


def _read_times(sample: _Sample, time: str, settings: Mapping[str, Any]) -> tuple[float, bool]:
    """Share of the rows with a readable time, and whether any of them is not at midnight."""
    names = ("tz", "naive_time", "time_unit", "time_format")
    given = {name: settings[name] for name in names if name in settings}
    schema = _validated(
        sample.logs.name, given | {"user": " user", "time": time, "event": " event"}
    )
    source = Source(sample.logs.name, (), "sample", sample.types, "''")
    if sample.types.get(time, "").endswith("]"):
        rows = f"(SELECT unnest({quoted(time)}) AS {quoted(time)} FROM sample)"
        source = replace(source, sql=rows, types={time: _element(sample.types[time])})
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
    return good / max(1, rows), clocks > 0


def _table(sample: _Sample, schema: EventSchema) -> list[ColumnGuess]:
    roles: dict[str, list[str]] = {}
    for role in ROLES:
        for column in _columns_of(role, {role: getattr(schema, role)}, sample.logs):
            roles.setdefault(column, []).append(role)
    for column in schema.extra:
        roles.setdefault(column, []).append("extra")
    result = []
    for column, kind in sample.types.items():
        name = quoted(column)
        query = (
            f"SELECT count(*) - count({name}), count(DISTINCT {name}), min({name}::VARCHAR) FROM "
            "sample"
        )
        nulls, distinct, example = one_row(sample.con, query)
        result.append(
            ColumnGuess(
                column, kind, ", ".join(roles.get(column, [])) or None, nulls, distinct, example
            )
        )
    return result
