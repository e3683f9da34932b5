"""EventSchema: which columns of a log are the user, the time, the location, the event and the
behavior."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from behavegpt.config import Settings, read_settings
from behavegpt.data.labels import RULES
from behavegpt.data.time_formats import check_format
from behavegpt.errors import ConfigError
from behavegpt.paths import is_file_name

ROLES = ("user", "time", "location", "event", "behavior", "order", "group")
TIME_FIELDS = ("weekday", "slot")
READING = (*ROLES, "time_format", "time_unit", "naive_time")  # may differ from log to log
# names of columns and arguments that a prepared folder or a model has already
RESERVED = frozenset({*ROLES, *TIME_FIELDS, "split", "offsets", "input", "position", "document"})
OF_BASKETS = frozenset({"group", "basket"})  # taken where there are baskets alone


class EventSchema(Settings):
    """Columns and time rules of an event log: x = (weekday, time slot, location, event) of section
    2.2.

    Labels are text everywhere: `7`, `"7"` and a CSV's 7 are the same event, and `007` is a
    different one. 7 and 7.0 are the same if all labels of the column are numbers: `label_rules`
    defines the notation of each column.
    """

    # roles: one column each; only a time may be told in two
    user: str = Field(description="column of the user id")
    time: str = Field(
        description="column of the event's time, or two joined by +: the date's and the hour's"
    )
    event: str = Field(description="column of the event")
    location: str | None = Field(None, description="column of the location; null: the log has none")
    behavior: str | None = Field(
        None, description="column of the behavior to predict; null: the event itself"
    )
    # what is read besides by the network alone: counts know no further fields
    extra: tuple[str, ...] = Field((), description="additional categorical input columns")
    numeric: tuple[str, ...] = Field(
        (),
        description="numeric input columns, binned by quantiles of the training split",
        # not written where there is none: hashes of folders of before stay what they are
        exclude_if=lambda columns: not columns,
    )
    user_features: tuple[str, ...] = Field(
        (),
        description="categorical columns of the user table, added to each of a user's events",
        exclude_if=lambda columns: not columns,
    )
    user_numeric: tuple[str, ...] = Field(
        (),
        description="numeric columns of the user table, binned like `numeric`",
        exclude_if=lambda columns: not columns,
    )
    order: str | None = Field(
        None, description="numeric column that orders events with the same time"
    )
    group: str | None = Field(
        None,
        description="column whose values tell a user's events of one moment, such as the invoice: "
        "a set without order, of which nothing predicts another part",
        # not written where there is none: hashes of folders of before stay what they are
        exclude_if=lambda column: column is None,
    )
    tz: str = Field("UTC", description="IANA time zone used for weekday and time slot")
    naive_time: Literal["local", "utc"] = Field(
        "local", description="how to read times without a zone: in `tz`, or as UTC"
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns", "excel"] = Field(
        "auto",
        description="unit of numeric times: since 1970, or excel: days since 1899-12-30",
    )
    time_format: tuple[str, ...] = Field(
        (), description="strptime formats; none: ISO times and numbers, or guessed"
    )
    tie_seed: int = Field(
        0,
        ge=0,
        lt=1 << 63,
        description="seed for shuffling simultaneous events",
        # not written where it is 0: hashes of folders and checkpoints of before stay what they are
        exclude_if=lambda seed: seed == 0,
    )
    slot_minutes: int = Field(30, ge=1, le=1440, description="length of a time slot in minutes")
    label_rules: dict[str, str] = Field(
        {},
        description=(
            "field -> how its values are written as labels (data/labels.py); determined by prepare"
        ),
    )

    @field_validator("tz")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        # OSError: the name of a folder of zones, such as Europe
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                "not an IANA time zone; write one such as Europe/London or UTC"
            ) from None
        return value

    @field_validator("time_format", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        # one form may be written without a list, as in YAML
        return (value,) if isinstance(value, str) else value

    @field_validator("time_format")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for wrong in filter(None, map(check_format, value)):
            raise ValueError(wrong)
        return value

    @field_validator("slot_minutes")
    @classmethod
    def _whole_slots(cls, value: int) -> int:
        # else the last slot of a day would be shorter than the others
        if 1440 % value:
            raise ValueError(
                "a day of 1440 minutes must hold a whole number of slots; try 30 or 60"
            )
        return value

    @field_validator("label_rules")
    @classmethod
    def _known_rules(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(value.values()) - RULES.keys())
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a label rule; known: {', '.join(RULES)}")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> EventSchema:
        further = (*self.extra, *self.numeric, *self.features)
        free = OF_BASKETS if self.group is None else frozenset()
        taken = sorted(((RESERVED | OF_BASKETS) - free).intersection(further))
        if taken:
            raise ValueError(f"extra column {taken[0]!r} has a reserved name; rename the column")

        # each of them is a file of the prepared folder
        for name in further:
            if not is_file_name(name):
                raise ValueError(
                    f"extra column {name!r} cannot be the name of a file; rename the column"
                )

        if len(set(further)) < len(further):
            raise ValueError("an extra column, numeric column or user feature is listed twice")
        # the same name would be two things in a request, which has a user's events and features
        shared = sorted({self.user, self.time, self.event} & set(self.features))
        if shared:
            raise ValueError(f"the user feature {shared[0]!r} is also a column of the log")
        # an event that is its own time would be predicted from itself
        if len({self.user, self.time, self.event}) < 3:
            raise ValueError("user, time and event must be three different columns")
        if self.group in (self.user, self.event):
            raise ValueError(f"the group {self.group!r} is the user or the event; name another")
        if self.group is not None and self.order is not None:
            raise ValueError(
                f"order {self.order!r} tells how events of one moment follow each other, and group "
                f"{self.group!r} makes a set of them; leave one of them out"
            )
        return self

    @property
    def slots(self) -> int:
        """Time slots of a day."""
        return 1440 // self.slot_minutes

    @property
    def features(self) -> tuple[str, ...]:
        """User features: columns of the user table."""
        return (*self.user_features, *self.user_numeric)

    @property
    def has_baskets(self) -> bool:
        """Whether a user's events come in baskets, sets without order."""
        return self.group is not None

    @property
    def behavior_is_event(self) -> bool:
        """Whether the classes to predict are the events themselves."""
        return self.behavior in (None, self.event)

    @property
    def label_columns(self) -> dict[str, str]:
        """Vocabulary field -> source column, in a fixed order; `behavior` only when it is not the
        event."""
        # the order of a prepared folder's vocabularies, and of the model's inputs
        columns = {"event": self.event}
        if self.location is not None:
            columns["location"] = self.location
        if self.behavior is not None and not self.behavior_is_event:
            columns["behavior"] = self.behavior

        return columns | {name: name for name in (*self.extra, *self.numeric)}

    @property
    def roles(self) -> dict[str, str]:
        """Role -> source column of the log: user, time and the labels."""
        return {"user": self.user, "time": self.time} | self.label_columns

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Fields the model embeds, in the order of eq. 2: location, weekday, slot, event, then the
        extra and the numeric ones."""
        location = () if self.location is None else ("location",)
        return (*location, *TIME_FIELDS, "event", *self.extra, *self.numeric)


def renamed(schema: EventSchema, changes: Mapping[str, Any]) -> EventSchema:
    """The schema for a log with other column names, or times in another form, than the one that it
    was made for.

    `changes` holds columns by role, `time_format`, `time_unit` or `naive_time`. Raises ConfigError
    for another setting, and for a role that the schema does not have.
    """
    for name in changes:
        if name not in READING:
            raise ConfigError(
                f"{name} is part of the model; only {', '.join(READING)} may differ in another log."
            )

        absent = (
            schema.behavior_is_event
            if name == "behavior"
            else name in ROLES and getattr(schema, name) is None
        )
        if absent:
            raise ConfigError(f"the model has no {name}; remove --{name}.")

    settings = {**schema.model_dump(), **changes}
    # else the model's column of the event would count as a behavior of its own under another name
    if schema.behavior_is_event:
        settings["behavior"] = None

    try:
        return EventSchema.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "columns"
        raise ConfigError(f"{where} = {first['input']!r}: {first['msg']}.") from None


def read_schema(path: str | Path) -> EventSchema:
    """A schema from YAML; raises ConfigError naming the file and the setting."""
    return read_settings(EventSchema, path)
