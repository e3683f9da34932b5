"""A log up to a moment, and what a model makes of it: nothing later is looked at.

Shapes: E events and U users before the moment, D vector width.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.histories import as_logs, rows_as_columns
from behavegpt.predictor import Predictor
from behavegpt.universal.counted import count_table
from behavegpt.zero_shot import UniversalPredictor

DAY, WEEK = 86_400, 7 * 86_400
MICROS = 1_000_000


@dataclass(frozen=True)
class Log:
    """All events of a log that were read, as `read_events` gives them."""

    table: pa.Table
    schema: EventSchema
    name: str


@dataclass(frozen=True)
class Past:
    """The events of some users before a moment, in labels and in the model's ids."""

    table: pa.Table  # (E,) rows of `read_events`
    encoded: EncodedHistories  # the same rows
    predictor: Predictor | UniversalPredictor | None  # None where no vectors are asked for
    at: int  # epoch seconds; all events are earlier

    def vectors(self, pool: tuple[str, ...]) -> np.ndarray:
        """Vectors (U, D) float32, in the order of `encoded.users`."""
        assert self.predictor is not None
        return self.predictor.embed(self.encoded, pool).vectors


def read_log(
    predictor: Predictor | UniversalPredictor, logs: Any, columns: Mapping[str, Any]
) -> Log:
    """The events of a log as the model reads them; `columns` are settings of EventSchema that
    differ, of the universal model those that are not to be guessed.

    Raises DataError and ConfigError.
    """
    if isinstance(logs, (list, tuple)) and logs and isinstance(logs[0], Mapping):
        logs = rows_as_columns(logs)
    # for messages: a table has none
    name = getattr(logs, "name", None) or (str(logs) if isinstance(logs, str) else "the log")

    if isinstance(predictor, Predictor) or predictor.counted:
        tokenizer = predictor.tokenizer.reading(columns) if columns else predictor.tokenizer
        schema = tokenizer.event_schema
        read = tokenizer.read(as_logs(logs, schema))
    else:
        schema = guess_schema(logs, columns)[0]
        read = read_events(logs, schema)

    if not len(read.table):
        raise DataError(f"{name}: no usable event to read.")
    for reason, rows in Counter(read.rejects["reason"].to_pylist()).items():
        warnings.warn(f"{name}: {rows:,} rows left out: {reason}", stacklevel=3)
    return Log(read.table, schema, str(name))


def past_of(
    predictor: Predictor | UniversalPredictor, log: Log, at: int, users: pa.Array | None = None
) -> Past:
    """The events before `at` (epoch seconds), of `users` or all. The universal model counts its
    tables from the events before `at` alone, those of all users. Raises DataError without any."""
    # strictly: an event of the moment itself is what may be predicted
    before = log.table.filter(pc.less(log.table["time"], at * MICROS))
    if not len(before):
        raise DataError(f"{log.name}: no event before {shown(at)}; name a later date.")

    if isinstance(predictor, UniversalPredictor):
        # tables of a saved folder may know what came later, so they are never used
        counted = count_table(before, log.schema)
        predictor = UniversalPredictor(predictor.model, counted)

    own = before if users is None else before.filter(pc.is_in(before["user"], users))
    # with no row there is nothing to encode; callers have asked who is there
    return Past(own, predictor.tokenizer.encode_table(own), predictor, at)


def users_before(log: Log, at: int) -> pa.StringArray:
    """Users with an event before `at`, sorted."""
    before = log.table.filter(pc.less(log.table["time"], at * MICROS))
    users = before["user"].combine_chunks().unique().cast(pa.string())
    return users.take(pc.sort_indices(users))


def check_date(log: Log, at: int, weeks: int) -> None:
    """Raise DataError unless `at` and the moment `weeks` before it lie within the log, which may
    end the day before."""
    span = pc.min_max(log.table["time"]).as_py()
    first, last = span["min"] // MICROS, span["max"] // MICROS
    held = f"{log.name} holds events from {shown(first)} to {shown(last)}"
    # the day after is the usual question: the log ends, what comes next?
    if at <= first or at > last + DAY:
        raise DataError(
            f"--at {shown(at)} is outside the log: {held}; name a date within, or at most a day "
            "after."
        )
    if at - weeks * WEEK <= first:
        raise DataError(
            f"--stale-weeks {weeks}: {weeks} weeks before {shown(at)} there is no event yet: "
            f"{held}; remove it."
        )


def trained_until(predictor: Predictor | UniversalPredictor) -> int | None:
    """Epoch seconds of the end of the events that a model with memory was trained on; None where
    the model does not tell."""
    # the counts keep the edges of their eras, of which the last is the end of training
    counts = predictor.model.counts if isinstance(predictor, Predictor) else None
    return None if counts is None else int(counts.edges[-1])


def shown(seconds: int) -> str:
    """A moment for people, in UTC."""
    return str(np.datetime64(seconds, "s")).replace("T", " ") + " UTC"
