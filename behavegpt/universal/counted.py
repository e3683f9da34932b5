"""What is counted from a log for the universal model: labels, tables, and the histories or states
of its users.

FOLDER/preprocessor_config.json   columns and labels
FOLDER/tables.safetensors         the global tables, and the shares of the experts in their mixture
FOLDER/timing.json                when users act next, where the log has enough gaps
FOLDER/users.*                    states, see `data/state_files.py`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import GIVEN, Moment, check_schema, moved
from behavegpt.data.memory_columns import Columns, memory_columns
from behavegpt.data.memory_counts import Counts
from behavegpt.data.memory_tables import FOLDS, Tables
from behavegpt.data.schema import EventSchema
from behavegpt.data.state_files import REMEDY, KeptStates, read_states, write_states
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import StatesOfHistories, StateSpec, UserState, identity
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.ingest.users import Users
from behavegpt.ingest.whole_log import encode_whole, usable_events
from behavegpt.timing.files import load_gaps, save_gaps
from behavegpt.timing.fit import fit_histories
from behavegpt.timing.gaps import Gaps
from behavegpt.universal.reader import MemoryBatch, MemoryReader, make_reader

TABLES = "tables.safetensors"
# the columns of no events, in the types of memory_columns
_TYPES = (np.int32, np.int32, np.int32, np.int16, np.int16, np.int64)
NO_COLUMNS = Columns(*(np.zeros(0, kind) for kind in _TYPES))


@dataclass(frozen=True)
class Asked:
    """Users whose next behavior is asked for."""

    users: pa.StringArray  # (U,)
    # what it is given is called before each batch, and what that raises stops the work; positions
    # are indices of users
    batches: Callable[[Callable[[], None]], Iterator[MemoryBatch]]
    unknown: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


# frozen: predictors share it, and another `given` makes another one
@dataclass(frozen=True)
class CountedLog:
    """A counted log: of a log itself with its histories, from a folder with the states of its
    users."""

    tokenizer: EventTokenizer
    tables: Tables
    shares: np.ndarray  # (B, J) float32
    histories: EncodedHistories | None = None
    kept: Mapping[str, UserState] = field(default_factory=dict)
    given: tuple[str, ...] = ()  # of the event that is predicted
    learned: Gaps | None = None  # of a folder: when users act next

    def knowing(self, given: tuple[str, ...]) -> CountedLog:
        """The log with other tables: those of models that are `given` something of the event that
        they predict.

        Raises ConfigError for a saved log, which has no histories to count again, and for places
        where there are none.
        """
        if given == self.given:
            return self

        if self.histories is None:
            known = " and ".join(self.given) or "nothing"
            raise ConfigError(
                f"this folder was counted with {known} given of the event that is predicted, and "
                f"states cannot be counted again; count the log with given={list(given)} "
                "(behavegpt predict universal LOG --at TIME [--location-now PLACE] --save FOLDER)."
            )

        check_schema(given, self.tokenizer.event_schema)
        return _count(self.tokenizer, self.histories, given)

    def asked(self, encoded: EncodedHistories, moments: Moment | None = None) -> Asked:
        """Ask about histories (U,); `moments`: the fields that are given of what follows each."""
        columns: Mapping[str, np.ndarray] = encoded.columns
        if self.given:
            # what is given of an event stands one event earlier, where it is asked for
            columns = moved(columns, encoded.offsets, self.given, moments)
        reader = self._reader(self._columns(columns), encoded.offsets)

        def batches(interrupt: Callable[[], None]) -> Iterator[MemoryBatch]:
            for batch in reader.batches(encoded.offsets[1:] - 1):  # each user's last event
                interrupt()
                user = np.searchsorted(encoded.offsets, batch.position, side="right") - 1
                yield batch._replace(position=user)

        return Asked(encoded.users, batches, encoded.unknown, encoded.rejected)

    def asked_of_states(self, states: Sequence[UserState], moments: Moment | None = None) -> Asked:
        """Ask about states (U,); `moments`: the fields that are given of what follows each."""
        self.spec.check(states)
        # states bring their counts along: no events are read
        reader = self._reader(NO_COLUMNS, np.zeros(1, np.int64))
        known = self.spec.moments(moments, len(states))

        def batches(interrupt: Callable[[], None]) -> Iterator[MemoryBatch]:
            pasts = [state.past for state in states if state.past is not None]
            for batch in reader.batches_of_pasts(pasts, known):
                interrupt()
                yield batch

        return Asked(pa.array([state.user for state in states], pa.string()), batches)

    def everyone(self, moments: Moment | None = None) -> Asked:
        """Ask about all users of the log."""
        if self.histories is not None:
            return self.asked(self.histories, moments)
        return self.asked_of_states(list(self.users.values()), moments)

    @cached_property
    def users(self) -> Users:
        """The users of the log, with their states."""
        if self.histories is None:
            return Users(self.tokenizer, self.spec, self.kept)
        return Users(self.tokenizer, self.spec, StatesOfHistories(self.spec, self.histories))

    @cached_property
    def timing(self) -> Gaps:
        """When users act next, learned from the gaps of the log. Raises DataError where they are
        too few, ConfigError for a saved log that has none."""
        if self.learned is not None:
            return self.learned
        if self.histories is None:
            raise ConfigError(
                "this folder was saved without times (timing.json): by an earlier version, or of a "
                "log with too few gaps; count the log again (behavegpt predict universal LOG "
                "--save FOLDER)."
            )
        return fit_histories(self.histories, self.tokenizer)

    @cached_property
    def spec(self) -> StateSpec:
        """What a state holds: the counts alone; its experts are judged by what all tables say."""
        slot_minutes = self.tokenizer.event_schema.slot_minutes
        # no user is held out: all tables speak of everybody
        edges = np.zeros(FOLDS, np.int64)
        counts = Counts(self.tables, self.shares, edges, slot_minutes, self.given)
        # a state counted with a time given means other contexts
        text = " ".join([self.tokenizer.hash, *self.given])
        return StateSpec(identity(text, self.tables), counts)

    def _reader(self, columns: Columns, offsets: np.ndarray) -> MemoryReader:
        """Reads histories by the tables and shares of this log."""
        return MemoryReader(columns, offsets, self.tables, self.shares)

    def _columns(self, columns: Mapping[str, np.ndarray]) -> Columns:
        """What the counts read of encoded histories."""
        return memory_columns(columns, self.tokenizer.event_schema.slot_minutes)


def count_log(logs: Any, schema: EventSchema, given: tuple[str, ...] = ()) -> CountedLog:
    """Count a log, all of it past; `given`: what is known of the event that is predicted.

    Raises DataError when no event is usable, ConfigError for places where there are none.
    """
    check_schema(given, schema)
    refuse_baskets(schema, "the universal model")
    # no training split: nothing is held out of a log that is only counted
    table, rejected = usable_events(logs, schema)
    return count_table(table, schema, given, rejected)


def count_table(
    table: pa.Table,
    schema: EventSchema,
    given: tuple[str, ...] = (),
    rejected: Mapping[str, int] | None = None,
) -> CountedLog:
    """Count events as `read_events` gives them, all of them past and at least one."""
    return _count(*encode_whole(table, rejected or {}, schema), given)


def _count(
    tokenizer: EventTokenizer, encoded: EncodedHistories, given: tuple[str, ...]
) -> CountedLog:
    """The tables and shares of encoded histories, all of whose events count."""
    columns = memory_columns(encoded.columns, tokenizer.event_schema.slot_minutes)
    # every event: there is no later split whose answers the counts could give away
    used = np.ones(len(columns.time), bool)
    reader = make_reader(columns, encoded.offsets, used, tokenizer.behaviors.classes, given)
    return CountedLog(tokenizer, reader.tables, reader.shares, encoded, given=given)


def write_counted(log: CountedLog, folder: Path, states: Iterable[UserState]) -> None:
    """Write labels, tables and states into a folder that is sealed afterwards."""
    log.tokenizer.save(folder)
    arrays = {name: np.ascontiguousarray(values) for name, values in _arrays(log).items()}

    save_file(arrays, folder / TABLES)
    write_states(folder, list(states), log.spec)
    # a short log, or a folder of an earlier version, has no times
    with suppress(ConfigError, DataError):
        save_gaps(log.timing, log.tokenizer, folder)


def is_counted(folder: Path) -> bool:
    """Whether a universal model's folder holds a counted log."""
    return (folder / TABLES).is_file()


def read_counted(folder: Path) -> CountedLog:
    """What `write_counted` wrote. Raises CheckpointError."""
    try:
        tokenizer = EventTokenizer.from_pretrained(str(folder))
        # copies: states are told apart by the tables' bytes, and the file may be replaced
        arrays = {name: array.copy() for name, array in load_file(folder / TABLES).items()}
        shares = arrays.pop("shares")
        # absent in folders of earlier versions
        known = arrays.pop("given", np.zeros(len(GIVEN), bool))
        given = tuple(name for name, there in zip(GIVEN, known, strict=True) if there)
        log = CountedLog(tokenizer, Tables(**arrays), shares, given=given)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no counted log ({error}); {REMEDY}.") from None

    # the spec, made of the log, refuses states of another one
    kept: KeptStates = read_states(folder, log.spec)
    learned = load_gaps(folder, tokenizer)
    return CountedLog(tokenizer, log.tables, shares, kept=kept, given=given, learned=learned)


def _arrays(log: CountedLog) -> dict[str, np.ndarray]:
    """What tables.safetensors holds, by name."""
    arrays = log.tables._asdict() | {"shares": log.shares}
    # only then, so that folders without it stay the same to the byte
    if log.given:
        arrays["given"] = np.array([name in log.given for name in GIVEN])
    return arrays
