"""What is counted from a log for the universal model: labels, tables, and the histories or states
of its users.

FOLDER/preprocessor_config.json   columns and labels
FOLDER/tables.safetensors         the global tables, and the shares of the experts in their mixture
FOLDER/users.*                    states, see `state.py`
"""

from __future__ import annotations

import collections
import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from behavegpt.data.events import read_events
from behavegpt.data.histories import encode_histories
from behavegpt.data.memory_tables import Columns, Tables, memory_columns
from behavegpt.data.rows import read_rows
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import CheckpointError, DataError
from behavegpt.universal.reader import MemoryBatch, MemoryReader, make_reader
from behavegpt.universal.state import (
    REMEDY,
    KeptStates,
    UserState,
    new_state,
    read_states,
    write_states,
)

TABLES = "tables.safetensors"
NO_COLUMNS = Columns(
    *(np.zeros(0, kind) for kind in (np.int32, np.int32, np.int32, np.int16, np.int16, np.int64))
)


@dataclass(frozen=True)
class Asked:
    """Users whose next behavior is asked for."""

    users: pa.StringArray  # (U,)
    # of an interrupt; positions are indices of users
    batches: Callable[[Callable[[], None]], Iterator[MemoryBatch]]
    unknown: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CountedLog:
    """A counted log: of a log itself with its histories, from a folder with the states of its
    users."""

    tokenizer: EventTokenizer
    tables: Tables
    shares: np.ndarray  # (B, J) float32
    histories: EncodedHistories | None = None
    kept: Mapping[str, UserState] = field(default_factory=dict)

    def asked(self, encoded: EncodedHistories) -> Asked:
        """Ask about histories."""
        reader = self._reader(self._columns(encoded), encoded.offsets)

        def batches(interrupt: Callable[[], None]) -> Iterator[MemoryBatch]:
            for batch in reader.batches(encoded.offsets[1:] - 1):
                interrupt()
                yield batch._replace(
                    position=np.searchsorted(encoded.offsets, batch.position, side="right") - 1
                )

        return Asked(encoded.users, batches, encoded.unknown, encoded.rejected)

    def asked_of_states(self, states: Sequence[UserState]) -> Asked:
        """Ask about states."""
        reader = self._reader(NO_COLUMNS, np.zeros(1, np.int64))

        def batches(interrupt: Callable[[], None]) -> Iterator[MemoryBatch]:
            for batch in reader.batches_of_pasts([state.past for state in states]):
                interrupt()
                yield batch

        return Asked(pa.array([state.user for state in states], pa.string()), batches)

    def everyone(self) -> Asked:
        """Ask about all users of the log."""
        return (
            self.asked(self.histories)
            if self.histories is not None
            else self.asked_of_states(list(self.states()))
        )

    def states(self) -> Iterator[UserState]:
        """The states of all users of the log."""
        return (self.state(user) for user in self.users)

    @property
    def users(self) -> list[str]:
        """Names of all users."""
        return list(self.kept) if self.histories is None else list(self._places)

    def __contains__(self, user: str) -> bool:
        return user in self.kept or user in self._places

    def state(self, user: str) -> UserState:
        """The state of a user of the log. Raises DataError for any other."""
        if user in self.kept:
            return self.kept[user]
        place = self._places.get(user)
        if place is None or self.histories is None:
            raise DataError(
                f"no user {user[:100]!r} in the counted log; state(..., new=True) is that of a "
                "user without events."
            )
        begin, end = self.histories.offsets[place : place + 2]
        state = new_state(user, int(end - begin))
        state.take_up(
            self.tables, Columns(*(column[begin:end] for column in self._history_columns))
        )
        return state

    def update(self, state: UserState, encoded: EncodedHistories) -> None:
        """Take up the events of one user, later than all that the state knows. Raises DataError."""
        first = int(encoded.columns["time"][0])
        if state.time is not None and first < state.time:
            before = datetime.datetime.fromtimestamp(first, datetime.UTC).isoformat()
            last = datetime.datetime.fromtimestamp(state.time, datetime.UTC).isoformat()
            raise DataError(
                f"user {state.user[:100]!r}: an event at {before} comes after one at {last}; a "
                "state takes events in their order, so read the user's whole history again."
            )
        state.take_up(self.tables, self._columns(encoded))

    def encode_of_user(self, user: str, events: Any) -> EncodedHistories:
        """Events of one user in ids: one mapping of values, a list of them, or a table. Raises
        DataError."""
        if isinstance(events, Mapping) and not any(_is_column(value) for value in events.values()):
            events = [events]
        if not isinstance(events, (list, tuple)):
            return self._alone(user, encode_histories(self.tokenizer, events))
        other = next((row for row in events if not isinstance(row, Mapping)), None)
        if other is not None or not events:
            what = "no event" if other is None else f"a {type(other).__name__}"
            raise DataError(f"{what} to take up; write each event as a mapping of its columns.")
        schema = self.tokenizer.event_schema
        names = dict.fromkeys(name for row in events for name in row)
        columns = {str(name): [row.get(name) for row in events] for name in names}
        named = {str(value) for value in columns.get(schema.user, ()) if value is not None} - {user}
        if named:
            raise DataError(f"events of {min(named)[:100]!r} for the state of user {user[:100]!r}.")
        columns[schema.user] = [user or "0"] * len(events)
        read = read_rows(columns, schema)
        encoded = (
            self.tokenizer.by_name().encode(columns)
            if read is None
            else self.tokenizer.encode_table(read)
        )
        return self._alone(user, encoded)

    def _alone(self, user: str, encoded: EncodedHistories) -> EncodedHistories:
        if encoded.rejected or len(encoded.users) != 1:
            reasons = ", ".join(
                f"{rows} rows: {reason}" for reason, rows in encoded.rejected.items()
            )
            raise DataError(
                f"user {user[:100]!r}: events that cannot be used "
                f"({reasons or 'of several users'})."
            )
        return encoded

    def _reader(self, columns: Columns, offsets: np.ndarray) -> MemoryReader:
        return MemoryReader(columns, offsets, self.tables, self.shares)

    def _columns(self, encoded: EncodedHistories) -> Columns:
        return memory_columns(encoded.columns, self.tokenizer.event_schema.slot_minutes)

    @cached_property
    def _history_columns(self) -> Columns:
        return NO_COLUMNS if self.histories is None else self._columns(self.histories)

    @cached_property
    def _places(self) -> dict[str, int]:
        users = [] if self.histories is None else self.histories.users.to_pylist()
        return {user: place for place, user in enumerate(users)}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of labels and tables, to which states belong."""
        digest = hashlib.sha256(self.tokenizer.hash.encode())
        for array in self.tables:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def count_log(logs: Any, schema: EventSchema) -> CountedLog:
    """Count a log, all of it past. Raises DataError when no event is usable."""
    read = read_events(logs, schema)
    rejected = collections.Counter(read.rejects["reason"].to_pylist())
    if not len(read.table):
        reasons = ", ".join(f"{n} rows: {reason}" for reason, n in rejected.items()) or "no rows"
        raise DataError(f"no usable event to count ({reasons}).")
    vocabulary = {}
    for name in schema.label_columns:
        counts = pc.value_counts(read.table[name].drop_null().combine_chunks())
        vocabulary[name] = Vocabulary.from_counts(counts.field("values"), counts.field("counts"))
    tokenizer = EventTokenizer(schema, vocabulary)
    encoded = tokenizer.encode_table(read.table, rejected)
    columns = memory_columns(encoded.columns, schema.slot_minutes)
    used = np.ones(len(columns.time), bool)
    reader = make_reader(columns, encoded.offsets, used, tokenizer.behaviors.classes)
    return CountedLog(tokenizer, reader.tables, reader.shares, encoded)


def write_counted(log: CountedLog, folder: Path, states: Iterable[UserState]) -> None:
    """Write labels, tables and states into a folder that is sealed afterwards."""
    log.tokenizer.save(folder)
    save_file({name: np.ascontiguousarray(a) for name, a in _arrays(log).items()}, folder / TABLES)
    write_states(folder, list(states), log.hash)


def is_counted(folder: Path) -> bool:
    """Whether a universal model's folder holds a counted log."""
    return (folder / TABLES).is_file()


def read_counted(folder: Path) -> CountedLog:
    """What `write_counted` wrote. Raises CheckpointError."""
    try:
        tokenizer = EventTokenizer.from_pretrained(str(folder))
        arrays = {name: array.copy() for name, array in load_file(folder / TABLES).items()}
        shares = arrays.pop("shares")
        log = CountedLog(tokenizer, Tables(**arrays), shares)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no counted log ({error}); {REMEDY}.") from None
    kept: KeptStates = read_states(folder, log.hash)
    return CountedLog(tokenizer, log.tables, shares, kept=kept)


def _arrays(log: CountedLog) -> dict[str, np.ndarray]:
    return log.tables._asdict() | {"shares": log.shares}


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))
