"""What is known of the event that is predicted, beside the past: nothing, its time, its place.

A position t asks for the behavior of event t + 1. With its time given, everything that looks at the
weekday and the slot of event t looks at those of event t + 1 instead; with its location given, the
same holds of the place. So columns in which these fields stand one event earlier are all that
counting needs: whatever counts them counts what followed at that hour, at that place. The context
of an event with its place becomes the place alone: the event before was elsewhere.

Shapes: U histories of E events in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import ConfigError

Given = Literal["time", "location"]
GIVEN: tuple[str, ...] = get_args(Given)
FIELDS = {"time": ("weekday", "slot"), "location": ("location",)}
Moment = Mapping[str, np.ndarray]  # field -> ids (U,) of the events to be predicted


def given_fields(given: Sequence[str]) -> tuple[str, ...]:
    """The fields of the target that are known."""
    return tuple(field for name in given for field in FIELDS[name])


def in_order(given: Sequence[str]) -> tuple[str, ...]:
    """The names of GIVEN among some, each once, in the order of GIVEN."""
    return tuple(name for name in GIVEN if name in given)


def check_names(given: Sequence[str]) -> tuple[str, ...]:
    """The names in the order of GIVEN. Raises ConfigError for one that is none of them."""
    names = (given,) if isinstance(given, str) else tuple(given)

    strange = next((name for name in names if name not in GIVEN), None)
    if strange is not None:
        raise ConfigError(f"given: {str(strange)[:60]!r} is none of {', '.join(GIVEN)}.")
    return in_order(names)


def describe(given: Sequence[str]) -> str:
    """What the target's own time and place are to a model, for protocols and tables."""
    known = " and ".join(in_order(given))

    hidden = " and ".join(name for name in GIVEN if name not in given)
    if not known:
        return "next behavior from past events alone; the target's own time and place are hidden"

    told = f"next behavior from past events and the target's own {known}, which "
    told += "are given" if len(in_order(given)) > 1 else "is given"

    return told + (f"; its {hidden} is hidden" if hidden else "")


def check_schema(given: Sequence[str], schema: EventSchema) -> None:
    """Raise ConfigError for the place of an event in a log without places."""
    if "location" in given and schema.location is None:
        raise ConfigError(
            "given location: the log has no location, so no event has a place that could be given; "
            "give the time alone (given: [time]), or prepare the log with --location COLUMN."
        )


def moved(
    columns: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    given: Sequence[str],
    asked: Moment | None = None,
) -> dict[str, np.ndarray]:
    """Columns (E,) in which the given fields of each event are those of the user's next one.

    At the last event of history u they are `asked` (U,), or stay as they are. A field that the
    columns lack is left out.
    """
    shifted = dict(columns)
    if "location" in given:
        # the context of event and place becomes the place alone: the event before was elsewhere
        shifted["event"] = np.full_like(columns["event"], FIRST)

    occupied = np.diff(offsets) > 0  # histories with events  # (U,)
    last = offsets[1:][occupied] - 1  # (u,) of those that have events

    for field in given_fields(given):
        if field not in columns:
            continue

        values = np.asarray(columns[field])  # (E,)
        following = np.append(values[1:], values[-1:])
        following[last] = values[last]  # not the next user's first
        if asked is not None:
            following[last] = asked[field][occupied]

        shifted[field] = following

    return shifted
