"""A few rows read without a database, which takes tens of milliseconds to start: what `read_events`
gives.

Only the plain case: labels that are all text or all integers, times like 2024-05-01 08:10:00, no
row that would be rejected. Anything else is left to `read_events` itself (None); tests compare the
two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.data.labels import TEXT, settled
from behavegpt.data.schema import EventSchema
from behavegpt.data.ties import sort_events
from behavegpt.data.time_formats import reads_iso
from behavegpt.data.times import MICROS, calendar, instants, parse_date
from behavegpt.ingest.plan import TIME_RANGE

PLAIN_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}")
# what a BIGINT of DuckDB does not hold is left to it
LARGEST = 2**63
EARLIEST, LATEST = parse_date(TIME_RANGE[0]) * MICROS, parse_date(TIME_RANGE[1]) * MICROS


def read_rows(columns: Mapping[str, Sequence[Any]], schema: EventSchema) -> pa.Table | None:
    """The table of `read_events`, None where that must decide. The users' labels ascend, row by
    row."""
    labels: dict[str, list[str | None]] = {}
    for field, column in schema.label_columns.items():
        # a missing behavior is what is asked for; another missing column is not plain
        if column not in columns:
            if field == "behavior":
                continue
            return None
        texts = _texts(columns[column], schema.label_rules.get(field))
        if texts is None or (field == "event" and None in texts):
            return None
        labels[field] = texts

    time = _times(columns.get(schema.time, ()), schema)
    order = _orders(columns, schema)
    if time is None or order is None:
        return None

    try:
        users = pa.array(columns[schema.user], pa.string())
        texts_by_field = {field: pa.array(texts, pa.string()) for field, texts in labels.items()}
    except UnicodeEncodeError:  # half a character
        return None

    coded = {"user": _codes(columns[schema.user])}
    coded |= {field: _codes(texts) for field, texts in labels.items()}
    keys = {"time": time} | order | {field: codes for field, (codes, _) in coded.items()}

    index = sort_events(keys, {field: hashes for field, (_, hashes) in coded.items()})

    weekday, slot = calendar(time[index] // MICROS, schema)

    table = {"user": users.take(pa.array(index))}
    table |= {"time": pa.array(time[index]), "weekday": pa.array(weekday), "slot": pa.array(slot)}
    table |= {field: texts.take(pa.array(index)) for field, texts in texts_by_field.items()}
    return pa.table(table)


def _texts(values: Sequence[Any], rule: str | None) -> list[str | None] | None:
    """Labels as text, None for null; None where the column's rule would write one of them in
    another way.

    Without a stored rule, a single text that is neither number, date nor truth value tells that the
    rule is `text`.
    """
    # bool is no int here: True would be the label 1
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int} and all(value is None or -LARGEST <= value < LARGEST for value in values):
        values = [None if value is None else str(value) for value in values]
    elif not kinds <= {str}:
        return None

    if rule is None:
        rule = "integer" if int in kinds else TEXT
        if str in kinds and not any(value and settled("", value) for value in values):
            return None

    if not all(value is None or settled(rule, value) for value in values):
        return None
    # an empty text is null, as in `create_values`
    return [value or None for value in values]


def _times(values: Sequence[Any], schema: EventSchema) -> np.ndarray | None:
    """Microseconds (N,) int64."""
    plain = all(isinstance(value, str) and PLAIN_TIME.fullmatch(value) for value in values)
    if not values or not plain or not reads_iso(schema.time_format):
        return None

    try:
        stamps = np.array(values, "datetime64[s]").astype(np.int64) * MICROS
    except ValueError:  # no day of the calendar
        return None

    if stamps.min() < EARLIEST or stamps.max() >= LATEST:
        return None
    return instants(stamps, schema.naive_time == "local", schema)


def _orders(
    columns: Mapping[str, Sequence[Any]], schema: EventSchema
) -> dict[str, np.ndarray] | None:
    """The order column as `sort_events` takes it; empty without one."""
    if schema.order is None:
        return {}
    values = columns.get(schema.order, ())
    if not values or not all(type(value) is int and -LARGEST < value < LARGEST for value in values):
        return None
    return {"order": np.array(values, np.int64)}


def _codes(texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N,) of labels, 0 for null, and the hash of each code as `Plan.hashes` makes it."""
    # in the order of their first occurrence: the codes differ from a plan's, the order of events
    # does not
    labels = dict.fromkeys(text for text in texts if text is not None)
    known = {text: code for code, text in enumerate(labels, 1)}
    codes = np.array([0 if text is None else known[text] for text in texts], np.int64)

    digests = (hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:] for text in known)
    hashes = [0, *(int.from_bytes(digest, "little") for digest in digests)]
    return codes, np.array(hashes, np.uint64)
