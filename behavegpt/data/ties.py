"""Simultaneous events: the order that every reader gives them, what is said of them, and prepared
folders whose order gives labels away.

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

from behavegpt.arrays import write_array
from behavegpt.checksums import MANIFEST, seal
from behavegpt.data.database import hash_labels
from behavegpt.data.digest import hash_folder
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore, Manifest
from behavegpt.data.times import MICROS
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import DataError
from behavegpt.io import scratch, write_json

MANY = 0.01  # share of simultaneous events from which on `prepare` warns


def sort_events(
    columns: dict[str, np.ndarray], hashes: dict[str, np.ndarray], seed: int
) -> np.ndarray:
    """Index (N,) int64 that sorts events by user code, time and order; what is still tied is
    shuffled.

    `hashes` holds, for the user and every label field, a stable hash (codes,) uint64 by code. The
    shuffle depends on the user, the time, the labels and `seed` (the schema's `tie_seed`), never on
    the order of the input. A key of
    the labels alone would put a before b in every tie of every user, which a model learns and
    nobody can know in advance.
    """
    user, seconds = columns["user"].astype(np.uint64), columns["time"] // MICROS
    if not len(user):
        return np.zeros(0, np.int64)
    user -= user.min()
    seconds = (seconds - seconds.min()).astype(np.uint64)

    # one key of 64 bits: the user above, the seconds since the first event below
    time_bits = int(seconds.max()).bit_length()
    key = (user << np.uint64(time_bits)) | seconds  # (N,) uint64

    # Radix sort, 16 bits at a time: numpy's stable argsort of 16 bits takes linear time, its other
    # sorts do not.
    index = np.argsort(key.astype(np.uint16), kind="stable")  # (N,)
    for shift in range(16, int(key.max()).bit_length(), 16):
        digit = (key >> np.uint64(shift)).astype(np.uint16)
        index = index[np.argsort(digit[index], kind="stable")]

    key = key[index]
    equal = key[1:] == key[:-1]  # (N - 1,) neighbors of one user and second
    # (n,)
    tied = np.flatnonzero(np.concatenate([equal, [False]]) | np.concatenate([[False], equal]))

    # what shares user and second is sorted by order and microsecond, then at random
    if len(tied):
        rows = index[tied]
        # the seed 0 leaves the time as it is: the order of folders made before there was a seed
        # (n,) uint64
        draw = hash_mix(
            columns["time"][rows].astype(np.uint64) ^ hash_mix(np.array([seed], np.uint64))
        )
        for field, values in hashes.items():
            draw = hash_mix(draw ^ values[columns[field][rows]])
        order = [columns["order"][rows]] if "order" in columns else []
        keys = [*order, columns["time"][rows], key[tied]]
        draw = _apart(draw, keys)
        index[tied] = rows[np.lexsort([draw, *keys])]

    return index


def _apart(draw: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    """Draws (N,) in which equal ones of equal keys, the same event twice, differ: side by side they
    would be a hint."""
    index = np.lexsort([draw, *keys])  # (N,)
    same = np.insert(
        np.logical_and.reduce([v[index][1:] == v[index][:-1] for v in (draw, *keys)]), 0, False
    )

    place = np.arange(len(draw))  # (N,)
    copy = np.empty_like(draw)  # (N,) 0 for the first of equal ones
    copy[index] = (place - np.maximum.accumulate(np.where(same, 0, place))).astype(np.uint64)

    return np.where(copy > 0, hash_mix(draw + copy), draw)


def hash_mix(values: np.ndarray) -> np.ndarray:
    """Every bit of values (N,) uint64 spread over all of them (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def count_ties(columns: dict[str, np.ndarray]) -> int:
    """Number of events that share user and time with another; columns sorted by both."""
    same = (np.diff(columns["user"]) == 0) & (np.diff(columns["time"]) == 0)  # (N - 1,)
    return int((np.append(same, False) | np.insert(same, 0, False)).sum())


def describe_ties(manifest: Manifest, least: float = 0) -> str | None:
    """One sentence on the simultaneous events of a folder.

    None where an order column settles how they stand, where baskets have no order, or where at
    most a share `least` of the events are such.
    """
    return tell_ties(manifest.ties or 0, manifest.events, manifest.event_schema, least)


def tell_ties(ties: int, events: int, schema: EventSchema, least: float = 0) -> str | None:
    """The same of `ties` simultaneous events among `events`."""
    if schema.order is not None or schema.has_baskets or ties <= least * events:
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
    if store.schema.has_baskets:
        raise DataError(f"{store.path}: events of a basket have no order; nothing to shuffle.")
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
            # padding and unknown have no label to hash
            unlabelled = np.zeros(FIRST, np.uint64)
            hashes[field] = np.concatenate([unlabelled, hash_labels(con, vocabulary.values)])

    index = sort_events(columns, hashes, store.schema.tie_seed)
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
    # a killed run leaves the old folder, or the new one
    with scratch(store.path) as folder:
        shutil.copytree(
            store.path, folder, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True
        )
        for name, column in store.columns.items():
            write_array(folder / "columns" / f"{name}.npy", np.asarray(column)[index])

        # the columns stand in another order, so the data are other data
        digest = hash_folder(
            folder, manifest.event_schema, manifest.vocabulary, [*manifest.columns]
        )
        manifest = manifest.model_copy(update={"content_hash": digest})

        write_json(folder / "dataset.json", manifest.model_dump(mode="json"))
        seal(folder)
