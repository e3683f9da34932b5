"""Times against zoneinfo, and 30 named cases through the reader."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.data.times import calendar, instants, parse_date, zone
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events

ZONES = [
    "UTC", "Europe/London", "Europe/Berlin", "America/New_York", "America/Los_Angeles",
    "America/Sao_Paulo", "America/St_Johns", "America/Caracas", "Asia/Kathmandu", "Asia/Kolkata",
    "Asia/Tokyo", "Asia/Gaza", "Asia/Pyongyang", "Australia/Lord_Howe", "Australia/Adelaide",
    "Pacific/Apia", "Pacific/Chatham", "Africa/Casablanca", "Africa/Cairo", "Antarctica/Troll",
]  # fmt: skip
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def schema(**settings: object) -> EventSchema:
    return EventSchema.model_validate({"user": "u", "time": "t", "event": "e", **settings})


@pytest.mark.parametrize("name", ZONES)
def test_weekday_and_slot_agree_with_zoneinfo(name: str) -> None:
    rng = np.random.default_rng(ZONES.index(name))
    changes = zone(name).changes
    near = (rng.choice(changes, 2000) if len(changes) else np.zeros(2000, np.int64)) + rng.integers(
        -7200, 7200, 2000
    )
    seconds = np.concatenate([rng.integers(0, 4_102_444_800, 98_000), np.maximum(near, 0)])
    weekday, slot = calendar(seconds, schema(tz=name, slot_minutes=15))
    info = zoneinfo.ZoneInfo(name)
    local = [datetime.fromtimestamp(second, info) for second in seconds.tolist()]
    expected = [moment.weekday() * 96 + moment.hour * 4 + moment.minute // 15 for moment in local]
    assert np.array_equal(weekday * np.int64(96) + slot, expected)


@pytest.mark.parametrize("name", ZONES)
def test_wall_times_agree_with_zoneinfo_also_in_gaps_and_folds(name: str) -> None:
    rng = np.random.default_rng(ZONES.index(name))
    around = (
        zone(name).changes + zone(name).offsets[:-1]
        if len(zone(name).changes)
        else np.zeros(1, np.int64)
    )
    close = rng.choice(around, 5000) + rng.integers(-10_000, 10_000, 5000)
    walls = np.concatenate([rng.integers(10**8, 4_000_000_000, 5000), np.maximum(close, 10**6)])
    info = zoneinfo.ZoneInfo(name)
    # fold=0 is the earlier of two; in a gap it is the offset from before, which moves the time
    # forward.
    naive = [datetime(1970, 1, 1) + timedelta(seconds=wall) for wall in walls.tolist()]
    expected = [int(moment.replace(tzinfo=info).timestamp()) for moment in naive]
    assert np.array_equal(instants(walls * 10**6, True, schema(tz=name)) // 10**6, expected)


def test_no_zone_changes_its_offset_twice_within_the_scanning_step() -> None:
    for name in ZONES:
        assert np.diff(zone(name).changes).min(initial=10**9) > 5 * 86_400


def read(values: pa.Array | list[object], **settings: object) -> tuple[int, int, int] | str:
    """(epoch microseconds, weekday, slot) of the first value, or why it was rejected."""
    table, rejects = read_events(
        {"u": ["a"] * len(values), "t": values, "e": ["x"] * len(values)}, schema(**settings)
    )
    if not table.num_rows:
        return str(rejects["reason"][0])
    return tuple(table[name][0].as_py() for name in ("time", "weekday", "slot"))  # type: ignore[return-value]


def at(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


LONDON = {"tz": "Europe/London"}
CASES = {
    "date": (["2020-01-01"], {}, "2020-01-01T00:00+00:00", 2, 0),
    "space": (["2020-01-01 10:30:00"], {}, "2020-01-01T10:30+00:00", 2, 21),
    "T": (["2020-01-01T10:30:00"], {}, "2020-01-01T10:30+00:00", 2, 21),
    "minutes": (["2020-01-01 10:30"], {}, "2020-01-01T10:30+00:00", 2, 21),
    "fraction": (["2020-01-01 10:30:00.25"], {}, "2020-01-01T10:30:00.25+00:00", 2, 21),
    "nanoseconds": ([(
        "2020-01-01 10:30:00.123456789"
    )], {}, "2020-01-01T10:30:00.123456+00:00", 2, 21),
    "blanks": (["  2020-01-01 10:30:00 "], {}, "2020-01-01T10:30+00:00", 2, 21),
    "Z": (["2020-01-01T10:30:00Z"], {}, "2020-01-01T10:30+00:00", 2, 21),
    "z": (["2020-01-01T10:30Z"], {}, "2020-01-01T10:30+00:00", 2, 21),
    "offset": (["2020-01-01T10:30:00+02:00"], {}, "2020-01-01T08:30+00:00", 2, 17),
    "negative offset": (["2020-01-01 22:30:00-0500"], {}, "2020-01-02T03:30+00:00", 3, 7),
    "short offset": (["2020-01-01 10:30+02"], {}, "2020-01-01T08:30+00:00", 2, 17),
    "zero offset in a "
    "zone": (["2020-07-01T10:30:00+00:00"], LONDON, "2020-07-01T10:30+00:00", 2, 23),
    "Z in a zone": (["2020-07-01T10:30:00Z"], LONDON, "2020-07-01T10:30+00:00", 2, 23),
    "local summer": (["2020-07-01 10:30:00"], LONDON, "2020-07-01T09:30+00:00", 2, 21),
    "local winter": (["2020-01-01 10:30:00"], LONDON, "2020-01-01T10:30+00:00", 2, 21),
    "gap": (["2020-03-29 01:30:00"], LONDON, "2020-03-29T01:30+00:00", 6, 5),
    "fold": (["2020-10-25 01:30:00"], LONDON, "2020-10-25T00:30+00:00", 6, 3),
    "fold with offset": (["2020-10-25T01:30:00+00:00"], LONDON, "2020-10-25T01:30+00:00", 6, 3),
    "naive is UTC": ([(
        "2020-07-01 10:30:00"
    )], {**LONDON, "naive_time": "utc"}, "2020-07-01T10:30+00:00", 2, 23),
    "day never was": ([(
        "2011-12-30 12:00:00"
    )], {"tz": "Pacific/Apia"}, "2011-12-30T22:00+00:00", 5, 24),
    "half-hour saving": ([(
        "2020-04-05 01:45:00"
    )], {"tz": "Australia/Lord_Howe"}, "2020-04-04T14:45+00:00", 6, 3),
    "epoch s": ([1_577_874_600], {}, "2020-01-01T10:30+00:00", 2, 21),
    "epoch ms": ([1_577_874_600_123], {}, "2020-01-01T10:30:00.123+00:00", 2, 21),
    "epoch us": ([1_577_874_600_123_456], {}, "2020-01-01T10:30:00.123456+00:00", 2, 21),
    "epoch ns": ([1_577_874_600_123_456_789], {}, "2020-01-01T10:30:00.123456+00:00", 2, 21),
    "epoch float": ([1_577_874_600.5], {}, "2020-01-01T10:30:00.5+00:00", 2, 21),
    "epoch text": (["1577874600"], {}, "2020-01-01T10:30+00:00", 2, 21),
    "epoch ns text": (["1577874600123456789"], {}, "2020-01-01T10:30:00.123456+00:00", 2, 21),
    "epoch in a zone": ([1_593_599_400], LONDON, "2020-07-01T10:30+00:00", 2, 23),
    "unit is named": ([100_000_000], {"time_unit": "ms"}, "1970-01-02T03:46:40+00:00", 4, 7),
    "timestamp": (
        pa.array([at("2020-01-01T10:30+00:00")], pa.timestamp("us")),
        {}, "2020-01-01T10:30+00:00", 2, 21,
    ),
    "timestamp ns": (
        pa.array([at("2020-07-01T10:30+00:00") * 1000], pa.timestamp("ns")),
        LONDON, "2020-07-01T09:30+00:00", 2, 21,
    ),
    "timestamp with zone": (
        pa.array([at("2020-07-01T10:30+00:00")], pa.timestamp("us", "Asia/Tokyo")),
        LONDON, "2020-07-01T10:30+00:00", 2, 23,
    ),
    "date32": (pa.array([18_262], pa.date32()), {}, "2020-01-01T00:00+00:00", 2, 0),
}  # fmt: skip
REJECTED = {
    "null": ([None, "2020-01-01"], "time is null"),
    "empty": (["", " "], "time is null"),
    "words": (["yesterday"], "time cannot be read"),
    "leap day of 2021": (["2021-02-29"], "time cannot be read"),
    "not a number": ([float("nan"), float("inf")], "time cannot be read"),
    "infinity": (["infinity"], "time cannot be read"),
    "too early": (["1969-12-31"], "time is out of range"),
    "too late": (["2100-01-01"], "time is out of range"),
    "zero": ([0, 1_577_874_600, 1_577_874_600], "time is out of range"),
    "huge": ([2**63 - 1, 1_577_874_600, 1_577_874_600], "time is out of range"),
}


@pytest.mark.parametrize("name", CASES)
def test_time(name: str) -> None:
    values, settings, instant, weekday, slot = CASES[name]
    assert read(values, **settings) == (at(instant), weekday, slot)


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_time(name: str) -> None:
    values, reason = REJECTED[name]
    _, rejects = read_events(
        {"u": ["a"] * len(values), "t": values, "e": ["x"] * len(values)}, schema()
    )
    assert reason in rejects["reason"].to_pylist()


def test_forms_may_be_mixed_row_by_row() -> None:
    values = [
        "2020-07-01 10:30:00",
        "2020-07-01T10:30:00Z",
        "1593599400",
        "2020-07-01T10:30:00+02:00",
    ]
    table = read_events({"u": list("abcd"), "t": values, "e": ["x"] * 4}, schema(**LONDON)).table
    expected = [
        "2020-07-01T09:30+00:00",
        "2020-07-01T10:30+00:00",
        "2020-07-01T10:30+00:00",
        "2020-07-01T08:30+00:00",
    ]
    assert table["time"].to_pylist() == [at(text) for text in expected]


@pytest.mark.parametrize(
    "values", [[20200199, 20209902], [True, False], [{"a": 1}, {"a": 2}], [b"x", b"y"]]
)
def test_what_is_no_time_column_is_an_error(values: list[object]) -> None:
    with pytest.raises(DataError, match="'t'"):
        read(values)


def test_dates_of_a_zone() -> None:
    assert parse_date("2020-07-01", "Europe/London") == at("2020-06-30T23:00+00:00") // 10**6
    assert (
        parse_date("2020-07-01T00:00:00+00:00", "Europe/London")
        == at("2020-07-01T00:00+00:00") // 10**6
    )
    with pytest.raises(DataError, match="write one like"):
        parse_date("July")
