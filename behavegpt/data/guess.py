"""Which column is what: roles guessed from names and types, printed before anything is read."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from pydantic import ValidationError

from behavegpt.data.database import connect, one_row, quoted, reading
from behavegpt.data.schema import ROLES, EventSchema
from behavegpt.data.sources import Logs, check_columns, find_logs, open_sample
from behavegpt.data.times import is_time_type
from behavegpt.errors import DataError

# Names without case and punctuation, the likeliest first.
NAMES = {
    "user": "user userid uid customerid customer clientid client visitorid memberid accountid deviceid personid "
    "participantid cookieid buyerid",
    "time": "timestamp time datetime eventtime eventtimestamp timestampms createdat localtime utctime unixtime ts date",
    "event": "event eventid eventname item itemid productid product sku stockcode appid app appname articleid article "
    "venuecategory action activity url",
    "location": "location locationid loc cellid cell basestation baseid stationid station placeid place venueid venue "
    "poi poiid cityid city region country geohash area",
    "behavior": "behavior behaviour behaviorid behaviortype",
}
_REQUIRED = ("user", "time", "event")
_SAMPLE = 100_000


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
    """Roles of the columns of `logs`; `given` holds settings of EventSchema that win, None where none is given.

    An empty text for an optional role means that the logs have none. Raises DataError naming the option to pass.
    """
    found = find_logs(logs)
    settings = {name: value for name, value in given.items() if value is not None}
    check_columns(found, {role: settings[role] for role in ROLES if settings.get(role)})
    with tempfile.TemporaryDirectory(prefix="behavegpt-") as folder, connect(Path(folder)) as con:
        types = _sample(con, found)
        for role, names in NAMES.items():
            if role not in settings:
                settings[role] = _guess(found, types, role, names.split(), settings)
        try:
            schema = EventSchema.model_validate({name: value for name, value in settings.items() if value != ""})
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"{found.name}: {'.'.join(map(str, first['loc'])) or 'columns'} = {first['input']!r}: {first['msg']}."
            ) from None
        return schema, _columns(con, types, schema)


def guess_columns(logs: Any, schema: EventSchema) -> list[ColumnGuess]:
    """The table of columns with the roles of `schema`."""
    with tempfile.TemporaryDirectory(prefix="behavegpt-") as folder, connect(Path(folder)) as con:
        return _columns(con, _sample(con, find_logs(logs)), schema)


def _sample(con: duckdb.DuckDBPyConnection, logs: Logs) -> dict[str, str]:
    """Create the table `sample` of the first rows; types by column."""
    with reading(logs.name, logs.files):
        con.execute(f"CREATE TABLE sample AS SELECT * FROM {open_sample(con, logs)} LIMIT {_SAMPLE}")
        return {row[0]: row[1] for row in con.execute("DESCRIBE sample").fetchall()}


def _guess(logs: Logs, types: dict[str, str], role: str, names: list[str], settings: Mapping[str, Any]) -> str | None:
    taken = {value for name, value in settings.items() if name in ROLES}
    free = [column for column in types if column not in taken]
    if role == "time":
        free = [
            column for column in free if is_time_type(types[column].removesuffix("[]"))
        ]  # a list: one row holds a history
    plain = {column: re.sub(r"[^a-z0-9]", "", column.lower()) for column in free}
    for name in names:
        matches = [column for column in free if plain[column] == name]
        if len(matches) > 1:
            raise DataError(
                f"{logs.name}: {matches[0]!r} and {matches[1]!r} could both be the {role}; "
                f"name one with --{role} COLUMN."
            )
        if matches:
            return matches[0]
    typed = [column for column in free if types[column].startswith(("TIMESTAMP", "DATE"))]
    if role == "time" and len(typed) == 1:
        return typed[0]
    if role in _REQUIRED:
        raise DataError(
            f"{logs.name}: no column looks like the {role}; name it with --{role} COLUMN. "
            f"Columns: {', '.join(logs.columns[:30])}."
        )
    return None


def _columns(con: duckdb.DuckDBPyConnection, types: dict[str, str], schema: EventSchema) -> list[ColumnGuess]:
    roles: dict[str, list[str]] = {}
    for role in ROLES:
        column = getattr(schema, role)
        if column is not None:
            roles.setdefault(column, []).append(role)
    for column in schema.extra:
        roles.setdefault(column, []).append("extra")
    result = []
    for column, kind in types.items():
        name = quoted(column)
        query = f"SELECT count(*) - count({name}), count(DISTINCT {name}), min({name}::VARCHAR) FROM sample"
        nulls, distinct, example = one_row(con, query)
        result.append(ColumnGuess(column, kind, ", ".join(roles.get(column, [])) or None, nulls, distinct, example))
    return result
