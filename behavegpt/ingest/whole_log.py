"""A whole log in ids, all of it past: what is counted or learned from without a training split."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.histories import rows_as_columns


def read_whole_log(
    logs: Any, settings: Mapping[str, Any], what: str
) -> tuple[EventTokenizer, EncodedHistories]:
    """A log of files, a table, a mapping of columns or a list of event dicts, whose columns are
    guessed where `settings` of EventSchema do not name them.

    Raises DataError when no event is usable, ConfigError for baskets, which `what` cannot read.
    """
    if isinstance(logs, (list, tuple)) and logs and isinstance(logs[0], Mapping):
        logs = rows_as_columns(logs)
    schema = guess_schema(logs, settings)[0]
    refuse_baskets(schema, what)
    return encode_whole(*usable_events(logs, schema), schema)


def usable_events(logs: Any, schema: EventSchema) -> tuple[pa.Table, dict[str, int]]:
    """The events of a log as `read_events` gives them, and how many rows are left out by reason.
    Raises DataError when no event is usable."""
    read = read_events(logs, schema)
    rejected = collections.Counter(read.rejects["reason"].to_pylist())
    if not len(read.table):
        reasons = ", ".join(f"{n} rows: {reason}" for reason, n in rejected.items()) or "no rows"
        raise DataError(f"no usable event to count ({reasons}).")
    return read.table, dict(rejected)


def encode_whole(
    table: pa.Table, rejected: Mapping[str, int], schema: EventSchema
) -> tuple[EventTokenizer, EncodedHistories]:
    """Events in ids; the labels of the log are all the labels there are."""
    vocabulary = {}
    for name in schema.label_columns:
        counts = pc.value_counts(table[name].drop_null().combine_chunks())
        vocabulary[name] = Vocabulary.from_counts(counts.field("values"), counts.field("counts"))

    tokenizer = EventTokenizer(schema, vocabulary)
    return tokenizer, tokenizer.encode_table(table, rejected)
