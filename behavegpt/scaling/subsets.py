"""Nested subsets of a log by users, and the held-out users on which every run is scored.

The users are put into one order by a seed. From its end the held-out users are taken, with all
their events, until they hold enough targets of the held-out split; no run trains on them. From its
start each run takes whole users, with their training events alone, until it has its number of
targets: so a smaller subset lies inside every larger one, and all losses are means over the same
targets. A subset keeps the ids of the whole log (as many classes for each run) but has the label
counts of its own events, which are the model's prior.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.arrays import write_array
from behavegpt.checksums import seal
from behavegpt.data.pack import target_rows
from behavegpt.data.reencode import replace_counts, training_counts
from behavegpt.data.store import SPLITS, TRAIN, EventStore, open_store
from behavegpt.data.ties import count_ties
from behavegpt.errors import DataError
from behavegpt.grid import claim
from behavegpt.io import put_in_place, remove_stale, temporary_name
from behavegpt.ragged import owners, ranges


@dataclass(frozen=True)
class Division:
    """Who is trained on and who is scored; users are indices into the store."""

    store: EventStore
    heldout: np.ndarray  # (H,) ascending
    # (T,) users that have training targets, in the order in which subsets take them
    order: np.ndarray
    total: np.ndarray  # (T,) training targets of the users up to and with each
    seed: int

    @property
    def events(self) -> int:
        """Training targets of all users that are not held out."""
        return int(self.total[-1]) if len(self.total) else 0

    def training_users(self, events: float) -> np.ndarray:
        """The first users of the order that together have `events` training targets, ascending."""
        if events > self.events:
            raise DataError(
                f"{self.store.path}: {events:,.0f} events asked for in one pass, {self.events:,} "
                "training targets there are beside the held-out users; ask for fewer, or prepare a "
                "longer log."
            )
        return np.sort(self.order[: 1 + int(np.searchsorted(self.total, events))])


def divide(store: EventStore, split: str, heldout_events: int, seed: int) -> Division:
    """Choose the held-out users and the order of the others. DataError when the held-out split has
    no target."""
    # one order for both: the training users come from its start, the held-out ones from its end
    order = np.random.default_rng(seed).permutation(store.manifest.users)
    asked = _targets(store, SPLITS[split])[order]

    if not asked.any():
        raise DataError(
            f"{store.path}: no targets in the split {split!r}; prepare the data with another "
            "--split."
        )

    # (users,) in the order: the users behind this one have fewer targets than wanted
    needed = np.cumsum(asked[::-1])[::-1] - asked < heldout_events
    heldout = needed & (asked > 0)
    trained = _targets(store, TRAIN)[order]
    # before the cumulative sum: a held-out user takes no place among them
    trained[heldout] = 0
    users = order[trained > 0]

    return Division(store, np.sort(order[heldout]), users, np.cumsum(trained[trained > 0]), seed)


def heldout_store(division: Division, folder: Path) -> EventStore:
    """The held-out users' events, all splits, written once."""
    return _write(
        division.store, division.heldout, folder, f"held out, seed {division.seed}", TRAIN + 2
    )


def training_store(division: Division, events: float, folder: Path) -> EventStore:
    """The training events of the users with `events` targets, written once."""
    users = division.training_users(events)
    return _write(division.store, users, folder, f"{len(users)} users, seed {division.seed}", TRAIN)


def _targets(store: EventStore, split: int) -> np.ndarray:
    """Targets of each user (users,) in a split."""
    rows = target_rows(store, split)
    return np.bincount(
        np.searchsorted(store.offsets, rows, side="right") - 1, minlength=store.manifest.users
    )


def _write(
    store: EventStore, users: np.ndarray, folder: Path, what: str, last_split: int
) -> EventStore:
    """A prepared folder of these users' events up to a split; an existing one is opened, whoever
    wrote it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # of what it is made from, not of its bytes: known before anything is written
    digest = hashlib.sha256(
        f"{store.manifest.content_hash} {what}".encode() + users.tobytes()
    ).hexdigest()

    # two workers may want the same subset; the second finds it written
    with claim(folder.with_name(f".{folder.name}.making"), wait=True):
        if folder.exists():
            with suppress(DataError):  # a damaged one is written anew
                found = open_store(folder)
                if found.manifest.content_hash == digest:
                    return found

        remove_stale(folder.parent, folder.name)
        temporary = temporary_name(folder, "new")

        try:
            _write_files(store, users, temporary, digest, last_split)
            seal(temporary)
            put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    return open_store(folder)


def _count_ties(columns: dict[str, np.ndarray], lengths: np.ndarray) -> int:
    return count_ties({"user": owners(lengths), "time": columns["time"]})


def _write_files(
    store: EventStore, users: np.ndarray, folder: Path, digest: str, last_split: int
) -> None:
    (folder / "columns").mkdir(parents=True)
    (folder / "vocabulary").mkdir()
    lengths = np.diff(store.offsets)[users]

    # users ascending, so the columns are read from front to back
    index = ranges(store.offsets[users], lengths)
    kept = np.asarray(store.columns["split"])[index] <= last_split
    index, lengths = index[kept], np.bincount(owners(lengths)[kept], minlength=len(users))

    # copies of the rows alone: the whole columns stay mapped
    columns = {name: np.asarray(column[index]) for name, column in store.columns.items()}
    vocabulary = {
        # the same ids, other counts: a subset's prior is its own
        field: replace_counts(v, training_counts(columns[field], columns["split"], len(v)))
        for field, v in store.vocabulary.items()
    }
    for field, counted in vocabulary.items():
        counted.save(folder / "vocabulary" / f"{field}.parquet")

    columns["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for name, column in columns.items():
        write_array(folder / "columns" / f"{name}.npy", column)

    pq.write_table(
        pa.table({"user": store.users().take(pa.array(users))}), folder / "users.parquet"
    )
    sizes = np.bincount(columns["split"], minlength=3).tolist()
    manifest = store.manifest.model_copy(
        update={
            "events": len(index),
            "users": len(users),
            "split": {**store.manifest.split, "events": sizes},
            "ties": None if store.manifest.ties is None else _count_ties(columns, lengths),
            "columns": {name: str(column.dtype) for name, column in sorted(columns.items())},
            "content_hash": digest,
        }
    )
    (folder / "dataset.json").write_text(
        manifest.model_dump_json(indent=2) + "\n", encoding="utf-8"
    )
