"""All that an ensemble has fitted, and the file it is kept in, so that new clients are embedded the
same way.

state.safetensors   MEMBER/STEP/ARRAY, MEMBER/imputed, +stack/ARRAY, +after/STEP/ARRAY
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from behavegpt.errors import DataError
from behavegpt.profiles.members import Step
from behavegpt.profiles.transforms import State, width_after

STATE = "state.safetensors"
AFTER, STACK = "+after", "+stack"  # no member has such a name


class Steps(NamedTuple):
    """Steps and what each has fitted."""

    steps: tuple[Step, ...]
    states: list[State]


class FittedMember(NamedTuple):
    """A member's steps, and the row (D',) after them that stands for a client without it."""

    post: Steps
    imputed: np.ndarray


class Fitted(NamedTuple):
    """All that an ensemble has fitted, members in the order of their columns."""

    members: dict[str, FittedMember]
    after: Steps
    stack: State | None = None

    @property
    def width(self) -> int:
        """Columns of the entry."""
        joined = sum(len(one.imputed) for one in self.members.values())
        stacked = joined if self.stack is None else len(self.stack["layer.bias"])
        return width_after(self.after.steps, stacked)


def save_fitted(fitted: Fitted, folder: Path) -> None:
    """Write FOLDER/state.safetensors."""
    from safetensors.numpy import save_file

    arrays = {f"{name}/imputed": one.imputed for name, one in fitted.members.items()}
    arrays |= {f"{STACK}/{array}": values for array, values in (fitted.stack or {}).items()}

    steps = {name: one.post for name, one in fitted.members.items()} | {AFTER: fitted.after}
    for name, (_, states) in steps.items():
        for number, state in enumerate(states):
            arrays |= {f"{name}/{number}/{array}": values for array, values in state.items()}

    save_file(
        {name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / STATE
    )


def load_fitted(
    steps: Mapping[str, tuple[Step, ...]], after: tuple[Step, ...], folder: Path
) -> Fitted:
    """Read what `save_fitted` wrote, for members in the order of `steps`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder / STATE}: cannot be read ({error}); build the ensemble again."
        ) from None

    def fitted_steps(name: str, post: tuple[Step, ...]) -> Steps:
        states: list[State] = [{} for _ in post]
        for path, values in arrays.items():
            # names of members hold no slash, see ProfileSettings
            member, *rest = path.split("/")
            if member == name and len(rest) == 2:
                number, array = int(rest[0]), rest[1]
                states[number] = {**states[number], array: values}
        return Steps(post, states)

    members = {
        name: FittedMember(fitted_steps(name, post), arrays[f"{name}/imputed"])
        for name, post in steps.items()
    }
    prefix = f"{STACK}/"
    stack = {path.removeprefix(prefix): arrays[path] for path in arrays if path.startswith(prefix)}
    return Fitted(members, fitted_steps(AFTER, after), stack or None)
