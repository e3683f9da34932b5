"""Logs that fit in memory as a normalised table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.database import connect, reading
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import MICROS, calendar
from behavegpt.ingest.baskets import BASKET_KEYS, basket_numbers, basket_times, sort_index
from behavegpt.ingest.plan import TIME_RANGE, plan_events
from behavegpt.ingest.rows import read_rows
from behavegpt.ingest.sources import Logs, find_logs
from behavegpt.io import temporary_folder


class Events(NamedTuple):
    """What `read_events` returns."""

    table: pa.Table
    """user (text), time (int64 microseconds), weekday (uint8), slot, with a group the number of the
    basket, and the label fields as text, nulls kept; sorted by user, time and order, simultaneous
    events as `prepare` shuffles them."""
    rejects: pa.Table
    """file, the original values as text (one column per role), reason."""


def read_events(
    logs: Any,
    schema: EventSchema,
    *,
    fields: Collection[str] | None = None,
    time_range: tuple[str, str] = TIME_RANGE,
    threads: int | None = None,
) -> Events:
    """Normalise logs that fit in memory: files, a DataFrame, an Arrow table or a dict of columns.

    A few rows of plain types are read without a database (rows.py). Raises DataError.
    """
    logs = find_logs(logs)
    # a service asks for a few rows at a time: starting a database would take longer than they do
    read = read_rows(logs, schema, fields, time_range)
    if read is not None:
        return Events(*read)
    return read_with_duckdb(logs, schema, fields, time_range, threads)


def read_with_duckdb(
    logs: Logs,
    schema: EventSchema,
    fields: Collection[str] | None = None,
    time_range: tuple[str, str] = TIME_RANGE,
    threads: int | None = None,
) -> Events:
    """What `read_events` gives, of logs of any size and type."""
    # the plan spills what does not fit; the table itself must fit the memory
    with temporary_folder() as folder, connect(folder, threads=threads) as con:
        plan = plan_events(con, logs, schema, folder, fields, time_range)

        parts = [rows.columns for rows in plan.batches(1_000_000)]

        order = ("order",) if schema.order else ()
        names = ("user", "time", *order, *plan.grouping, *plan.fields)
        # no accepted row: empty columns of every name
        parts = parts or [{name: np.zeros(0, np.int64) for name in names}]
        columns = {}
        for name in names:
            columns[name] = np.concatenate([part[name] for part in parts])

        if plan.grouping:
            columns["time"] = basket_times(columns)
        index = sort_index(columns, plan.hashes(), plan.schema)  # (N,)
        time = columns["time"][index]
        weekday, slot = calendar(time // MICROS, plan.schema)

        def labels(field: str) -> pa.StringArray:
            return plan.labels(field).take(pa.array(columns[field][index]))

        table = {"user": labels("user")}
        table |= {"time": pa.array(time), "weekday": pa.array(weekday), "slot": pa.array(slot)}
        if plan.grouping:
            sorted_columns = {name: columns[name][index] for name in BASKET_KEYS}
            table["basket"] = pa.array(basket_numbers(sorted_columns))
        table |= {field: labels(field) for field in plan.fields}

        # a file that breaks while its rejects are read is a fault of the file
        with reading(plan.source.name, plan.source.files):
            return Events(pa.table(table), con.sql(plan.rejects()).to_arrow_table())
