"""Users whose states a predictor knows, and events of theirs that come later.

Predictors that keep states, the universal model's and those of trained models, offer them through
`KeepsStates`; the service asks nothing else of them.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import StateSpec, UserState
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import DataError
from behavegpt.ingest.histories import encode_histories
from behavegpt.ingest.together import ReadingKey, reading_key


@dataclass(frozen=True)
class Users(Mapping[str, UserState]):
    """The known users; each asking gives a state of its own, so that nothing known ever changes."""

    tokenizer: EventTokenizer
    spec: StateSpec
    # made when it is asked for: a log of millions of users has no million states in memory
    known: Mapping[str, UserState] = field(default_factory=dict)

    def __getitem__(self, user: str) -> UserState:
        return self.known[user]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def read(self, user: str, events: Any) -> EncodedHistories:
        """Events of one user in ids: one mapping of values, a list of them, or a table. Raises
        DataError."""
        # a mapping of columns is a table of events, one of values an event
        if isinstance(events, Mapping) and not any(_is_column(value) for value in events.values()):
            events = [events]

        if not isinstance(events, (list, tuple)):
            return _alone(user, encode_histories(self.tokenizer, events))

        other = next((row for row in events if not isinstance(row, Mapping)), None)
        if other is not None or not events:
            what = "no event" if other is None else f"a {type(other).__name__}"
            raise DataError(f"{what} to take up; write each event as a mapping of its columns.")

        schema = self.tokenizer.event_schema
        columns: dict[str, list[Any]] = {}
        # in the order of their first mention; a set would reorder columns from call to call
        for name in dict.fromkeys(name for row in events for name in row):
            columns[str(name)] = [row.get(name) for row in events]

        named = {str(value) for value in columns.get(schema.user, ()) if value is not None} - {user}
        if named:
            raise DataError(f"events of {min(named)[:100]!r} for the state of user {user[:100]!r}.")

        # an empty name would be a null user, whose rows are rejected; the name is not looked at
        columns[schema.user] = [user or "0"] * len(events)
        return _alone(user, self.tokenizer.by_name.encode(columns, warn=False))

    def read_together(
        self, asked: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> dict[str, EncodedHistories]:
        """What `read` gives for events of several users; those who are left out must be read alone.

        Many small readings cost most of an update: here each column is read once for all.
        """
        schema = self.tokenizer.event_schema
        alike: dict[ReadingKey, list[str]] = {}
        for user, rows in asked.items():
            key = reading_key(rows, schema)
            # rows that name their user are left out: `read` compares the name and tells the mistake

            if user and key is not None and not any(schema.user in row for row in rows):
                alike.setdefault(key, []).append(user)

        parts: dict[str, EncodedHistories] = {}
        for key, users in alike.items():
            rows = [row for user in users for row in asked[user]]
            columns: dict[str, list[Any]] = {}
            for column, _, is_there in key:
                if is_there:
                    columns[column] = [row.get(column) for row in rows]

            columns[schema.user] = [user for user in users for _ in asked[user]]

            try:
                encoded = self.tokenizer.by_name.encode(columns, warn=False)
            except DataError:  # of which user? each is read alone
                continue
            # rejected rows are counted over all users: alone, each is told its own
            parts |= {} if encoded.rejected else _apart(encoded)

        return parts

    def take_up(self, state: UserState, encoded: EncodedHistories) -> None:
        """Take up what `read` gave, later than all that the state knows. Raises DataError."""
        # a state of another model may have the same fields and other classes
        self.spec.check([state])

        # histories are sorted: the first is the earliest
        first = int(encoded.columns["time"][0])

        # an event of the same second is taken up: logs have many
        if state.time is not None and first < state.time:
            raise DataError(
                f"user {state.user[:100]!r}: an event at {_shown(first)} comes after one at "
                f"{_shown(state.time)}; a state takes events in their order, so read the user's "
                "whole history again."
            )

        self.spec.take_up(state, encoded.columns)


class KeepsStates(ABC):
    """A predictor with states of users that grow event by event."""

    @property
    @abstractmethod
    def users(self) -> Users:
        """The users that it knows."""

    def state(self, user: str, events: Any = None, *, new: bool = False) -> UserState:
        """The state of a known user; with `events`, that of a user with this history; `new`: of one
        without events.

        Raises DataError for a user that is not known, unless `events` or `new` are given.
        """
        users = self.users
        if events is not None:
            # read first: where that fails there is no half made state
            encoded = users.read(user, events)
            state = users.spec.new(user, len(encoded.columns["time"]))
            users.take_up(state, encoded)
            return state

        if new:
            return users.spec.new(user)

        if user not in users:
            raise DataError(
                f"no user {user[:100]!r} among the {len(users):,} that the model knows; "
                "state(user, events) reads a history, and state(user, new=True) is that of a user "
                "without events."
            )

        return users[user]

    def update(self, state: UserState, events: Any) -> UserState:
        """Take up one event (a mapping) or several (list, table, ...) of a state's user; returns
        the state.

        Events carry the columns of the log, without the user's, and come after all that the state
        knows: of one call in the order that reading a log gives them, of several calls in the order
        of the calls. Raises DataError, and changes nothing, where an event cannot be used or is
        older than the last one.
        """
        users = self.users
        users.take_up(state, users.read(state.user, events))
        return state


def as_states(events: Any) -> list[UserState] | None:
    """The states, where a predictor is asked about one or a list of them; None for anything
    else."""
    if isinstance(events, UserState):
        return [events]
    # an empty list is no list of states: nothing tells what it holds
    states = list(events) if isinstance(events, (list, tuple)) else []
    return states if states and all(isinstance(state, UserState) for state in states) else None


def _shown(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _alone(user: str, encoded: EncodedHistories) -> EncodedHistories:
    # all events or none: a state cannot be mended afterwards
    if encoded.rejected or len(encoded.users) != 1:
        reasons = ", ".join(f"{rows} rows: {reason}" for reason, rows in encoded.rejected.items())
        raise DataError(
            f"user {user[:100]!r}: events that cannot be used ({reasons or 'of several users'})."
        )
    return encoded


def _apart(encoded: EncodedHistories) -> dict[str, EncodedHistories]:
    """Histories by user."""
    parts = {}
    for i, user in enumerate(encoded.users.to_pylist()):
        held = slice(encoded.offsets[i], encoded.offsets[i + 1])
        columns = {name: values[held] for name, values in encoded.columns.items()}

        offsets = np.array([0, held.stop - held.start])
        unknown = {f: int((columns[f] == UNKNOWN).sum()) for f in encoded.unknown}
        parts[user] = EncodedHistories(encoded.users[i : i + 1], offsets, columns, unknown, {})
    return parts


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))
