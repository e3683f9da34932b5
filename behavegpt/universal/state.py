"""The states of users: their pasts as counts, enough to predict what follows, kept on disk without
their events.

FOLDER/users.safetensors   the pasts of U users, each array one after the other
FOLDER/users.json          the users, in that order, and what the states belong to
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from behavegpt.data.memory_past import EXPERTS, Past, new_past
from behavegpt.data.memory_state import (
    BY_CLASS,
    BY_ENTRY,
    CONTEXTS,
    FIXED,
    ROOM,
    extend,
    pack,
    unpack,
)
from behavegpt.data.memory_tables import Columns, Tables
from behavegpt.errors import CheckpointError
from behavegpt.io import read_json, write_json

FORMAT = 1
ARRAYS, DESCRIPTION = "users.safetensors", "users.json"
REMEDY = "put the folder's files back as they were written, or save the states again"


@dataclass
class UserState:
    """A user's past; `update` changes it in place."""

    user: str
    past: Past
    events: int  # that were taken up, those of unknown behavior included

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, without what all states share."""
        return sum(array.nbytes for name, array in self.past._asdict().items() if name != "fading")

    @property
    def time(self) -> int | None:
        """Epoch seconds of the last event; None before the first."""
        return int(self.past.number[3]) if self.events else None

    def take_up(self, tables: Tables, columns: Columns, given: Sequence[str] = ()) -> None:
        """Count events that come after all others, in their order; `given`: known of each before
        it came."""
        self.past = extend(self.past, tables, columns, given)
        self.events += len(columns.behavior)


def new_state(user: str, events: int = 0) -> UserState:
    """The state of a user without events, with room for some."""
    return UserState(user, new_past(max(ROOM, events)), 0)


class KeptStates(Mapping[str, UserState]):
    """The states of a folder by user; each is made when it is asked for, and changes nothing that
    is kept."""

    def __init__(self, users: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        self._place = {user: i for i, user in enumerate(users)}
        self._arrays = arrays
        number = arrays["number"]
        counts = dict.fromkeys(BY_CLASS, number[:, 1]) | dict.fromkeys(BY_ENTRY, number[:, 2])
        counts |= dict.fromkeys(CONTEXTS, arrays["contexts"].sum(axis=1))
        self._offsets = {name: np.append(0, np.cumsum(count)) for name, count in counts.items()}

    def __getitem__(self, user: str) -> UserState:
        i = self._place[user]
        kept = {name: self._arrays[name][i] for name in (*FIXED, "contexts")}
        kept |= {
            name: self._arrays[name][ends[i] : ends[i + 1]] for name, ends in self._offsets.items()
        }
        return UserState(user, unpack(kept), int(self._arrays["events"][i]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def write_states(folder: Path, states: Sequence[UserState], belongs_to: str) -> None:
    """Write the states of distinct users into a folder that is sealed afterwards; `belongs_to`
    names their tables."""
    packed = [pack(state.past) for state in states] or [pack(new_past(ROOM))]
    arrays = {name: np.stack([kept[name] for kept in packed]) for name in (*FIXED, "contexts")}
    arrays |= {
        name: np.concatenate([kept[name] for kept in packed])
        for name in (*BY_CLASS, *BY_ENTRY, *CONTEXTS)
    }
    arrays["events"] = np.array([state.events for state in states], np.int64)
    save_file(arrays, folder / ARRAYS)
    users = [state.user for state in states]
    write_json(
        folder / DESCRIPTION,
        {"format": FORMAT, "experts": list(EXPERTS), "belongs_to": belongs_to, "users": users},
    )


def read_states(folder: Path, belongs_to: str) -> KeptStates:
    """The states of a folder whose sums are right. Raises CheckpointError where they belong to
    other tables."""
    described = read_json(folder / DESCRIPTION, CheckpointError, REMEDY)
    expected = {"format": FORMAT, "experts": list(EXPERTS), "belongs_to": belongs_to}
    if {name: described.get(name) for name in expected} != expected:
        raise CheckpointError(
            f"{folder}: states of other tables or experts; read the users' histories again."
        )
    try:
        return KeptStates(described["users"], load_file(folder / ARRAYS))
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ARRAYS}: no states ({error}); {REMEDY}.") from None
