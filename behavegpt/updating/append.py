"""New events behind those of a prepared folder: a prepared folder of all of them.

Shapes: E old and N new events, U users of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from behavegpt.arrays import write_array
from behavegpt.checksums import seal
from behavegpt.data.digest import hash_folder
from behavegpt.data.reencode import replace_counts, training_counts
from behavegpt.data.store import SPLITS, TRAIN, VALID, EventStore, Manifest, open_store
from behavegpt.data.ties import count_ties
from behavegpt.data.times import MICROS
from behavegpt.data.vocabulary import UNKNOWN, Vocabulary
from behavegpt.ingest.buckets import smallest_dtype
from behavegpt.io import write_json
from behavegpt.ragged import ranges
from behavegpt.updating.new_events import NewEvents
from behavegpt.updating.settings import UpdateSettings


class Appended(NamedTuple):
    """All events, and which are new."""

    store: EventStore
    is_new: np.ndarray  # (E + N,) bool
    new_users: int


def append(
    store: EventStore,
    events: NewEvents,
    folder: Path,
    settings: UpdateSettings,
    seed: tuple[int, ...],
) -> Appended:
    """Write all events as a prepared folder, and open it.

    Earlier events are training, and so are the new ones, but for those of the users held out,
    drawn by `seed`: they are validation. New labels are appended to the vocabularies. A feature of
    a user that no table tells stays what it was.
    """
    table = events.table
    old_users = store.users()
    label = table["user"].combine_chunks().cast(pa.string())
    users = _together(old_users, pc.unique(label))  # (U,)
    place = _index(old_users, users)  # (old users,)
    user = _index(label, users)  # (N,)

    order = np.argsort(user, kind="stable")  # by user as they are, so each history stays in order
    table, user = table.take(pa.array(order)), user[order]
    # features stand at each event of their users
    for name, labels in _features(store, events, users, place).items():
        table = table.append_column(name, labels.take(pa.array(user)))

    offsets, to_old, to_new = _places(store.offsets, place, np.bincount(user, minlength=len(users)))

    draw = np.random.default_rng(seed).random(len(users))
    split = np.where(draw[user] < settings.held_out, VALID, TRAIN)  # (N,)
    vocabulary = {
        field: _grown(known, table[field], settings.min_count)
        for field, known in store.vocabulary.items()
    }
    added = {"split": split, **_encoded(table, store.manifest.time_origin, vocabulary)}

    (folder / "columns").mkdir(parents=True)
    write_array(folder / "columns" / "offsets.npy", offsets)
    sizes = {field: len(known) for field, known in vocabulary.items()}
    columns = _write_columns(store, added, sizes, (to_old, to_new), folder / "columns")

    ties = store.manifest.ties
    if ties is not None:
        ties += count_ties({"user": user, "time": added["time"]})
    manifest = _write_manifest(store, folder, users, vocabulary, columns, ties)
    assert manifest.events == len(to_old) + len(to_new)

    is_new = np.zeros(manifest.events, bool)
    is_new[to_new] = True
    return Appended(open_store(folder), is_new, len(users) - len(old_users))


def _places(
    before: np.ndarray, place: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets (U + 1,) of the users together, and where the old events (E,) and the new ones (N,)
    go: `before` (old users + 1,) offsets, `place` (old users,) of them among all, `new` (U,) events
    of each."""
    length = np.diff(before)
    old = np.zeros(len(new), np.int64)
    old[place] = length

    # each user's new events come behind the old ones: only_later has seen to it that they are
    offsets = np.concatenate([[0], np.cumsum(old + new)])
    return offsets, ranges(offsets[place], length), ranges(offsets[:-1] + old, new)


def _encoded(
    table: pa.Table, origin: int, vocabulary: dict[str, Vocabulary]
) -> dict[str, np.ndarray]:
    """The columns (N,) of new events as a prepared folder holds them, but for their split; times in
    seconds from its `origin`."""
    columns = {"time": table["time"].to_numpy() // MICROS - origin}
    columns |= {name: table[name].to_numpy() for name in ("weekday", "slot")}
    return columns | {field: known.encode(table[field]) for field, known in vocabulary.items()}


def _write_columns(
    store: EventStore,
    added: dict[str, np.ndarray],
    sizes: dict[str, int],
    places: tuple[np.ndarray, np.ndarray],
    folder: Path,
) -> dict[str, np.ndarray]:
    """The columns (E + N,) of the old events (E,) and those that are `added` (N,), each at its
    places; `sizes` of the vocabularies."""
    to_old, to_new = places
    columns: dict[str, np.ndarray] = {}
    for name, values in added.items():  # one at a time: a column may be large
        dtype = store.columns[name].dtype
        if name in sizes:
            dtype = smallest_dtype(sizes[name])
        columns[name] = np.empty(len(to_old) + len(to_new), dtype)
        # what was held out before is training by now
        columns[name][to_old] = store.columns[name] if name != "split" else TRAIN
        columns[name][to_new] = values
        write_array(folder / f"{name}.npy", columns[name])
    return columns


def _features(
    store: EventStore, events: NewEvents, users: pa.StringArray, place: np.ndarray
) -> dict[str, pa.StringArray]:
    """Features (U,) of the users as labels; of known users, at `place`, those of their last event
    where the table does not tell them."""
    told = {} if events.users is None else events.users.of(users)
    known = np.flatnonzero(np.diff(store.offsets))
    features = {}
    for name in store.schema.features:
        ids = np.full(len(users), UNKNOWN)
        ids[place[known]] = store.columns[name][store.offsets[1:][known] - 1]
        before = store.vocabulary[name].decode_array(ids)
        features[name] = pc.coalesce(told[name], before) if told else before
    return features


def _together(old: pa.StringArray, new: pa.Array) -> pa.StringArray:
    """The users of both, sorted."""
    strangers = new.filter(pc.invert(pc.is_in(new, value_set=old)))
    both = pa.concat_arrays([old, strangers])
    return both.take(pc.sort_indices(both))


def _index(labels: pa.Array, users: pa.StringArray) -> np.ndarray:
    """Place (n,) int64 of each label among the users, who are all there."""
    return pc.index_in(labels, value_set=users).to_numpy(zero_copy_only=False).astype(np.int64)


def _grown(known: Vocabulary, labels: pa.ChunkedArray, least: int) -> Vocabulary:
    """A vocabulary with the new ones among labels (N,) appended, by falling count, ties by
    label."""
    counted = pc.value_counts(labels.cast(pa.string()).combine_chunks())
    kept = pc.and_(
        pc.greater_equal(counted.field("counts"), least), pc.is_valid(counted.field("values"))
    )
    frequent = counted.filter(kept)
    by_count = Vocabulary.from_counts(frequent.field("values"), frequent.field("counts"))
    return known.grow(by_count.values.to_pylist())


def _write_manifest(
    store: EventStore,
    folder: Path,
    users: pa.StringArray,
    vocabulary: dict[str, Vocabulary],
    columns: dict[str, np.ndarray],
    ties: int | None,
) -> Manifest:
    """Users, vocabularies with their training counts, dataset.json and the checksums."""
    (folder / "vocabulary").mkdir()
    for field, known in vocabulary.items():
        counts = training_counts(columns[field], columns["split"], len(known))
        replace_counts(known, counts).save(folder / "vocabulary" / f"{field}.parquet")
    pq.write_table(pa.table({"user": users}), folder / "users.parquet")

    hashes = {field: known.hash for field, known in vocabulary.items()}
    types = {name: str(column.dtype) for name, column in columns.items()} | {"offsets": "int64"}
    sizes = np.bincount(columns["split"], minlength=len(SPLITS))
    manifest = store.manifest.model_copy(
        update={
            "events": len(columns["time"]),
            "users": len(users),
            "split": {"rule": "update", "boundaries": [], "events": sizes.tolist()},
            "columns": dict(sorted(types.items())),
            "vocabulary": hashes,
            "rejected": {},
            "ties": ties,
            "content_hash": hash_folder(folder, store.schema, hashes, sorted(types)),
        }
    )
    write_json(folder / "dataset.json", manifest.model_dump(mode="json"))
    seal(folder)
    return manifest
