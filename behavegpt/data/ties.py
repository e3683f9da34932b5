"""Simultaneous events: what is said of them, and prepared folders whose order of them gives labels
away.

Up to version 0.1 events of one moment were sorted by a hash of their labels, the same for every
user: after "bread" at one moment came "milk" and never the reverse. Models and count baselines
learn such an order, and nobody knows it in advance. `prepare` now shuffles them (`sort_events`);
`reorder` does it to a folder that was prepared before.
"""

from __future__ import annotations

import shutil
import warnings

import duckdb
import numpy as np

from behavegpt.checksums import MANIFEST, seal
from behavegpt.data.database import hash_labels
from behavegpt.data.digest import hash_folder
from behavegpt.data.events import count_ties, sort_events
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore, Manifest
from behavegpt.data.times import MICROS
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import DataError
from behavegpt.io import scratch, write_json
from behavegpt.user_embeddings import write_array

MANY = 0.01  # share of simultaneous events from which on `prepare` warns


def describe_ties(manifest: Manifest, least: float = 0) -> str | None:
    """One sentence on the simultaneous events of a folder.

    None where an order column settles how they stand, or where at most a share `least` of the
    events are such.
    """
    return tell_ties(manifest.ties or 0, manifest.events, manifest.event_schema, least)


def tell_ties(ties: int, events: int, schema: EventSchema, least: float = 0) -> str | None:
    """The same of `ties` simultaneous events among `events`."""
    if schema.order is not None or ties <= least * events:
        return None
    return (
        f"{ties:,} events ({ties / events:.1%}) share user and time with another; their "
        "order is random. If a column tells it (a line or sequence number), name it with --order."
    )


def warn_of_ties(store: EventStore) -> None:
    """Warn where the order of simultaneous events of a folder of version 0.1 gives labels away."""
    if store.manifest.ties is not None or store.schema.order is not None:
        return
    ties = count_ties(_owners(store))
    if ties:
        warnings.warn(
            f"{store.path}: {ties / store.manifest.events:.1%} of the events share user and time "
            "with another and stand in an order by label, from which models learn what nobody can "
            f"know; prepare the data again, or run: behavegpt doctor --reorder {store.path}",
            stacklevel=3,
        )


def reorder(store: EventStore) -> int:
    """Shuffle the simultaneous events of a prepared folder in place, as `prepare` would; returns
    how many there are.

    Times are kept to the second, so events of one second are shuffled. Raises DataError when an
    order column says how simultaneous events stand.
    """
    if store.schema.order is not None:
        raise DataError(
            f"{store.path}: column {store.schema.order!r} orders simultaneous events; nothing to "
            "shuffle."
        )
    columns = _owners(store)
    with duckdb.connect() as con:
        hashes = {"user": hash_labels(con, store.users())}
        for field, vocabulary in store.vocabulary.items():
            columns[field] = np.asarray(store.columns[field])
            unlabelled = np.zeros(FIRST, np.uint64)
            hashes[field] = np.concatenate([unlabelled, hash_labels(con, vocabulary.values)])
    index = sort_events(columns, hashes)
    ties = count_ties(columns)
    _rewrite(store, index, store.manifest.model_copy(update={"ties": ties}))
    return ties


def _owners(store: EventStore) -> dict[str, np.ndarray]:
    """`user` (events,) uint32 and `time` (events,) int64 microseconds."""
    users = np.repeat(np.arange(store.manifest.users, dtype=np.uint32), np.diff(store.offsets))
    seconds = np.asarray(store.columns["time"]).astype(np.int64) + store.manifest.time_origin
    return {"user": users, "time": seconds * MICROS}


def _rewrite(store: EventStore, index: np.ndarray, manifest: Manifest) -> None:
    """Replace the folder, in one step, by a sealed one whose events stand in the order `index`
    (events,)."""
    with scratch(store.path) as folder:
        shutil.copytree(
            store.path, folder, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True
        )
        for name, column in store.columns.items():
            write_array(folder / "columns" / f"{name}.npy", np.asarray(column)[index])
        digest = hash_folder(
            folder, manifest.event_schema, manifest.vocabulary, [*manifest.columns]
        )
        manifest = manifest.model_copy(update={"content_hash": digest})
        write_json(folder / "dataset.json", manifest.model_dump(mode="json"))
        seal(folder)
