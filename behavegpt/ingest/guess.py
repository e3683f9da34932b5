"""Which column is what: roles guessed from names and contents, printed before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from behavegpt.data.database import connect, one_row, quoted
from behavegpt.data.schema import ROLES, EventSchema
from behavegpt.ingest.column_names import NAMES, PARTS, name_parts, name_rank
from behavegpt.ingest.column_sample import (
    FULL,
    REQUIRED,
    ColumnSample,
    checked_schema,
    columns_of,
    first_column,
    free_columns,
    take_sample,
)
from behavegpt.ingest.guess_time import guess_time
from behavegpt.ingest.sources import check_columns, find_logs
from behavegpt.io import temporary_folder

_UNIQUE = 0.9  # share of distinct values beyond which a column numbers the rows; from _FEW rows on
_FEW = 20  # rows: with fewer, distinct values say nothing


@dataclass(frozen=True)
class ColumnGuess:
    """One line of the printed table; counts are of the first 100,000 rows."""

    column: str
    type: str
    role: str | None
    nulls: int
    distinct: int
    example: str | None


def guess_schema(logs: Any, given: Mapping[str, Any]) -> tuple[EventSchema, list[ColumnGuess]]:
    """Roles of the columns of `logs`; `given` holds settings of EventSchema that win, None where
    none is given.

    An empty text for an optional role means that the logs have none. Raises DataError naming the
    option to pass.
    """
    logs = find_logs(logs)

    settings = {name: value for name, value in given.items() if value is not None}
    # a wrong name is refused before anything is read
    for role in ROLES:
        for column in columns_of(role, settings, logs):
            check_columns(logs, {role: column})

    with temporary_folder() as folder, connect(folder) as con:
        sample = take_sample(con, logs)
        # in the order of NAMES: what one role takes is no longer free for the next
        for role in NAMES:
            if role not in settings:
                guess = guess_time if role == "time" else _guess
                settings[role] = guess(sample, role, settings)

        schema = checked_schema(logs.name, settings)
        return schema, _table(sample, schema)


def guess_columns(logs: Any, schema: EventSchema) -> list[ColumnGuess]:
    """The table of columns with the roles of `schema`."""
    with temporary_folder() as folder, connect(folder) as con:
        return _table(take_sample(con, find_logs(logs)), schema)


def _guess(sample: ColumnSample, role: str, settings: Mapping[str, Any]) -> str | None:
    """The column of a label: of those with values the one whose name comes first."""
    free = free_columns(sample, settings)
    ranks = {
        column: rank for column in free if (rank := name_rank(column, NAMES[role])) is not None
    }

    # names that nobody listed, by their words: behind all names that are known
    if role in PARTS and all(_tier(sample, role, column) > 1 for column in ranks):
        parts, behind = set(PARTS[role].split()), len(NAMES[role])
        ranks = {column: behind for column in free if name_parts(column) & parts} | ranks

    # one column is left, whatever its name: it is what users did
    if role == "event" and not ranks and len(free) == 1:
        ranks = {free[0]: 0}

    tiers = {column: _tier(sample, role, column) for column in ranks}
    if role not in REQUIRED:
        # an optional role is only guessed where nothing speaks against it
        ranks = {column: rank for column, rank in ranks.items() if tiers[column] == 0}

    keys = {column: (tiers[column], rank) for column, rank in ranks.items()}
    return first_column(sample, role, keys)


def _tier(sample: ColumnSample, role: str, column: str) -> int:
    """How well the contents suit the role, 0 is best."""
    filled, distinct = sample.filled[column], sample.distinct[column]
    # half of the rows are enough: many logs tell the place of some events only
    if role in ("location", "behavior"):
        return int(filled < 0.5)

    if role == "event" and not sample.types[column].endswith("]"):
        # a column with a value for nearly every row is a row number, not an event
        numbers_rows = sample.rows > _FEW and distinct > _UNIQUE * sample.rows
        if filled >= FULL and (distinct < 2 or numbers_rows):
            return 3 if numbers_rows else 1

    # nulls cost more than a constant or a row number, and an empty column is the last resort
    return 0 if filled >= FULL else 2 if filled > 0.5 else 4 if filled > 0 else 5


def _table(sample: ColumnSample, schema: EventSchema) -> list[ColumnGuess]:
    roles: dict[str, list[str]] = {}
    for role in ROLES:
        for column in columns_of(role, {role: getattr(schema, role)}, sample.logs):
            roles.setdefault(column, []).append(role)
    for column in schema.extra:
        roles.setdefault(column, []).append("extra")
    for column in schema.numeric:
        roles.setdefault(column, []).append("numeric")

    result = []
    for column, kind in sample.types.items():
        name = quoted(column)
        # by column: one query over all would hold the distinct values of each at once
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
