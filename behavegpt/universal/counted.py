"""What is counted from a log for the universal model: labels, tables, and the histories or states
of its users.

FOLDER/preprocessor_config.json   columns and labels
FOLDER/tables.safetensors         the global tables, and the shares of the experts in their mixture
FOLDER/users.*                    states, see `data/state_files.py`
"""

from __future__ import annotations

import collections
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
from behavegpt.data.memory_counts import Counts
from behavegpt.data.memory_tables import FOLDS, Columns, Tables, memory_columns
from behavegpt.data.schema import EventSchema
from behavegpt.data.state_files import REMEDY, KeptStates, read_states, write_states
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import StatesOfHistories, StateSpec, UserState, identity
from behavegpt.data.users import Users
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import CheckpointError, DataError
from behavegpt.universal.reader import MemoryBatch, MemoryReader, make_reader

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
        self.spec.check(states)
        reader = self._reader(NO_COLUMNS, np.zeros(1, np.int64))

        def batches(interrupt: Callable[[], None]) -> Iterator[MemoryBatch]:
            pasts = [state.past for state in states if state.past is not None]
            for batch in reader.batches_of_pasts(pasts):
                interrupt()
                yield batch

        return Asked(pa.array([state.user for state in states], pa.string()), batches)

    def everyone(self) -> Asked:
        """Ask about all users of the log."""
        return (
            self.asked(self.histories)
            if self.histories is not None
            else self.asked_of_states(list(self.users.values()))
        )

    @cached_property
    def users(self) -> Users:
        """The users of the log, with their states."""
        if self.histories is None:
            return Users(self.tokenizer, self.spec, self.kept)
        return Users(self.tokenizer, self.spec, StatesOfHistories(self.spec, self.histories))

    @cached_property
    def spec(self) -> StateSpec:
        """What a state holds: the counts alone; its experts are judged by what all tables say."""
        slot_minutes = self.tokenizer.event_schema.slot_minutes
        counts = Counts(self.tables, self.shares, np.zeros(FOLDS, np.int64), slot_minutes)
        return StateSpec(identity(self.tokenizer.hash, self.tables), counts)

    def _reader(self, columns: Columns, offsets: np.ndarray) -> MemoryReader:
        return MemoryReader(columns, offsets, self.tables, self.shares)

    def _columns(self, encoded: EncodedHistories) -> Columns:
        return memory_columns(encoded.columns, self.tokenizer.event_schema.slot_minutes)


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
    write_states(folder, list(states), log.spec)


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
    kept: KeptStates = read_states(folder, log.spec)
    return CountedLog(tokenizer, log.tables, shares, kept=kept)


def _arrays(log: CountedLog) -> dict[str, np.ndarray]:
    return log.tables._asdict() | {"shares": log.shares}
