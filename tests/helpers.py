"""Small stores and models made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore, Manifest
from behavegpt.data.vocabulary import FIRST, Vocabulary


def random_store(
    seed: int = 0,
    users: int = 20,
    longest: int = 60,
    events: int = 12,
    behaviors: int | None = 5,
    locations: int = 4,
    split: tuple[float, float] = (0.7, 0.85),
) -> EventStore:
    """A store in memory with random histories; `behaviors=None` makes the events the classes."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, users)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    total = int(offsets[-1])
    time = np.concatenate([np.sort(rng.integers(0, 60 * 86400, n)) for n in lengths]).astype(
        np.uint32
    )
    low, high = np.quantile(time, split)
    columns = {
        "event": rng.integers(1, events + FIRST, total).astype(np.uint8),
        "location": rng.integers(1, locations + FIRST, total).astype(np.uint8),
        "weekday": (time // 86400 % 7).astype(np.uint8),
        "slot": (time % 86400 // 1800).astype(np.uint8),
        "time": time,
        "split": ((time >= low).astype(np.uint8) + (time >= high)).astype(np.uint8),
    }
    sizes = {"event": events, "location": locations}
    schema = EventSchema(
        user="u", time="t", event="e", location="l", behavior="b" if behaviors else None
    )
    if behaviors:
        columns["behavior"] = np.where(
            columns["event"] < FIRST, 1, (columns["event"].astype(int) - FIRST) % behaviors + FIRST
        ).astype(np.uint8)
        sizes["behavior"] = behaviors
    train = columns["split"] == 0
    vocabulary = {
        name: Vocabulary(
            pa.array([f"{name}{i}" for i in range(size)]),
            np.bincount(columns[name][train], minlength=size + FIRST)[FIRST:].astype(np.int64),
        )
        for name, size in sizes.items()
    }
    manifest = Manifest(
        format=1,
        event_schema=schema,
        events=total,
        users=users,
        time_origin=0,
        split={
            "rule": "time",
            "boundaries": [],
            "events": np.bincount(columns["split"], minlength=3).tolist(),
        },
        columns={name: str(column.dtype) for name, column in columns.items()},
        vocabulary={name: v.hash for name, v in vocabulary.items()},
        rejected={},
        content_hash=f"random-{seed}",
    )
    return EventStore(Path("memory"), manifest, vocabulary, columns, offsets)
