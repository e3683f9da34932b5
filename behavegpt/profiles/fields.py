"""Declared fields of a sequence, their SQL, and the vocabularies that are fitted on them.

Ids of every field: 0 pad, 1 start, 2 end, 3 missing (the event has no such thing), 4 rare (not in
the vocabulary), 5... values by frequency. Values never share an id with these five.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np
from pydantic import Field, field_validator

from behavegpt.config import Settings, closest
from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.errors import DataError
from behavegpt.profiles.events import EventTables, among, columns

PAD, START, END, MISSING, RARE, FIRST = range(6)

# field -> SQL of its value. `$days` are whole days since the first day of the fitted history.
VALUES = {
    "event": "e.event",
    "category": "p.category",
    "price": "p.price",
    "sku": "e.sku",
    "url": "e.url",
    "day": "$days",
    "week": "$days // 7",  # from the first day on: no break at new year
    "weekday": "isodow(e.moment) - 1",
    "hour": "hour(e.moment)",
    "time": "epoch(e.moment)::BIGINT",
}
CODES = {"name": "p.name", "query": "e.query"}  # lists: each code becomes a token of its own
# field -> number of its values, whatever the data: no value can be out of vocabulary
FIXED = {"event": len(EVENTS), "weekday": 7, "hour": 24}
RAW = ("time",)  # stored as it is (epoch seconds, uint32), without a vocabulary
FIELD_NAMES = (*VALUES, *CODES)


class FieldSpec(NamedTuple):
    """`sku:5000` keeps the 5,000 most frequent values, `url:min10` those seen at least 10 times,
    `url` all."""

    name: str
    top: int | None = None
    least: int = 1


class SequenceSettings(Settings):
    """Which events and fields make up a sequence."""

    fields: tuple[str, ...] = Field(
        description="name, name:TOP or name:minN, for example [week, event, sku:5000]"
    )
    events: tuple[EventName, ...] = Field(EVENTS, description="event types that are merged")
    last: int | None = Field(
        None, ge=1, description="events (or code tokens) kept for each client, the newest"
    )
    clients: Literal["asked", "all"] = Field(
        "asked", description="whose events: those of data.clients, or everybody's"
    )

    @field_validator("fields")
    @classmethod
    def _known(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        names = [parse_field(text).name for text in fields]
        if not names or len(set(names)) != len(names):
            raise ValueError("name at least one field, each once")
        if sum(name in CODES for name in names) > 1:
            raise ValueError("name and query cannot be tokens of one sequence")
        return fields

    @property
    def specs(self) -> tuple[FieldSpec, ...]:
        return tuple(parse_field(text) for text in self.fields)


@dataclass(frozen=True)
class Vocabularies:
    """Values (V,) int64 by field, most frequent first: value v has the id FIRST + its position."""

    values: Mapping[str, np.ndarray]
    anchor: str  # ISO date of day 0

    @property
    def sizes(self) -> dict[str, int]:
        """Field -> number of ids."""
        return {name: FIRST + len(values) for name, values in self.values.items()}

    @property
    def digest(self) -> str:
        # the order counts: it gives the ids
        digest = hashlib.sha256(self.anchor.encode())
        for name, values in self.values.items():
            digest.update(name.encode() + values.astype(np.int64).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        from safetensors.numpy import save_file

        names = json.dumps(list(self.values))  # safetensors sorts the arrays by name
        save_file(
            {n: np.ascontiguousarray(v) for n, v in self.values.items()},
            path,
            {"anchor": self.anchor, "names": names},
        )

    @classmethod
    def load(cls, path: Path) -> Vocabularies:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            return cls(
                {name: file.get_tensor(name) for name in json.loads(metadata["names"])},
                metadata["anchor"],
            )


def parse_field(text: str) -> FieldSpec:
    """Read `name`, `name:TOP` or `name:minN`. Raises ValueError."""
    name, _, limit = text.partition(":")
    if name not in FIELD_NAMES:
        raise ValueError(f"{name!r} is not a field. {closest(name, FIELD_NAMES)}")
    if not limit:
        return FieldSpec(name)

    match = re.fullmatch(r"(min)?([1-9]\d*)", limit)
    if not match:
        raise ValueError(
            f"{text!r}: write {name}:5000 (most frequent) or {name}:min10 (seen at least 10 times)"
        )

    return FieldSpec(name, least=int(match[2])) if match[1] else FieldSpec(name, top=int(match[2]))


def fit_vocabularies(tables: EventTables, settings: SequenceSettings, spill: Path) -> Vocabularies:
    """Count the values of each field in the chosen events. Missing values take no place of
    `top`."""
    with tables.connect(spill) as con:
        first, days = _calendar(con, settings)
        values = {
            spec.name: _values(con, settings, spec, first, days)
            for spec in settings.specs
            if spec.name not in RAW
        }

    return Vocabularies(values, first.isoformat())


def _calendar(
    con: duckdb.DuckDBPyConnection, settings: SequenceSettings
) -> tuple[datetime.date, int]:
    """First day of the chosen events and the number of days up to the last. Raises DataError when
    there are none."""
    query = (
        "SELECT min(moment)::DATE, max(moment)::DATE FROM events WHERE event IN "
        f"({among(settings.events)})"
    )
    first, last = con.execute(query).fetchall()[0]
    if first is None:
        raise DataError(
            f"no events of the types {', '.join(settings.events)}; choose others in `events`."
        )

    return first, (last - first).days + 1


def _values(
    con: duckdb.DuckDBPyConnection,
    settings: SequenceSettings,
    spec: FieldSpec,
    first: datetime.date,
    days: int,
) -> np.ndarray:
    """Values (V,) int64 of one field: a fixed range, or what occurs, by frequency and then by
    value."""
    # day and week are numbered without gaps: a date without events has an id all the same
    ranges = FIXED | {"day": days, "week": (days + 6) // 7}
    if spec.name in ranges:
        return np.arange(ranges[spec.name], dtype=np.int64)

    value = (
        f"unnest({CODES[spec.name]})"
        if spec.name in CODES
        else value_sql(spec.name, first.isoformat())
    )
    # ties by value: the order of DuckDB's groups changes from run to run
    query = f"""
        SELECT value::BIGINT AS value
        FROM (SELECT {value} AS value FROM {source_sql(settings, [spec.name])})
        WHERE value IS NOT NULL GROUP BY value HAVING count(*) >= {spec.least}
        ORDER BY count(*) DESC, value {f"LIMIT {spec.top}" if spec.top else ""}"""
    return columns(con, query)["value"].astype(np.int64)


def value_sql(name: str, anchor: str) -> str:
    """SQL of a field's value; `anchor` is the ISO date of day 0."""
    return VALUES[name].replace("$days", f"date_diff('day', DATE '{anchor}', e.moment::DATE)")


def source_sql(settings: SequenceSettings, names: Sequence[str]) -> str:
    """SQL: the chosen events `e`, with the properties `p` of their product where a field needs
    them."""
    whose = "SEMI JOIN clients c ON c.client = e.client" if settings.clients == "asked" else ""
    products = (
        "LEFT JOIN properties p ON p.sku = e.sku"
        if {"category", "price", "name"} & set(names)
        else ""
    )
    chosen = f"(SELECT e.* FROM events e {whose} WHERE e.event IN ({among(settings.events)}))"

    return f"{chosen} e {products}"
