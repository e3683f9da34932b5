"""Histories that may be read in one piece: no rule of reading looks beyond their own rows.

Whether labels like `7.0` are integers, and the unit of numbers that are times, are decided by all
rows of a log, so histories with such values are read alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from behavegpt.data.schema import EventSchema
from behavegpt.ingest.time_join import time_parts

SURE_DIGITS = 15  # of a whole number that a float holds exactly
ReadingKey = tuple[tuple[str, type | None, bool], ...]


def columns_of(schema: EventSchema) -> dict[str, str]:
    """Role -> column of an event, the user left out."""
    return (
        schema.label_columns
        | {"time": schema.time}
        | ({"order": schema.order} if schema.order else {})
        | ({"group": schema.group} if schema.group else {})
    )


def reading_key(rows: Sequence[Mapping[str, Any]], schema: EventSchema) -> ReadingKey | None:
    """Column, type and whether it is there of each role; histories with one key may be read
    together.

    None: alone.
    """
    names = {name for row in rows for name in row}
    if len(time_parts(schema.time, names)) > 1:  # how a clock is written is told from all rows
        return None

    key = []
    for role, column in columns_of(schema).items():
        values = [row.get(column) for row in rows]
        kinds = {type(value) for value in values} - {type(None)}
        # a float's label depends on the column's rule; other types are DuckDB's to read
        if len(kinds) > 1 or not kinds <= {str, int, bool}:
            return None

        kind = kinds.pop() if kinds else None

        if kind is str and any(value and _depends_on_others(role, value) for value in values):
            return None
        # the unit of numbers is told from all of them
        if kind is int and role == "time" and schema.time_unit == "auto":
            return None
        # absent and null are read alike, but a missing column is an error that names it
        key.append((column, kind, column in names))

    return tuple(key)


def _depends_on_others(role: str, value: str) -> bool:
    if role == "time":  # a number as text, or a form that is read apart
        # ISO times are read row by row, everything else by what the column holds
        return "-" not in value or not value[:4].isdigit()
    if role == "order":  # whole numbers sort as such, alone or in company; other text need not
        return not (value.isascii() and value.isdigit() and len(value) <= SURE_DIGITS)
    # `7.0` is the label `7` only where all labels of the column are whole
    return value.endswith(".0")
