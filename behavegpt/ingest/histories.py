"""What callers may pass as the events of their users -> what the readers take: files, or a table
with every column."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import DataError
from behavegpt.ingest.column_names import NAMES
from behavegpt.ingest.frames import Frame, as_frame
from behavegpt.ingest.sources import Logs

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa

EventData: TypeAlias = Union[
    str,
    Path,
    Logs,
    Frame,
    "pa.Table",
    "pd.DataFrame",
    "pl.DataFrame",
    "datasets.Dataset",
    Mapping[str, Sequence[object]],
    Sequence[Mapping[str, object]],
    Sequence[str | Path],
]
"""Files, a table of any library, a mapping of columns, or a list of event dicts."""

ONLY_USER = "0"  # the label of the user of a list of events that names none


def as_logs(events: EventData, schema: EventSchema) -> EventData:
    """Paths as they are; a frame, a mapping of columns or a list of event dicts as an Arrow table.

    Only a list of event dicts may come without the user's column: it is one history. Raises
    DataError where a frame has no such column, naming the nearest one.
    """
    if isinstance(events, (str, Path, Logs)):
        return events
    if isinstance(events, (list, tuple)):
        # a list of paths
        if not events or not isinstance(events[0], Mapping):
            return events
        return _from_rows(events, schema)

    # before the conversion, which drops the index without a word
    _refuse_index(events, schema)
    # one form for all libraries from here on
    frame = as_frame(events)

    if schema.user not in frame.names:
        names = frame.names
        near = _nearest(schema.user, names)
        columns = (
            f"Did you mean {near!r}? " if near else f"Columns: {', '.join(map(repr, names[:30]))}. "
        )
        raise DataError(
            f"the frame has no column {schema.user!r} (the user), so nothing tells whose the "
            f"events are. {columns}Rename it to {schema.user!r}; only a list of event dicts may "
            "come without it, as one user's history."
        )

    return frame


def encode_histories(
    tokenizer: EventTokenizer, events: Any, *, warn: bool = True
) -> EncodedHistories:
    """Histories in ids, as the predictors take them. Raises DataError when no event is usable."""
    if isinstance(events, EncodedHistories):
        return events

    encoded = tokenizer.encode(as_logs(events, tokenizer.event_schema), warn=warn)
    if len(encoded.users) == 0:
        reasons = (
            ", ".join(f"{n} rows: {reason}" for reason, n in encoded.rejected.items()) or "no rows"
        )
        raise DataError(f"no usable event to predict from ({reasons}).")

    return encoded


def rows_as_columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of a list of event dicts, absent keys as null. Raises DataError."""
    # the first row alone was looked at until here
    other = next((row for row in rows if not isinstance(row, Mapping)), None)
    if other is not None:
        raise DataError(
            f"a {type(other).__name__} stands among the events; write each one as a dict of its "
            "columns."
        )

    columns: dict[Any, list[Any]] = {}
    # a dict keeps the columns in the order in which they come up
    for name in dict.fromkeys(name for row in rows for name in row):
        columns[name] = [row.get(name) for row in rows]
    return columns


def _from_rows(rows: Sequence[Any], schema: EventSchema) -> Frame:
    columns = rows_as_columns(rows)
    if schema.user not in columns:
        # a near miss is a misspelt column, not one history
        near = _nearest(schema.user, [str(name) for name in columns])
        if near:
            raise DataError(
                f"the events have no {schema.user!r} (the user), but {near!r}; rename it to "
                f"{schema.user!r}, or remove it if all events belong to one user."
            )
        # the list is one history
        columns[schema.user] = [ONLY_USER] * len(rows)

    return as_frame(columns)


def _refuse_index(frame: Any, schema: EventSchema) -> None:
    """pandas: a column that was made the index is no column of the table."""
    index = [
        str(name)
        for name in getattr(getattr(frame, "index", None), "names", None) or ()
        if name is not None
    ]

    roles = {"user": schema.user, "time": schema.time} | schema.label_columns
    for role, column in roles.items():
        if column in index and column not in frame.columns:
            raise DataError(
                f"{column!r} (the {role}) is the frame's index, not a column; pass "
                "frame.reset_index()."
            )


def _nearest(column: str, names: Sequence[str]) -> str | None:
    """The name that looks like another spelling of a user column."""

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    # a log may call the user `client` where the model's called them `uid`
    users = {plain(column), *NAMES["user"].split()}
    exact = next((name for name in names if plain(name) in users), None)

    # spelling errors: userid for user_id was an exact one already
    close = difflib.get_close_matches(
        column.lower(), [name.lower() for name in names], n=1, cutoff=0.8
    )
    return exact or next((name for name in names if close and name.lower() == close[0]), None)
