"""What callers say of the events that they ask about: a time, a place, for all users or for each.

>>> model.predict(log, at="2026-11-28 18:30", location="home")                  # doctest: +SKIP
>>> model.predict(log, at={"7": "2026-11-28 18:30", "8": "2026-11-28 19:00"})   # doctest: +SKIP

Shapes: U users.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from behavegpt.data.given import GIVEN, check_schema, in_order
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import calendar, parse_date
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import ConfigError, DataError
from behavegpt.ingest.plan import TIME_RANGE


class HasUnknown(Protocol):
    """A dataclass that counts labels that the vocabulary does not hold."""

    @property
    def unknown(self) -> dict[str, int]: ...


T = TypeVar("T", bound=HasUnknown)
NAMES = {"time": "at", "location": "location"}  # what is given -> the argument that tells it
OPTIONS = {"at": "--at TIME", "location": "--location-now PLACE"}
EXAMPLES = {"at": '"2026-11-28 18:30"', "location": '"home"'}


def named_given(at: Any, location: Any) -> tuple[str, ...]:
    """What the arguments of a prediction give."""
    values = {"time": at, "location": location}
    return tuple(name for name in GIVEN if values[name] is not None)


def check_asked(given: Sequence[str], at: Any, location: Any, whose: str, remedy: str) -> None:
    """Raise ConfigError unless the arguments tell what a model is given, and nothing else.

    `whose`: the model, in words; `remedy`: how to get one that is given something else.
    """
    named = named_given(at, location)

    # what is missing first: without it there is no answer at all
    for name in in_order(given):
        if name not in named:
            argument = NAMES[name]
            raise ConfigError(
                f"{whose} is given the {' and '.join(in_order(given))} of the event that it "
                f"predicts: say which {name} is asked about, {argument}={EXAMPLES[argument]}. "
                f"On the command line: {OPTIONS[argument]}."
            )

    # a value that a model does not look at would be taken for one that it does
    for name in named:
        if name not in given:
            argument = NAMES[name]
            known = f"the {' and '.join(given)} alone" if given else "nothing"
            raise ConfigError(
                f"{whose} is given {known} of the event that it predicts, so `{argument}` would "
                f"change nothing; remove it, or {remedy}. On the command line it is "
                f"{OPTIONS[argument]}."
            )


def read_asked(
    tokenizer: EventTokenizer,
    users: pa.StringArray,
    at: Any = None,
    location: Any = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Ids (U,) int64 of the fields that are told of each user's next event, and how many places the
    vocabulary does not hold.

    `at`, `location`: one value for all users, a mapping of user to value, or a list of U values in
    the order of the users. Of a time only the weekday and the slot count. Raises DataError for a
    user without a value, and for a value that cannot be read.
    """
    schema = tokenizer.event_schema
    check_schema(named_given(None, location), schema)

    asked: dict[str, np.ndarray] = {}
    unknown = 0

    # one parse for each different value: thousands of users are often asked about one time
    if at is not None:
        values = _by_user(at, users, "at")
        seconds = {key: seconds_of(value, schema) for key, value in _distinct(values).items()}
        moments = np.array([seconds[_key(value)] for value in values], np.int64)
        weekday, slot = calendar(moments, schema)
        asked |= {"weekday": weekday.astype(np.int64), "slot": slot.astype(np.int64)}

    if location is not None:
        # a place that training never saw is unknown, as it would be in a log; the caller tells how
        # many
        labels = [_label(value) for value in _by_user(location, users, "location")]
        asked["location"] = tokenizer.vocabulary["location"].encode(pa.array(labels, pa.string()))
        unknown = int((asked["location"] == UNKNOWN).sum())

    return asked, unknown


def count_unknown(asked: T, places: int) -> T:
    """Histories, or who is asked about, with unknown places among the unknown labels."""
    if not places:
        return asked
    unknown = asked.unknown | {"location": asked.unknown.get("location", 0) + places}
    return dataclasses.replace(asked, unknown=unknown)  # type: ignore[type-var]


def _by_user(given: Any, users: pa.StringArray, argument: str) -> list[Any]:
    """A value for each user."""
    names = users.to_pylist()
    if isinstance(given, Mapping):
        by_name = {str(user): value for user, value in given.items()}
        # a name that nobody has is a mistake, and whoever was meant would get no value
        strange = next((user for user in by_name if user not in set(names)), None)
        if strange is not None:
            raise DataError(f"{argument}: no user {strange[:100]!r} among those asked about.")
        given = [by_name.get(name) for name in names]
    elif not isinstance(given, (list, tuple, np.ndarray)):
        return [given] * len(names)

    values = list(given)
    if len(values) != len(names):
        raise DataError(
            f"{argument}: {len(values)} values for {len(names)} users; give one for all, a mapping "
            "of user to value, or one for each user in the order of their names."
        )

    missing = next((name for name, value in zip(names, values, strict=True) if value is None), None)
    if missing is not None:
        raise DataError(
            f"user {missing[:100]!r}: no `{argument}`; the model is given it, so tell it for "
            "every user."
        )
    return values


def _distinct(values: Sequence[Any]) -> dict[str, Any]:
    return {_key(value): value for value in values}


def _key(value: Any) -> str:
    # with its type: the text "1" and the number 1 are not the same value
    return f"{type(value).__name__} {value}"


def seconds_of(value: Any, schema: EventSchema, argument: str = "at") -> int:
    """Epoch seconds of a time: ISO text, a datetime or a date of pandas or numpy. Raises
    DataError, naming the argument."""
    # whole seconds: nothing below a slot decides anything
    if isinstance(value, np.datetime64):
        value = str(value.astype("datetime64[s]"))
    if isinstance(value, datetime.date):  # a datetime is one too
        value = value.isoformat()

    if not isinstance(value, str):
        raise DataError(
            f"{argument}: {str(value)[:60]!r} is a {type(value).__name__}; write a time like "
            "2026-11-28 18:30."
        )

    try:
        seconds = parse_date(value, schema.tz if schema.naive_time == "local" else "UTC")
    except DataError:
        raise DataError(
            f"{argument}: {value[:60]!r} is not a time; write one like 2026-11-28 18:30, a wall "
            f"clock of "
            f"{schema.tz if schema.naive_time == 'local' else 'UTC'}, or with its zone."
        ) from None

    # the range of `prepare`: a year that was mistyped lies far outside
    if not parse_date(TIME_RANGE[0]) <= seconds < parse_date(TIME_RANGE[1]):
        raise DataError(
            f"{argument}: {value[:60]!r} is outside {TIME_RANGE[0]} to {TIME_RANGE[1]}."
        )
    return seconds


def _label(value: Any) -> str:
    """A place as its label. Raises DataError."""
    # a float has several spellings, and labels are text
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (str, int, np.integer)):
        raise DataError(
            f"location: {str(value)[:60]!r} is a {type(value).__name__}; write the place as it "
            "stands in the log, as text or a whole number."
        )
    if value == "":
        raise DataError("location: empty place; write one that occurs in the log.")

    return str(value)
