"""Logs that fit in memory as a normalised table, and the order of events that every reader shares."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.database import connect, reading
from behavegpt.data.plan import TIME_RANGE, plan_events
from behavegpt.data.schema import EventSchema
from behavegpt.data.sources import find_logs
from behavegpt.data.times import MICROS, calendar


class Events(NamedTuple):
    """What `read_events` returns."""

    table: pa.Table
    """user (text), time (int64 microseconds), weekday (uint8), slot, and the label fields as text, nulls kept;
    sorted by user, time, order and content, as `prepare` sorts."""
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
    """Normalise logs that fit in memory: files, a DataFrame, an Arrow table or a dict of columns. Raises DataError."""
    with tempfile.TemporaryDirectory(prefix="behavegpt-") as folder, connect(Path(folder), threads=threads) as con:
        plan = plan_events(con, find_logs(logs), schema, Path(folder), fields, time_range)
        parts = [rows.columns for rows in plan.batches(1_000_000)]
        names = ("user", "time", *(("order",) if schema.order else ()), *plan.fields)
        empty = {name: np.zeros(0, np.int64) for name in names}
        columns = {n: np.concatenate([part[n] for part in parts]) for n in names} if parts else empty
        index = sort_events(columns, plan.hashes())
        time = columns["time"][index]
        weekday, slot = calendar(time // MICROS, plan.schema)
        table = {"user": plan.labels("user").take(pa.array(columns["user"][index]))}
        table |= {"time": pa.array(time), "weekday": pa.array(weekday), "slot": pa.array(slot)}
        table |= {f: plan.labels(f).take(pa.array(columns[f][index])) for f in plan.fields}
        with reading(plan.source.name, plan.source.files):
            return Events(pa.table(table), con.sql(plan.rejects()).to_arrow_table())


def sort_events(columns: dict[str, np.ndarray], hashes: dict[str, np.ndarray]) -> np.ndarray:
    """Index (N,) int64 that sorts events by user code, time, order and label hash: any input order, one result."""
    user, seconds = columns["user"].astype(np.uint64), columns["time"] // MICROS
    if not len(user):
        return np.zeros(0, np.int64)
    user -= user.min()
    seconds = (seconds - seconds.min()).astype(np.uint64)
    time_bits = int(seconds.max()).bit_length()
    key = (user << np.uint64(time_bits)) | seconds
    # Radix sort, 16 bits at a time: numpy's stable argsort of 16 bits takes linear time, its other sorts do not.
    index = np.argsort(key.astype(np.uint16), kind="stable")
    for shift in range(16, int(key.max()).bit_length(), 16):
        digit = (key >> np.uint64(shift)).astype(np.uint16)
        index = index[np.argsort(digit[index], kind="stable")]
    key = key[index]
    equal = key[1:] == key[:-1]
    tied = np.flatnonzero(np.concatenate([equal, [False]]) | np.concatenate([[False], equal]))
    if len(tied):
        rows = index[tied]
        content = np.zeros(len(rows), np.uint64)
        for field, values in hashes.items():
            content = (content ^ values[columns[field][rows]]) * np.uint64(0x9E3779B97F4A7C15)
        order = [columns["order"][rows]] if "order" in columns else []
        index[tied] = rows[np.lexsort([content, *order, columns["time"][rows], key[tied]])]
    return index
