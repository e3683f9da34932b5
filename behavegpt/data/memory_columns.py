"""The columns of histories that are counted, and how those of a log become them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import FIRST

SLOTS = 48  # of a day, whatever the schema's
DAY = 1440  # minutes


class Columns(NamedTuple):
    """Flat columns (events,) of histories, each sorted by time."""

    behavior: np.ndarray  # int32 class, -1 unknown
    event: np.ndarray  # int32 id, 0 and 1 unknown
    location: np.ndarray  # int32 id, 0 and 1 unknown
    slot: np.ndarray  # int16 half hour of the day, 0 .. 47
    weekday: np.ndarray  # int16, 0 is Monday
    time: np.ndarray  # int64 seconds


def memory_columns(columns: Mapping[str, np.ndarray], slot_minutes: int) -> Columns:
    """The columns that are counted, from `behavior`, `event`, maybe `location` (vocabulary ids),
    `slot`, `weekday` and `time`.

    A log without places has place 0 everywhere.
    """
    location = columns.get("location", np.zeros(len(columns["event"]), np.int32))

    return Columns(
        # vocabulary id -> class: padding and unknown become -1
        behavior=np.maximum(np.asarray(columns["behavior"]).astype(np.int32) - FIRST, -1),
        event=np.asarray(columns["event"]).astype(np.int32),
        location=np.asarray(location).astype(np.int32),
        # half hours, whatever the length of the schema's slots
        slot=(np.asarray(columns["slot"]).astype(np.int32) * slot_minutes * SLOTS // DAY).astype(
            np.int16
        ),
        weekday=np.asarray(columns["weekday"]).astype(np.int16),
        time=np.asarray(columns["time"]).astype(np.int64),
    )


def store_columns(store: EventStore) -> Columns:
    """The columns of a prepared folder, in memory."""
    return memory_columns(
        {**store.columns, "behavior": store.column("behavior")}, store.schema.slot_minutes
    )
