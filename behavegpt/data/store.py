"""EventStore: a prepared folder opened for reading; flat memory-mapped columns sorted by user and
time.

DIR/dataset.json          what is in the folder (`Manifest`)
DIR/data_card.md          the same for people
DIR/users.parquet         column `user`: labels, sorted; row u owns events offsets[u] ..
                          offsets[u+1]
DIR/vocabulary/FIELD.parquet
DIR/columns/NAME.npy      offsets, time, weekday, slot, split, and one per vocabulary field; a
                          feature of the users stands at each of their events; with a group also
                          basket, the number of each event's among its user's
DIR/rejects.parquet       rows that could not be used, with the reason (only if there were any)
DIR/MANIFEST.json         size and SHA-256 of all of them (checksums.py)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, field_validator

from behavegpt.arrays import open_array
from behavegpt.checksums import MANIFEST, Damage, is_sealed, verify
from behavegpt.config import Settings
from behavegpt.data.baskets import Baskets, baskets_of
from behavegpt.data.bins import load_vocabulary
from behavegpt.data.schema import EventSchema
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError, first_line
from behavegpt.io import replacing
from behavegpt.paths import is_file_name, local_path
from behavegpt.ragged import owners
from behavegpt.tabular import html_facts

if TYPE_CHECKING:
    import datasets

FORMAT = 1
TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}
TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")  # endings of `write_table`
DAMAGE = Damage(DataError, "prepare the data again")

log = logging.getLogger(__name__)


class Manifest(Settings):
    """dataset.json. Times are epoch seconds (UTC)."""

    format: int
    event_schema: EventSchema
    events: int
    users: int
    time_origin: int  # epoch seconds of `time` 0
    split: dict[str, str | list[int] | list[str]]  # rule, boundaries, events per split
    columns: dict[str, str]  # name -> dtype
    vocabulary: dict[str, str]  # field -> hash of its labels
    rejected: dict[str, int]  # reason -> rows
    # events that share user and time with another, None: sorted by their labels (0.1)
    ties: int | None = None
    # sets of events, with a group; not written where there is none, as in folders of before
    baskets: int | None = Field(None, exclude_if=lambda number: number is None)
    content_hash: str  # SHA-256 of schema, vocabularies, users and columns

    @field_validator("columns", "vocabulary")
    @classmethod
    def _file_names(cls, named: dict[str, str]) -> dict[str, str]:
        for name in named:
            if not is_file_name(name):
                raise ValueError(f"{name!r} is no name that `prepare` writes")
        return named


@dataclass(frozen=True)
class EventStore:
    """Columns by name, each (events,) and memory-mapped; user u owns
    `offsets[u]:offsets[u + 1]`."""

    path: Path
    manifest: Manifest
    vocabulary: dict[str, Vocabulary]
    columns: dict[str, np.ndarray]
    offsets: np.ndarray  # (users + 1,) int64

    @property
    def schema(self) -> EventSchema:
        return self.manifest.event_schema

    @cached_property
    def baskets(self) -> Baskets | None:
        """The baskets of a log that has them, which are what a model looks at then."""
        if not self.schema.has_baskets:
            return None
        return baskets_of({**self.columns, "behavior": self.column("behavior")}, self.offsets)

    @property
    def behaviors(self) -> Vocabulary:
        """The vocabulary of the classes to predict."""
        return self.vocabulary["event" if self.schema.behavior_is_event else "behavior"]

    def column(self, name: str) -> np.ndarray:
        """A column by name; `behavior` is the event column when the schema says so."""
        return self.columns[
            "event" if name == "behavior" and self.schema.behavior_is_event else name
        ]

    def users(self) -> pa.StringArray:
        """Labels of all users (users,), in the order of `offsets`."""
        path = self.path / "users.parquet"

        try:
            users = pq.read_table(path, columns=["user"])["user"].cast(pa.string()).combine_chunks()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(
                f"{path}: cannot be read ({first_line(error)}); prepare the data again."
            ) from None

        if len(users) != self.manifest.users:
            raise DataError(
                f"{path}: {len(users):,} users, {self.manifest.users:,} in dataset.json; "
                f"{DAMAGE.remedy}."
            )

        return users

    def field_sizes(self) -> dict[str, int]:
        """Input field of the events -> number of ids, in the model's order."""
        # what no vocabulary tells
        fixed = {"weekday": 7, "slot": self.schema.slots}

        return {
            f: fixed[f] if f in fixed else len(self.vocabulary[f]) for f in self.schema.input_fields
        }

    def feature_sizes(self) -> dict[str, int]:
        """Feature of the users -> number of ids."""
        return {name: len(self.vocabulary[name]) for name in self.schema.features}

    def as_dataset(self) -> datasets.Dataset:
        """The events as a Hugging Face dataset, one row per event, ids as stored plus the user's
        index."""
        import datasets

        table = {name: np.asarray(column) for name, column in self.columns.items()}
        table["user"] = owners(np.diff(self.offsets))

        return datasets.Dataset(pa.table(table))

    def __repr__(self) -> str:
        size = f"{self.manifest.events:,} events of {self.manifest.users:,} users"
        return f"EventStore({str(self.path)!r}: {size})"

    def _repr_html_(self) -> str:
        manifest = self.manifest

        labels = {
            f"labels of {field}": vocabulary.classes
            for field, vocabulary in self.vocabulary.items()
        }
        columns = ", ".join(f"{role}={column}" for role, column in self.schema.roles.items())

        shown = {
            "events": manifest.events,
            "users": manifest.users,
            **labels,
            "columns": columns,
            "zone": self.schema.tz,
        }

        return html_facts(f"EventStore {self.path}", shown)


def open_store(path: str | Path) -> EventStore:
    """Open a folder written by `prepare`, local or remote, such as s3://bucket/folder (remote.py).
    Raises DataError if it is not one, or is damaged.
    """
    from behavegpt.data.remote import fetch, is_remote  # they import this module
    from behavegpt.data.ties import warn_of_ties

    path = fetch(path) if is_remote(path) else local_path(path)
    manifest = _read_manifest(path)

    # every byte before anything is mapped: damage must not become a wrong figure
    _check_files(path, manifest)
    # mapped: a log larger than the memory is opened in milliseconds
    columns = {name: _load_column(path, name, dtype) for name, dtype in manifest.columns.items()}

    offsets = columns.pop("offsets")
    # each may be a sound file by itself, and not of this folder
    wrong = [name for name, column in columns.items() if len(column) != manifest.events]
    if wrong or len(offsets) != manifest.users + 1 or offsets[-1] != manifest.events:
        raise DataError(
            f"{path}/columns/{(wrong or ['offsets'])[0]}.npy: length differs from dataset.json; "
            "prepare the data again."
        )

    vocabulary = {
        field: load_vocabulary(manifest.event_schema, path / "vocabulary", field)
        for field in manifest.vocabulary
    }
    for field, digest in manifest.vocabulary.items():
        if vocabulary[field].hash != digest:
            raise DataError(
                f"{path}/vocabulary/{field}.parquet: not the one dataset.json names; prepare the "
                "data again."
            )

    store = EventStore(path, manifest, vocabulary, columns, offsets)
    warn_of_ties(store)
    return store


def files_of(manifest: Manifest) -> list[str]:
    """The files that a store is read from, as paths within its folder."""
    columns = (f"columns/{name}.npy" for name in manifest.columns)
    return [
        "dataset.json",
        "users.parquet",
        *columns,
        *(f"vocabulary/{f}.parquet" for f in manifest.vocabulary),
    ]


def _read_manifest(path: Path) -> Manifest:
    if not (path / "dataset.json").is_file():
        raise DataError(
            f"{path}: not a prepared folder (no dataset.json); run: behavegpt prepare "
            + (f"{path} --out DIR" if path.is_file() else f"LOGS --out {path}")
        )
    try:
        plain = json.loads((path / "dataset.json").read_bytes())
        manifest = Manifest.model_validate(plain)
    except (OSError, ValidationError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path / 'dataset.json'}: damaged ({error}); prepare the data again."
        ) from None

    if manifest.format != FORMAT:
        raise DataError(
            f"{path}: format {manifest.format}, this version reads {FORMAT}; prepare the data "
            "again."
        )
    return manifest


def _check_files(path: Path, manifest: Manifest) -> None:
    """Raise DataError for a file that lies elsewhere, or is not the one that was written."""
    root = path.resolve()

    for name in files_of(manifest):
        # a folder from somebody else must not read files of this machine
        if not (path / name).resolve().is_relative_to(root):
            raise DataError(
                f"{path / name}: a link that leads out of the folder; put the file itself there."
            )

    if is_sealed(path):
        verify(path, DAMAGE, files_of(manifest))
    else:
        log.warning(
            "%s: no %s (an earlier version wrote it), so damage would go unnoticed", path, MANIFEST
        )


def write_table(table: pa.Table, path: Path) -> None:
    """Write a result as parquet, CSV or JSONL by its ending, in one rename. Raises DataError for
    another ending."""
    import pyarrow.csv

    if path.suffix not in TABLES:
        raise DataError(
            f"{path}: cannot tell the format from {path.suffix!r}; end the name in .parquet, .csv "
            "or .jsonl."
        )

    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(table, temporary)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            # batch by batch: a table of millions of rows as one text would not fit
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(_json_lines(table))


def _json_lines(table: pa.Table) -> Iterator[str]:
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _load_column(path: Path, name: str, dtype: str) -> np.ndarray:
    file = path / "columns" / f"{name}.npy"
    column = open_array(file)

    if column.dtype != np.dtype(dtype) or column.ndim != 1:
        raise DataError(
            f"{file}: holds {column.dtype}, dataset.json says {dtype}; prepare the data again."
        )
    return column
