"""A few rows read without a database, which takes tens of milliseconds to start: what `read_events`
gives.

Values of plain types are read here, one distinct value at a time; whatever only DuckDB knows how to
read, and every error, is left to it (None). Tests compare the two. Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.label_texts import labels_of, number_text
from behavegpt.data.labels import EXACT
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import MICROS, calendar, instants
from behavegpt.errors import DataError
from behavegpt.ingest.baskets import BASKET_KEYS, basket_numbers, basket_times, sort_index
from behavegpt.ingest.plan import parse_range
from behavegpt.ingest.plan_columns import label_columns, needed_columns, reject_columns
from behavegpt.ingest.reasons import (
    BAD_ORDER,
    BAD_TIME,
    LATE,
    NO_EVENT,
    NO_TIME,
    NO_USER,
    REASONS,
)
from behavegpt.ingest.row_times import RowTimes, read_times
from behavegpt.ingest.source_values import SINCE_START
from behavegpt.ingest.sources import Logs

MOST_ROWS = 20_000  # beyond, DuckDB is as fast, and does not hold the interpreter's lock
_KEY = re.compile("[+-]?[0-9]{1,18}")
_LEAST_KEY = 1 - 2**63  # of a row without a key: before all others


class _Labels(NamedTuple):
    """Labels of one column."""

    texts: list[str | None]  # (N,)
    codes: np.ndarray  # (N,) int64 in text order, 0 for null
    hashes: np.ndarray  # (codes,) uint64, as `Plan.hashes` makes them


class _Order(NamedTuple):
    keys: np.ndarray  # (N,) int64 or float64
    unread: np.ndarray  # (N,) bool


def read_rows(
    logs: Logs, schema: EventSchema, fields: Collection[str] | None, time_range: tuple[str, str]
) -> tuple[pa.Table, pa.Table] | None:
    """Events and rejects of `read_events`; None where DuckDB must decide."""
    columns = label_columns(schema, fields)
    table = _few_rows(logs, needed_columns(schema, columns))
    if table is None or schema.time.rpartition(".")[2] == SINCE_START:
        return None

    bounds = parse_range(time_range)
    times = read_times(table[schema.time], schema, bounds)
    order = _order(table[schema.order]) if schema.order else None
    if times is None or (schema.order and order is None):
        return None

    # column by column: the first that only DuckDB can read ends it
    labels: dict[str, _Labels] = {}
    for field, column in columns.items():
        read = _labels(table[column], schema.label_rules.get(field))
        if read is None:
            return None
        labels[field] = read

    reason = _reasons(times, labels, order, bounds)

    rejects = _rejects(logs.name, table, schema, columns, reason)
    if rejects is None:
        return None
    return _events(times, labels, order, reason, schema), rejects


def read_labels(
    logs: Logs, columns: Mapping[str, str], rules: Mapping[str, str]
) -> pa.Table | None:
    """Columns (field -> column) of a few rows as labels by field, under known rules; None where
    DuckDB must read them."""
    table = _few_rows(logs, columns)
    if table is None or not columns.keys() <= rules.keys():
        return None

    texts = {}
    for field, column in columns.items():
        read = _labels(table[column], rules[field])
        if read is None:
            return None
        texts[field] = pa.array(read.texts, pa.string())
    return pa.table(texts)


def _few_rows(logs: Logs, roles: Mapping[str, str]) -> pa.Table | None:
    """The columns of the roles, None where they are not a few rows in memory."""
    frame = logs.frame
    if frame is None or not set(roles.values()).issubset(frame.names):
        return None

    try:
        table = frame.select(list(dict.fromkeys(roles.values())), MOST_ROWS + 1)
    except (DataError, pa.ArrowException, UnicodeError):  # told by who reads all rows
        return None
    # one row more was asked for, so that a longer table is told without reading it
    return table if 0 < table.num_rows <= MOST_ROWS else None


def _reasons(
    times: RowTimes,
    labels: dict[str, _Labels],
    order: _Order | None,
    bounds: tuple[int, int],
) -> np.ndarray:
    """Index into REASONS (N,), the first that holds, as `Plan` asks for them."""
    low, high = bounds[0] * MICROS, bounds[1] * MICROS
    tests = {
        NO_USER: labels["user"].codes == 0,
        NO_TIME: times.empty,
        BAD_TIME: times.unread,
        LATE: (times.stamps < low) | (times.stamps >= high),
        NO_EVENT: labels["event"].codes == 0,
    }
    if order is not None:
        tests[BAD_ORDER] = order.unread

    # select takes the first test that holds, as CASE does in SQL
    return np.select(list(tests.values()), list(tests), 0)


def _events(
    times: RowTimes,
    labels: dict[str, _Labels],
    order: _Order | None,
    reason: np.ndarray,
    schema: EventSchema,
) -> pa.Table:
    """The accepted rows, sorted."""
    good = np.flatnonzero(reason == 0)  # (n,) rows

    wall = times.wall if isinstance(times.wall, bool) else times.wall[good]
    time = instants(times.stamps[good], wall, schema)

    keys = {"time": time} | {field: column.codes[good] for field, column in labels.items()}
    if order is not None:
        keys["order"] = order.keys[good]

    hashes = {field: column.hashes for field, column in labels.items()}
    if schema.has_baskets:
        keys["time"] = time = basket_times(keys)
    index = sort_index(keys, hashes, schema)  # (n,)
    weekday, slot = calendar(time[index] // MICROS, schema)

    rows = good[index].tolist()
    texts = {}
    for field, column in labels.items():
        texts[field] = pa.array([column.texts[row] for row in rows], pa.string())

    clock = {"time": time[index], "weekday": weekday, "slot": slot}
    if schema.has_baskets:
        del texts["group"]
        clock["basket"] = basket_numbers({name: keys[name][index] for name in BASKET_KEYS})
    return pa.table({"user": texts.pop("user"), **clock, **texts})


def _rejects(
    name: str, table: pa.Table, schema: EventSchema, columns: dict[str, str], reason: np.ndarray
) -> pa.Table | None:
    """The rejected rows as `Plan.rejects` gives them; None for values whose text only DuckDB
    knows."""
    bad = np.flatnonzero(reason)  # (n,) rows
    names = reject_columns(schema, columns)
    if not len(bad):
        return pa.table({column: pa.array([], pa.string()) for column in names})

    texts = []
    for column in needed_columns(schema, columns).values():
        values = _plain_values(table[column])
        if values is None:
            return None
        texts.append([_as_text(values[row]) for row in bad])

    # as ORDER BY ALL sorts them: column by column, nulls last
    rows = zip([name] * len(bad), *texts, [REASONS[number] for number in reason[bad]], strict=True)
    ordered = sorted(rows, key=lambda row: [(text is None, text or "") for text in row])
    arrays = [pa.array(values, pa.string()) for values in zip(*ordered, strict=True)]
    return pa.table(arrays, names=names)


def _labels(column: pa.ChunkedArray, rule: str | None) -> _Labels | None:
    """Labels under a rule, which is found out where none is given."""
    values = _plain_values(column)
    if values is None:
        return None

    distinct = {value: as_label_text(value) for value in set(values) - {None}}
    # beyond 2^53 neighbors have one spelling: DuckDB raises the error
    if any(isinstance(value, float) and _inexact(value) for value in distinct):
        return None

    if rule is None and pa.types.is_integer(column.type):
        rule = "integer"
    written = labels_of({text for text in distinct.values() if text}, rule)
    if written is None:
        return None

    # each distinct value once: a few rows hold few of them
    label = {value: written.get(text or "") for value, text in distinct.items()}

    texts = [label.get(value) for value in values]

    # text order, as a plan's codes have
    known = sorted(set(written.values()))
    code = {text: number for number, text in enumerate(known, 1)}
    codes = np.array([0 if text is None else code[text] for text in texts], np.int64)

    # the lower half, as DuckDB's md5_number_lower
    digests = (hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:] for text in known)

    hashes = np.array([0, *(int.from_bytes(half, "little") for half in digests)], np.uint64)
    return _Labels(texts, codes, hashes)


def _order(column: pa.ChunkedArray) -> _Order | None:
    """The keys of simultaneous events: integers if all are, else doubles."""
    values = _plain_values(column)
    if values is None or pa.types.is_boolean(column.type) or pa.types.is_uint64(column.type):
        return None

    if pa.types.is_floating(column.type):
        # NaN is unread, and rejected: its place in the order decides nothing
        numbers = [-math.inf if value is None or value != value else value for value in values]
        unread = [value is not None and value != value for value in values]
        return _Order(np.array(numbers, np.float64), np.array(unread))

    if not pa.types.is_integer(column.type):
        values = [value.strip(" ") if value else None for value in values]
        if not all(value is None or _KEY.fullmatch(value) for value in values):
            return None

    keys = [_LEAST_KEY if value is None else int(value) for value in values]
    return _Order(np.array(keys, np.int64), np.zeros(len(keys), bool))


def _plain_values(column: pa.ChunkedArray) -> list[Any] | None:
    """The values of a column of a plain type; None for any other."""
    kind = column.type
    plain = (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_float64(kind)
        or pa.types.is_boolean(kind)
    )
    return column.to_pylist() if plain else None


def as_label_text(value: Any) -> str | None:
    """The text of a value before any rule, None for what is no label."""
    if isinstance(value, float):
        return None if value != value else number_text(value + 0)
    return _as_text(value) or None


def _as_text(value: Any) -> str | None:
    """The text that DuckDB makes of a value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None or isinstance(value, str) else repr(value)


def _inexact(value: float) -> bool:
    return EXACT["DOUBLE"] <= abs(value) < math.inf
