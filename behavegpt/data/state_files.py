"""The states of users on disk, without their histories.

FOLDER/users.safetensors   the states of U users, each array one after the other
FOLDER/users.json          the users, in that order, and what the states belong to
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from behavegpt.checksums import MANIFEST, Damage, is_sealed, seal, verify
from behavegpt.data.memory_past import CLASSES, ENTRIES, EXPERTS, new_past
from behavegpt.data.memory_state import (
    BY_CLASS,
    BY_ENTRY,
    CONTEXTS,
    FIXED,
    ROOM,
    pack,
    unpack,
)
from behavegpt.data.user_state import StateSpec, UserState
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.io import read_json, scratch, write_json

FORMAT = 1
ARRAYS, DESCRIPTION = "users.safetensors", "users.json"
REMEDY = "put the folder's files back as they were written, or save the states again"


class KeptStates(Mapping[str, UserState]):
    """The states of a folder by user; each is made when it is asked for, and changes nothing that
    is kept."""

    def __init__(
        self, users: Sequence[str], arrays: Mapping[str, np.ndarray], belongs_to: str
    ) -> None:
        self._belongs_to = belongs_to
        self._place = {user: i for i, user in enumerate(users)}
        self._arrays = arrays

        # how many rows of each array a state has
        counts: dict[str, np.ndarray] = {}
        if "number" in arrays:
            number = arrays["number"]
            counts = dict.fromkeys(BY_CLASS, number[:, CLASSES])
            counts |= dict.fromkeys(BY_ENTRY, number[:, ENTRIES])
            counts |= dict.fromkeys(CONTEXTS, arrays["contexts"].sum(axis=1))

        if "recent" in arrays:
            counts["recent"] = arrays["recent_events"]

        self._offsets = {name: np.append(0, np.cumsum(count)) for name, count in counts.items()}

    def __getitem__(self, user: str) -> UserState:
        i = self._place[user]
        # of one user only: a service holds the arrays of millions
        kept = {
            name: self._arrays[name][ends[i] : ends[i + 1]] for name, ends in self._offsets.items()
        }

        # stored event by event, kept column by column
        recent = kept.pop("recent", np.empty((0, 0), np.uint32)).T.copy()
        if kept:
            kept |= {name: self._arrays[name][i] for name in (*FIXED, "contexts")}

        past = unpack(kept) if kept else None
        return UserState(user, self._belongs_to, int(self._arrays["events"][i]), past, recent)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def write_states(folder: Path, states: Sequence[UserState], spec: StateSpec) -> None:
    """Write the states of distinct users into a folder that is sealed afterwards."""
    arrays = {"events": np.array([state.events for state in states], np.int64)}
    # the counts of a model with memory, and the window of one with an encoder
    if spec.counts is not None:
        arrays |= _packed(states)

    if spec.window:
        # event by event, so that states of different lengths lie one after the other
        recent = [state.recent.T for state in states]
        arrays["recent_events"] = np.array([len(part) for part in recent], np.int64)
        # the empty array: a folder of no states has the column all the same
        arrays["recent"] = np.concatenate([*recent, np.empty((0, len(spec.columns)), np.uint32)])

    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / ARRAYS)

    users = [state.user for state in states]
    write_json(folder / DESCRIPTION, {**_description(spec), "users": users})


def _packed(states: Sequence[UserState]) -> dict[str, np.ndarray]:
    """The pasts of states, one after the other."""
    packed = [pack(state.past) for state in states if state.past is not None]
    # a folder without states still tells its arrays
    packed = packed or [pack(new_past(ROOM))]

    whole = (*FIXED, "contexts")  # of one shape for all states
    arrays = {}
    for name in packed[0]:
        of_states = [kept[name] for kept in packed]
        arrays[name] = np.stack(of_states) if name in whole else np.concatenate(of_states)
    return arrays


def _description(spec: StateSpec) -> dict[str, Any]:
    """What must be the same where states are read."""
    experts = [] if spec.counts is None else list(EXPERTS)

    described = {"format": FORMAT, "experts": experts, "belongs_to": spec.belongs_to}
    return described | ({"columns": list(spec.columns)} if spec.window else {})


def read_states(folder: Path, spec: StateSpec) -> KeptStates:
    """The states of a folder whose sums are right. Raises CheckpointError where they belong to
    another model or other tables."""
    described = read_json(folder / DESCRIPTION, CheckpointError, REMEDY)
    # what is left must be the same as here, name by name
    users = described.pop("users", None)

    if described != _description(spec):
        raise CheckpointError(
            f"{folder}: states of other tables or experts, or of another model (its vocabulary, "
            "window or counts differ); read the users' histories again."
        )
    try:
        return KeptStates(users, load_file(folder / ARRAYS), spec.belongs_to)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ARRAYS}: no states ({error}); {REMEDY}.") from None


def holds_states(folder: Path) -> bool:
    """Whether a folder is one that `save_states` wrote: states and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return DESCRIPTION in names and names <= {ARRAYS, DESCRIPTION, MANIFEST}


def refuse_used(folder: Path) -> None:
    """Raise ConfigError for a folder that holds anything but states."""
    # a folder that is empty may have been made for this
    used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if used and not holds_states(folder):
        raise ConfigError(f"{folder}: exists and holds no states; name another folder.")


def save_states(folder: Path, states: Sequence[UserState], spec: StateSpec) -> None:
    """Write states as a folder of their own. Replaces one of the kind, nothing else.

    Raises ConfigError for a folder of something else.
    """
    refuse_used(folder)
    with scratch(folder) as temporary:
        write_states(temporary, states, spec)
        seal(temporary)


def load_states(folder: Path, spec: StateSpec) -> KeptStates:
    """What `save_states` wrote. Raises CheckpointError where it is damaged or another model's."""
    if is_sealed(folder):
        verify(folder, Damage(CheckpointError, REMEDY))
    return read_states(folder, spec)
