"""The state of a user: all that a model needs to predict what follows, without the user's history.

It holds the counts of the whole past, where the model reads them, and the last events, as many as
the model looks back on, where it reads those. A window moves with every event, and with it what the
keys and values of its events would have seen: so the events are kept, not what a network made of
them, and the answer is that of the whole history.

Shapes: F columns, n events that are kept, J experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from behavegpt.data.given import Moment
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_counts import Counts, counted_columns, eras_of, memory_tensors
from behavegpt.data.memory_past import LATEST, Past, new_past
from behavegpt.data.memory_state import ROOM, Moments, extend, moments_of, read_pasts
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.errors import DataError

if TYPE_CHECKING:
    import torch

TIME = "time"
OBJECTS = 1000  # bytes, about, of Python's own that a state takes beside its arrays


@dataclass
class UserState:
    """What is known of a user; `UserStates.update` changes it in place."""

    user: str
    belongs_to: str  # the StateSpec's
    events: int  # that were taken up, those of unknown behavior included
    past: Past | None  # counts, where the model reads them
    recent: np.ndarray  # (F, n) uint32 the last events; the last column is the time in seconds

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, without what all states share."""
        counted = {} if self.past is None else self.past._asdict()
        of_past = sum(array.nbytes for name, array in counted.items() if name != "fading")
        return OBJECTS + of_past + self.recent.nbytes

    @property
    def time(self) -> int | None:
        """Epoch seconds of the last event; None before the first."""
        if not self.events:
            return None
        return int(self.recent[-1, -1] if self.past is None else self.past.number[LATEST])


@dataclass(frozen=True)
class StateSpec:
    """What the states of a model hold, and how they take up events."""

    belongs_to: str  # SHA-256 of what gives the numbers of a state their meaning
    counts: Counts | None  # that the model reads beside the user's own
    columns: tuple[str, ...] = ()  # of the events that are kept, `time` last
    window: int = 0  # how many events are kept

    def new(self, user: str, events: int = 0) -> UserState:
        """The state of a user without events, with room for some."""
        past = None if self.counts is None else new_past(max(ROOM, events))

        return UserState(
            user, self.belongs_to, 0, past, np.empty((len(self.columns), 0), np.uint32)
        )

    def take_up(self, state: UserState, columns: Mapping[str, np.ndarray]) -> None:
        """Take up events (n,) in ids that come after all others, in their order: one of O(experts)
        each."""
        if self.counts is None:
            state.events += len(columns[TIME])
        else:
            self.count(state, counted_columns(columns, self.counts))

        if self.window:
            # (F, n)
            new = np.stack([columns[name][-self.window :] for name in self.columns])
            recent = np.concatenate([state.recent, new.astype(np.uint32)], axis=1)
            state.recent = recent[:, -self.window :].copy()

    def check(self, states: Sequence[UserState]) -> None:
        """Raise DataError for a state of another model."""
        other = next((s.user for s in states if s.belongs_to != self.belongs_to), None)
        if other is not None:
            raise DataError(
                f"the state of user {other[:100]!r} is another model's or of other tables; make "
                "one with this model: state(user, events)."
            )

    def count(self, state: UserState, columns: Columns) -> None:
        """The same for the counts alone, of a model that reads nothing else."""
        assert self.counts is not None and state.past is not None

        eras = eras_of(columns.time, self.counts.edges)
        state.past = extend(state.past, self.counts.tables, columns, eras, self.counts.given)
        state.events += len(columns.behavior)

    def windows(self, states: Sequence[UserState]) -> EncodedHistories:
        """The events that the states keep, as histories. Raises DataError for a state without,
        or of another model."""
        self.check(states)
        empty = next((state.user for state in states if not state.events), None)
        if empty is not None:
            raise DataError(
                f"user {empty[:100]!r} has no event yet; a trained model predicts what follows one."
            )

        offsets = np.cumsum([0, *(state.recent.shape[1] for state in states)])  # (U + 1,)
        recent = np.concatenate([state.recent for state in states], axis=1)  # (F, events of all)
        users = pa.array([state.user for state in states], pa.string())

        return EncodedHistories(
            users, offsets, dict(zip(self.columns, recent, strict=True)), {}, {}
        )

    def source(
        self, states: Sequence[UserState], offsets: np.ndarray, asked: Moment | None = None
    ) -> PastSource | None:
        """Reads the counts of states (U,) whose `windows` have these offsets, `asked` about given
        fields (U,); None where there are none."""
        if self.counts is None:
            return None

        pasts = [state.past for state in states if state.past is not None]
        return PastSource(pasts, offsets, self.counts, self.moments(asked, len(states)))

    def moments(self, asked: Moment | None, count: int) -> Moments | None:
        """What is given of N = count events to come, in the units of the counts."""
        if asked is None or self.counts is None:
            return None
        names = ("behavior", "event", TIME, "slot", "weekday")

        # what is not given is never looked at: zeros will do
        columns = {name: np.zeros(count, np.int64) for name in names} | dict(asked)
        return moments_of(counted_columns(columns, self.counts), self.counts.given)


@dataclass(frozen=True)
class PastSource:
    """Reads what the counts of states say at the last of the events that each keeps; as
    `MemorySource`."""

    pasts: Sequence[Past]
    offsets: np.ndarray  # (states + 1,) int64
    counts: Counts
    moments: Moments | None = None  # what is given of what follows each

    def at(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of model/mixer.py's Memory for flat positions (N,), in this order."""
        rows = np.searchsorted(self.offsets, positions, side="right") - 1  # (N,) states
        asked = self.moments and Moments(*(values[rows] for values in self.moments))

        readings = read_pasts([self.pasts[row] for row in rows], self.counts.tables, asked)
        return memory_tensors(readings, np.arange(len(rows)), self.counts.shares)


class StatesOfHistories(Mapping[str, UserState]):
    """The states of the users of a log; each is made when it is asked for."""

    def __init__(self, spec: StateSpec, histories: EncodedHistories) -> None:
        self._spec, self._histories = spec, histories
        self._places = {user: i for i, user in enumerate(histories.users.to_pylist())}

    def __getitem__(self, user: str) -> UserState:
        begin, end = self._histories.offsets[self._places[user] :][:2]

        state = self._spec.new(user, int(end - begin))
        columns = self._histories.columns.items()
        self._spec.take_up(state, {name: values[begin:end] for name, values in columns})
        return state

    @property
    def histories(self) -> EncodedHistories:
        """The log's histories, in ids."""
        return self._histories

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def identity(text: str, arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of a text and arrays, to which states belong."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
