"""Histories in requests -> ids, many users at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.config import closest
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import DataError
from behavegpt.ingest.histories import encode_histories
from behavegpt.ingest.rows import as_label_text
from behavegpt.ingest.time_join import time_parts
from behavegpt.ingest.together import columns_of
from behavegpt.ragged import ranges
from behavegpt.serving.requests import History


def encode_users(
    tokenizer: EventTokenizer, users: Sequence[History], names: set[str]
) -> EncodedHistories:
    """The histories of users in their order, under their own names, of events that have columns of
    these names. Raises DataError.

    A name decides how simultaneous events of its user are shuffled, so users of one name are read
    apart.
    """
    # round i holds the i-th user of each name, so no two of a round share one
    rounds: dict[int, list[int]] = {}
    seen: Counter[str] = Counter()
    for number, user in enumerate(users):
        rounds.setdefault(seen[name_of(user)], []).append(number)
        seen[name_of(user)] += 1
    # readers give histories in the order of the names
    members = [sorted(part, key=lambda number: name_of(users[number])) for part in rounds.values()]
    parts = [
        _encode_distinct(tokenizer, [users[number] for number in part], names) for part in members
    ]
    return _in_order(parts, np.argsort(np.concatenate(members)), [str(user.id) for user in users])


def _encode_distinct(
    tokenizer: EventTokenizer, users: Sequence[History], names: set[str]
) -> EncodedHistories:
    """The histories of users whose names differ and ascend."""
    schema = tokenizer.event_schema
    # a time may be told whole or in parts, as the log's columns are
    columns = [column for role, column in columns_of(schema).items() if role != "time"]
    columns += time_parts(schema.time, names)
    # what no event names is left out: a behavior need not be told
    wanted = [column for column in dict.fromkeys(columns) if column in names]
    table = events_table(users, wanted, schema.user)
    encoded = encode_histories(knowing(tokenizer, users), table, warn=False)
    if len(encoded.users) < len(users):
        # a user whose events were all rejected would shift the answers of those behind
        there = set(encoded.users.to_pylist())
        missing = next(user.id for user in users if name_of(user) not in there)
        reasons = ", ".join(f"{rows} rows: {reason}" for reason, rows in encoded.rejected.items())
        raise DataError(f"user {missing!r} has no usable event ({reasons}).")
    return encoded


def events_table(
    users: Sequence[History], columns: Iterable[str], user_column: str
) -> dict[str, list[Any]]:
    """Columns of all users' events, theirs under their own names."""
    rows = [row for user in users for row in user.events]
    table: dict[str, list[Any]] = {column: [row.get(column) for row in rows] for column in columns}
    # also where an event names its user itself: it may name nobody else
    table[user_column] = [
        name for user in users for name in itertools.repeat(name_of(user), len(user.events))
    ]
    return table


def knowing(tokenizer: EventTokenizer, users: Sequence[History]) -> EventTokenizer:
    """The tokenizer that knows what the users' requests say of them. Raises DataError for a feature
    that the model does not read."""
    tokenizer = tokenizer.by_name
    told = {name_of(user): user.features for user in users if user.features is not None}
    # the common case costs no new tokenizer
    if not told:
        return tokenizer

    known = tokenizer.event_schema.features
    strange = [name for features in told.values() for name in features if name not in known]
    if strange:
        raise DataError(
            f"features: the model reads no {strange[0]!r} of the users. "
            f"{closest(strange[0], known) if known else 'It reads no features at all.'}"
        )

    table: dict[str, list[str | None]] = {tokenizer.event_schema.user: list(told)}
    for name in known:
        # as the labels of events are written: 3.0 and 3 are one feature
        table[name] = [as_label_text(features.get(name)) for features in told.values()]
    named = tokenizer.with_features(table)
    if tokenizer.users is None or named.users is None:
        return named
    # what a request says of a user comes before what the model was told
    return tokenizer.with_features(tokenizer.users.updated(named.users))


def name_of(user: History) -> str:
    """What stands in the user's column for a user of a request."""
    return str(user.id) or "0"  # an empty name would be a null


def _in_order(
    parts: Sequence[EncodedHistories], order: np.ndarray, ids: list[str]
) -> EncodedHistories:
    """Users of all parts, one after the other, taken in `order` (U,)."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    # where each user's events begin in the joined columns
    begin = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    event = ranges(begin, lengths)
    columns = {
        name: np.concatenate([part.columns[name] for part in parts])[event]
        for name in parts[0].columns
    }

    unknown: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for part in parts:
        unknown.update(part.unknown)
        rejected.update(part.rejected)
    return EncodedHistories(
        pa.array(ids, pa.string()), offsets, columns, dict(unknown), dict(rejected)
    )
