"""Users of the log that the service was started with: what the playground begins with, and the
users that it compares with the one typed in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import StatesOfHistories
from behavegpt.serving.answers import AnyPredictor

EVENTS = 30  # the last ones of each user


def example_users(predictor: AnyPredictor, most: int) -> list[dict[str, Any]]:
    """At most `most` users, evenly spaced in the log, as {"id", "events"}: their last events under
    the log's column names. Empty without a log in memory, and for models of baskets, which keep no
    states."""
    if predictor.tokenizer.event_schema.group is not None:
        return []

    known = predictor.users.known
    if not isinstance(known, StatesOfHistories):
        return []

    histories, found = known.histories, []
    users = len(histories.users)
    # evenly spaced, and not the first ones: users are in the order of their names
    for place in np.unique(np.linspace(0, users - 1, min(users, most)).astype(int)):
        events = _last_events(predictor.tokenizer, histories, int(place))
        if events:
            found.append({"id": histories.users[int(place)].as_py(), "events": events})
    return found


def _last_events(
    tokenizer: EventTokenizer, histories: EncodedHistories, place: int
) -> list[dict[str, Any]]:
    """A user's last events as requests write them; those with an unknown event are left out."""
    schema = tokenizer.event_schema
    begin, end = histories.offsets[place : place + 2]
    rows = slice(max(int(begin), int(end) - EVENTS), int(end))

    # a time without a zone is read back as it is written here
    zone = schema.tz if schema.naive_time == "local" else "UTC"
    seconds = pa.array(histories.columns["time"][rows].astype(np.int64), pa.int64())
    times = pc.local_timestamp(seconds.cast(pa.timestamp("s", zone)))
    table: dict[str, Any] = {schema.time: [time.isoformat() for time in times.to_pylist()]}
    for field, column in schema.label_columns.items():
        labels = tokenizer.vocabulary[field].decode_array(histories.columns[field][rows])
        table[column] = labels.cast(pa.float64()) if field in schema.numeric else labels
    if schema.order is not None:
        table[schema.order] = np.arange(len(seconds))

    events = pa.table(table).to_pylist()
    # a null event would be refused when the playground sends it back
    return [event for event in events if event[schema.event] is not None]
