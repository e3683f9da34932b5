"""The universal model and the log that was counted for it: labels, tables, states of the users.

`UniversalPredictor` asks it; here is who can be asked about, and how it is kept.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from behavegpt.checksums import seal
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import UserState
from behavegpt.errors import ConfigError
from behavegpt.filters import Choice, without_seen
from behavegpt.ingest.asked import check_asked, count_unknown, named_given, read_asked
from behavegpt.ingest.histories import encode_histories
from behavegpt.ingest.users import KeepsStates, Users, as_states
from behavegpt.io import scratch
from behavegpt.paths import local_path
from behavegpt.universal.counted import Asked, CountedLog, write_counted
from behavegpt.universal.model import UniversalModel, refuse_used, write_universal


class CountedModel(KeepsStates):
    """The universal model, and what was counted from a log: its labels, its tables and the states
    of its users."""

    def __init__(self, model: UniversalModel, log: CountedLog | None = None) -> None:
        self.model = model
        # None: `load("universal")` before a log was counted
        self._log = log

    @property
    def log(self) -> CountedLog:
        """What was counted. Raises ConfigError before `fit_tables`."""
        if self._log is None:
            raise ConfigError(
                "no log has been counted yet: call fit_tables(log), or load a folder "
                "that `save` wrote."
            )
        return self._log

    @property
    def counted(self) -> bool:
        """Whether there is a log."""
        return self._log is not None

    @property
    def tokenizer(self) -> EventTokenizer:
        """Columns and labels of the counted log."""
        return self.log.tokenizer

    @property
    def tells_times(self) -> bool:
        """Whether `when` can learn times, or has."""
        return self.log.learned is not None or self.log.histories is not None

    @property
    def users(self) -> Users:
        """The users of the log, with their states."""
        return self.log.users

    def __repr__(self) -> str:
        if self._log is None:
            return f"{type(self).__name__}(no log counted yet)"
        return f"{type(self).__name__}({self.tokenizer.behaviors.classes:,} behaviors counted)"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    @property
    def given(self) -> tuple[str, ...]:
        """What must be told of the event that is predicted; empty before anything was counted."""
        return () if self._log is None else self._log.given

    def encode(self, events: Any) -> EncodedHistories:
        """Histories in ids, as the other methods take them too. Raises DataError when no event is
        usable."""
        return encode_histories(self.tokenizer, events)

    def save(self, folder: str | Path, states: Iterable[UserState] | None = None) -> Path:
        """Write weights, labels, tables and states (default: those of all users of the log); `load`
        opens it.

        Replaces a folder of the kind, nothing else. Raises ConfigError.
        """
        path = local_path(folder)
        refuse_used(path)

        # in one rename: weights, labels, tables and states of one moment
        with scratch(path) as temporary:
            write_universal(self.model, temporary)
            write_counted(self.log, temporary, self.users.values() if states is None else states)
            seal(temporary)
        return path

    def _check_asked(self, at: Any, location: Any) -> None:
        """Raise ConfigError unless what is told of the next event is what was counted as given."""
        # the remedy names what was asked, so that it can be pasted
        given = list(named_given(at, location))
        remedy = f"count the log again: fit_tables(log, given={given})"
        check_asked(self.given, at, location, "this counted log", remedy)

    def _without_seen(self, choice: Choice, events: Any) -> Choice:
        """The choice without what users had, of histories in ids, states, or None for the log's
        users."""
        histories, states = self.log.histories if events is None else events, as_states(events)
        if choice.exclude_seen and histories is None:
            states = list(self.users.values())  # a saved log has states alone
        return without_seen(choice, histories, states)

    def _asked(self, events: Any, at: Any = None, location: Any = None) -> Asked:
        """Whose next behavior is asked for, at which time and place."""
        # who is asked about, and what asks once the moments are known
        states = as_states(events)
        ask: Callable[..., Asked]
        if events is None:
            # whoever the log or the saved folder knows
            users, ask = pa.array(list(self.users), pa.string()), self.log.everyone
        elif states is not None:
            users = pa.array([state.user for state in states], pa.string())
            ask = partial(self.log.asked_of_states, states)
        else:
            encoded = self.encode(events)
            users, ask = encoded.users, partial(self.log.asked, encoded)

        # nothing is asked about the moment: whoever is asked about is all there is to know
        if not self.given:
            return ask()
        moments, unknown = read_asked(self.tokenizer, users, at, location)
        return count_unknown(ask(moments), unknown)
