"""A log of new events for a model that is updated: read as the events before it were, and later
than they."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.store import EventStore
from behavegpt.data.times import MICROS
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import DataError
from behavegpt.ingest.histories import as_logs
from behavegpt.ingest.sources import check_columns, find_logs
from behavegpt.ingest.user_table import UserTable


class NewEvents(NamedTuple):
    """What a log holds."""

    name: str  # of the log
    table: pa.Table  # as `read_events` gives it
    rejected: dict[str, int]  # reason -> rows
    digest: str  # SHA-256 of the table: the same log again is known by it
    late: int = 0  # events that were left out
    users: UserTable | None = None  # what is known of the users


def last_time(store: EventStore) -> int:
    """Epoch seconds of the last event of a prepared folder."""
    return int(np.asarray(store.columns["time"]).max()) + store.manifest.time_origin


def read_new(
    logs: Any, store: EventStore, columns: dict[str, Any], users: Any, allowed: float
) -> NewEvents:
    """Read a log with the store's columns, or with those that `columns` names, and a table of the
    users' features, if there is one.

    Raises DataError for a column that is missing, and where more than the share `allowed` of the
    rows cannot be used.
    """
    tokenizer = EventTokenizer.from_store(store, 1).reading(columns)
    schema = tokenizer.event_schema
    found = find_logs(as_logs(logs, schema))
    check_columns(found, schema.roles)

    if users is not None:
        tokenizer = tokenizer.with_features(users)
    read = tokenizer.read(found, warn=False)
    _check_rejects(found.name, read.rejects, len(read.table), allowed)
    rejected = dict(Counter(read.rejects["reason"].to_pylist()))

    table = read.table.combine_chunks()
    digest = hashlib.sha256()
    for batch in table.to_batches():
        digest.update(batch.serialize())
    return NewEvents(found.name, table, rejected, digest.hexdigest(), users=tokenizer.users)


def only_later(new: NewEvents, store: EventStore, late: str) -> NewEvents:
    """The events that are later than the store's last one. Raises DataError for others, unless
    they are to be dropped, and where nothing is left."""
    last = last_time(store)
    seconds = new.table["time"].to_numpy() // MICROS  # (n,)
    is_late = seconds <= last
    if is_late.any() and late == "refuse":
        raise DataError(_late_events(new, is_late, last))
    if is_late.all():
        raise DataError(
            f"{new.name}: no event is later than {moment(last)}, the last one seen; name "
            "a log of later events."
        )
    return new._replace(table=new.table.filter(pa.array(~is_late)), late=int(is_late.sum()))


def moment(seconds: int) -> str:
    """Epoch seconds as text, UTC."""
    return f"{np.datetime64(seconds, 's')!s}".replace("T", " ") + " UTC"


def _check_rejects(name: str, rejects: pa.Table, accepted: int, allowed: float) -> None:
    """Raise DataError where more than the share `allowed` of a log cannot be used."""
    bad = len(rejects)
    if bad <= allowed * (accepted + bad) and accepted:
        return
    if not bad:
        raise DataError(f"{name}: no rows; name logs that contain events.")
    first = rejects.slice(0, 1).to_pylist()[0]
    reason = first.pop("reason")
    first.pop("file", None)
    shown = ", ".join(f"{column} = {str(value)[:60]!r}" for column, value in first.items())
    raise DataError(
        f"{name}: {bad:,} of {accepted + bad:,} rows cannot be used ({bad / (accepted + bad):.1%}, "
        f"allowed {allowed:.1%}), the first one since {reason}: {shown}. Mend the rows, name the "
        "right columns, or allow more with --max-reject-share."
    )


def _late_events(new: NewEvents, is_late: np.ndarray, last: int) -> str:
    """The error for events that are not later than the last one seen."""
    first = int(np.flatnonzero(is_late)[0])
    user, when = new.table["user"][first].as_py(), new.table["time"][first].as_py() // MICROS
    return (
        f"{new.name}: {int(is_late.sum()):,} of {len(is_late):,} events are not later than "
        f"{moment(last)}, the last one seen (user {user!r} at {moment(when)}, for example): they "
        "are known already, or come too late to be predicted. Cut the log there, or leave such "
        "events out with --late drop."
    )
