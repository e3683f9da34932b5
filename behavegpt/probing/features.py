"""What anybody would try first: how often each label, how much, how recently.

Shapes: U users, E events, sorted by user and time as in `EncodedHistories`, F features.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from behavegpt.data.schema import EventSchema
from behavegpt.data.times import zone
from behavegpt.probing.past import DAY, Past
from behavegpt.ragged import owners


def label_counts(past: Past, schema: EventSchema, top: int) -> tuple[np.ndarray, list[str]]:
    """log(1 + count) (U, F) float32 of the `top` most frequent labels of each column, and the
    features' names."""
    parts, names = [], []
    for field in schema.label_columns:
        if field not in past.table.column_names:
            continue
        labels, codes = _codes(past.table[field])
        # ties in the order of the labels, whatever the order of the events
        frequency = np.bincount(codes[codes >= 0], minlength=len(labels))
        chosen = np.lexsort((np.array(labels, object).astype(str), -frequency))[:top]

        place = np.full(len(labels) + 1, -1)  # the last one: of events without a label
        place[chosen] = np.arange(len(chosen))
        parts.append(_counted(past, place[codes], len(chosen)))
        names += [f"{field}: {labels[i]}" for i in chosen]
    # logarithms: a linear probe would see little beside the users with thousands of events
    return np.log1p(np.concatenate(parts, axis=1)).astype(np.float32), names


def aggregates(past: Past, schema: EventSchema) -> np.ndarray:
    """log(1 + x) (U, 7) float32: events, days since the last, days since the first, active days,
    distinct behaviors, events of 7 days and of 30 days; days are those before the moment, active
    ones those of the log's zone."""
    encoded = past.encoded
    time = encoded.columns["time"]
    begin, end = encoded.offsets[:-1], encoded.offsets[1:]
    user = _user_of_event(past)
    age = past.at - time  # (E,) seconds, none below 1

    behavior = "behavior" if "behavior" in past.table.column_names else "event"
    _, codes = _codes(past.table[behavior])
    days = zone(schema.tz).wall(time) // DAY

    columns = [
        end - begin,
        age[end - 1] / DAY,
        age[begin] / DAY,
        # from 0: the number of a day since 1970 would only make the product below larger
        _distinct(user, days - days.min(), len(begin)),
        _distinct(user[codes >= 0], codes[codes >= 0], len(begin)),
        np.bincount(user[age <= 7 * DAY], minlength=len(begin)),
        np.bincount(user[age <= 30 * DAY], minlength=len(begin)),
    ]
    return np.log1p(np.stack(columns, axis=1)).astype(np.float32)


def _counted(past: Past, place: np.ndarray, width: int) -> np.ndarray:
    """How often each user has each of `width` features; `place` (E,) is the event's, -1 none."""
    user, kept = _user_of_event(past), place >= 0
    users = len(past.encoded.users)
    flat = user[kept] * width + place[kept]
    return np.bincount(flat, minlength=users * width).reshape(users, width)


def _distinct(user: np.ndarray, value: np.ndarray, users: int) -> np.ndarray:
    """Distinct values (users,) of each user's events; value (E,) from 0."""
    most = int(value.max()) + 1 if len(value) else 1
    # a user and a value, as one number
    return np.bincount(np.unique(user * most + value) // most, minlength=users)


def _user_of_event(past: Past) -> np.ndarray:
    """The place (E,) of each event's user."""
    return owners(np.diff(past.encoded.offsets))


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Distinct labels, and the index of each event's (E,), -1 for none."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy(False)
