"""Logs that fit in memory as a normalised table, and the order of events that every reader
shares."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.database import connect, reading
from behavegpt.data.plan import TIME_RANGE, plan_events
from behavegpt.data.schema import EventSchema
from behavegpt.data.sources import find_logs
from behavegpt.data.times import MICROS, calendar
from behavegpt.io import temporary_folder


class Events(NamedTuple):
    """What `read_events` returns."""

    table: pa.Table
    """user (text), time (int64 microseconds), weekday (uint8), slot, and the label fields as text,
    nulls kept; sorted by user, time and order, simultaneous events as `prepare` shuffles them."""
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
    Raises DataError."""
    with temporary_folder() as folder, connect(folder, threads=threads) as con:
        plan = plan_events(con, find_logs(logs), schema, folder, fields, time_range)
        parts = [rows.columns for rows in plan.batches(1_000_000)]
        names = ("user", "time", *(("order",) if schema.order else ()), *plan.fields)
        parts = parts or [{name: np.zeros(0, np.int64) for name in names}]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
        index = sort_events(columns, plan.hashes())
        time = columns["time"][index]
        weekday, slot = calendar(time // MICROS, plan.schema)
        table = {"user": plan.labels("user").take(pa.array(columns["user"][index]))}
        table |= {"time": pa.array(time), "weekday": pa.array(weekday), "slot": pa.array(slot)}
        table |= {f: plan.labels(f).take(pa.array(columns[f][index])) for f in plan.fields}
        with reading(plan.source.name, plan.source.files):
            return Events(pa.table(table), con.sql(plan.rejects()).to_arrow_table())


def sort_events(columns: dict[str, np.ndarray], hashes: dict[str, np.ndarray]) -> np.ndarray:
    """Index (N,) int64 that sorts events by user code, time and order; what is still tied is
    shuffled.

    `hashes` holds, for the user and every label field, a stable hash (codes,) uint64 by code. The
    shuffle depends on the user, the time and the labels, never on the order of the input. A key of
    the labels alone would put a before b in every tie of every user, which a model learns and
    nobody can know in advance.
    """
    user, seconds = columns["user"].astype(np.uint64), columns["time"] // MICROS
    if not len(user):
        return np.zeros(0, np.int64)
    user -= user.min()
    seconds = (seconds - seconds.min()).astype(np.uint64)
    time_bits = int(seconds.max()).bit_length()
    key = (user << np.uint64(time_bits)) | seconds
    # Radix sort, 16 bits at a time: numpy's stable argsort of 16 bits takes linear time, its other
    # sorts do not.
    index = np.argsort(key.astype(np.uint16), kind="stable")
    for shift in range(16, int(key.max()).bit_length(), 16):
        digit = (key >> np.uint64(shift)).astype(np.uint16)
        index = index[np.argsort(digit[index], kind="stable")]
    key = key[index]
    equal = key[1:] == key[:-1]
    tied = np.flatnonzero(np.concatenate([equal, [False]]) | np.concatenate([[False], equal]))
    if len(tied):
        rows = index[tied]
        draw = _mixed(columns["time"][rows].astype(np.uint64))
        for field, values in hashes.items():
            draw = _mixed(draw ^ values[columns[field][rows]])
        order = [columns["order"][rows]] if "order" in columns else []
        keys = [*order, columns["time"][rows], key[tied]]
        draw = _apart(draw, keys)
        index[tied] = rows[np.lexsort([draw, *keys])]
    return index


def _apart(draw: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """Draws (N,) in which equal ones of equal keys, the same event twice, differ: side by side they
    would be a hint."""
    index = np.lexsort([draw, *keys])
    same = np.insert(
        np.logical_and.reduce([v[index][1:] == v[index][:-1] for v in (draw, *keys)]), 0, False
    )
    place = np.arange(len(draw))
    copy = np.empty_like(draw)
    copy[index] = (place - np.maximum.accumulate(np.where(same, 0, place))).astype(np.uint64)
    return np.where(copy > 0, _mixed(draw + copy), draw)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of values (N,) uint64 spread over all of them (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def count_ties(columns: dict[str, np.ndarray]) -> int:
    """Number of events that share user and time with another; columns sorted by both."""
    same = (np.diff(columns["user"]) == 0) & (np.diff(columns["time"]) == 0)
    return int((np.append(same, False) | np.insert(same, 0, False)).sum())
