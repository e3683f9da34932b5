"""EventSchema: which columns of a log are the user, the time, the location, the event and the behavior."""

from __future__ import annotations

import zoneinfo
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from behavegpt.config import Settings, read_settings
from behavegpt.io import is_file_name

ROLES = ("user", "time", "location", "event", "behavior", "order")
TIME_FIELDS = ("weekday", "slot")
RESERVED = frozenset({*ROLES, *TIME_FIELDS, "split", "offsets", "input", "position", "document"})


class EventSchema(Settings):
    """Columns and time rules of an event log: x = (weekday, time slot, location, event) of section 2.2.

    Labels are text everywhere: `7`, `"7"` and a CSV's 7 are the same event, and `007` is another one.
    """

    user: str = Field(description="column of the user id")
    time: str = Field(description="column of the event's time: timestamp, ISO text or epoch number")
    event: str = Field(description="column of the event")
    location: str | None = Field(None, description="column of the location; null: the log has none")
    behavior: str | None = Field(None, description="column of the behavior to predict; null: the event itself")
    extra: tuple[str, ...] = Field((), description="further categorical input columns")
    order: str | None = Field(None, description="numeric column that orders events with the same time")
    tz: str = Field("UTC", description="IANA zone in which weekday and slot are told")
    naive_time: Literal["local", "utc"] = Field("local", description="what a time without zone means")
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field("auto", description="unit of epoch numbers")
    slot_minutes: int = Field(30, ge=1, le=1440, description="length of a time slot in minutes")

    @field_validator("tz")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not an IANA time zone; write one like Europe/London or UTC") from None
        return value

    @field_validator("slot_minutes")
    @classmethod
    def _whole_slots(cls, value: int) -> int:
        if 1440 % value:
            raise ValueError("a day of 1440 minutes must hold a whole number of slots; try 30 or 60")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> EventSchema:
        taken = sorted(RESERVED.intersection(self.extra))
        if taken:
            raise ValueError(f"extra column {taken[0]!r} has a reserved name; rename the column")
        for name in self.extra:
            if not is_file_name(name):
                raise ValueError(f"extra column {name!r} cannot be the name of a file; rename the column")
        if len(set(self.extra)) < len(self.extra):
            raise ValueError("an extra column is named twice")
        if len({self.user, self.time, self.event}) < 3:
            raise ValueError("user, time and event must be three different columns")
        return self

    @property
    def slots(self) -> int:
        """Time slots of a day."""
        return 1440 // self.slot_minutes

    @property
    def behavior_is_event(self) -> bool:
        """Whether the classes to predict are the events themselves."""
        return self.behavior in (None, self.event)

    @property
    def label_columns(self) -> dict[str, str]:
        """Vocabulary field -> source column, in a fixed order; `behavior` only when it is not the event."""
        columns = {"event": self.event}
        if self.location is not None:
            columns["location"] = self.location
        if self.behavior is not None and not self.behavior_is_event:
            columns["behavior"] = self.behavior
        return columns | {name: name for name in self.extra}

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Fields the model embeds, in the order of eq. 2: location, weekday, slot, event, then the extra ones."""
        location = () if self.location is None else ("location",)
        return (*location, *TIME_FIELDS, "event", *self.extra)


def read_schema(path: str | Path) -> EventSchema:
    """A schema from YAML; raises ConfigError naming the file and the setting."""
    return read_settings(EventSchema, path)
