"""The columns that a preparation reads, by role, and the types they may have."""

from __future__ import annotations

from collections.abc import Collection

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.log_table import Source
from behavegpt.ingest.time_columns import is_time_type
from behavegpt.ingest.time_survey import FLOATS, INTEGERS

# DuckDB types whose text is no name of anything
_NO_LABELS = ("BLOB", "BIT", "STRUCT", "MAP", "UNION", "INTERVAL", "GEOMETRY", "VARIANT")


def label_columns(schema: EventSchema, fields: Collection[str] | None = None) -> dict[str, str]:
    """user, event, the other label fields (those of `fields`, the event always) and the group ->
    source column."""
    labels = {
        field: column
        for field, column in schema.label_columns.items()
        if fields is None or field == "event" or field in fields
    }
    # a group is read and counted as a label is, but is no field of the model
    group = {} if schema.group is None else {"group": schema.group}
    return {"user": schema.user, **labels, **group}


def needed_columns(schema: EventSchema, columns: dict[str, str]) -> dict[str, str]:
    """Role -> source column of all that is read."""
    # in the order of dictionaries: user, event, the other labels, then what has none
    return columns | {"time": schema.time} | ({"order": schema.order} if schema.order else {})


def reject_columns(schema: EventSchema, columns: dict[str, str]) -> list[str]:
    """Names of the columns of rejects.parquet."""
    roles = needed_columns(schema, columns)
    return [
        "file",
        # an extra field may be called like one of the two columns that are ours
        *(f"{role} (extra)" if role in ("file", "reason") else role for role in roles),
        "reason",
    ]


def check_types(source: Source, schema: EventSchema, columns: dict[str, str]) -> None:
    """Raise DataError for a column whose type is not what its role needs."""
    for role, column in needed_columns(schema, columns).items():
        check_type(source, role, column)


def is_label_type(sql_type: str) -> bool:
    """Whether values of a DuckDB type can be labels."""
    return not (sql_type.startswith(_NO_LABELS) or sql_type.endswith("]"))


def check_type(source: Source, role: str, column: str) -> None:
    """Raise DataError for a column whose type is not what its role needs."""
    # of the column, not of the values: text in a column of text is judged row by row
    kind = source.types[column]
    bad = not is_label_type(kind)
    what, remedy = "a label", "write it as text or a number"

    if role == "time":
        bad, what = not is_time_type(kind), "a time"
        remedy = "use a timestamp, ISO text or an epoch number"
    if role == "order":
        bad = bad or not (kind == "VARCHAR" or kind.startswith((*INTEGERS, *FLOATS)))
        what, remedy = "an order", "use a numeric column"

    if bad:
        raise DataError(
            f"{source.name}: column {column!r} (the {role}) is of type {kind}, not {what}; "
            f"{remedy}."
        )
