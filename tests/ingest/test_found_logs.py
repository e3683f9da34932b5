"""Logs as tools write them: the dry run guesses their columns, says what the run will do, and the
run does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.prepare import prepare, preview

ROWS = 400
RNG = np.random.default_rng(0)
USERS = [f"u{i:02}" for i in RNG.integers(0, 25, ROWS)]
TIMES = pd.Series(
    pd.Timestamp("2024-03-01 06:00")
    + pd.to_timedelta(np.sort(RNG.integers(0, 60 * 86_400, ROWS)), "s")
)
UNIQUE = [f"{i:08x}-aa" for i in range(ROWS)]


def pick(*labels: str) -> list[str]:
    return [labels[i] for i in RNG.integers(0, len(labels), ROWS)]


def written(form: str) -> list[str]:
    return TIMES.dt.strftime(form).tolist()


NOTHING = [None] * ROWS
SECONDS = [int(t.timestamp()) for t in TIMES]
LOGS: dict[str, tuple[str, dict[str, Any], dict[str, str | None]]] = {
    "ga4": (
        "log.parquet",
        {
            "event_date": written("%Y%m%d"),
            "event_timestamp": [s * 10**6 for s in SECONDS],
            "event_name": pick("page_view", "scroll", "purchase"),
            "user_id": NOTHING,
            "user_pseudo_id": USERS,
            "platform": pick("WEB", "IOS"),
            "stream_id": [1] * ROWS,
        },
        {"user": "user_pseudo_id", "time": "event_timestamp", "event": "event_name"},
    ),
    "snowplow": (
        "log.csv",
        {
            "app_id": ["shop"] * ROWS,
            "platform": pick("web", "mob"),
            "etl_tstamp": written("%Y-%m-%d %H:%M:%S.123"),
            "collector_tstamp": written("%Y-%m-%d %H:%M:%S.120"),
            "dvce_created_tstamp": NOTHING,
            "event": pick("page_view", "page_ping", "struct"),
            "event_id": UNIQUE,
            "user_id": NOTHING,
            "domain_userid": USERS,
            "geo_country": pick("DE", "US"),
        },
        {
            "user": "domain_userid",
            "time": "collector_tstamp",
            "event": "event",
            "location": "geo_country",
        },
    ),
    "mixpanel": (
        "log.jsonl",
        {
            "event": pick("Sign Up", "Play", "Pause"),
            "time": SECONDS,
            "distinct_id": USERS,
            "$insert_id": UNIQUE,
            "$browser": pick("Chrome", "Safari"),
        },
        {"user": "distinct_id", "time": "time", "event": "event"},
    ),
    "segment": (
        "log.jsonl",
        {
            "messageId": UNIQUE,
            "type": pick("track", "page", "identify"),
            "userId": [u if i % 3 == 0 else None for i, u in enumerate(USERS)],
            "anonymousId": USERS,
            "event": [None if i % 3 else "Clicked" for i in range(ROWS)],
            "timestamp": written("%Y-%m-%dT%H:%M:%S.123Z"),
            "receivedAt": written("%Y-%m-%dT%H:%M:%S.456Z"),
        },
        {"user": "anonymousId", "time": "timestamp", "event": "type"},
    ),
    "bank": (
        "log.csv",
        {
            "transaction_id": UNIQUE,
            "account": USERS,
            "booking_date": written("%d/%m/%Y"),
            "amount": RNG.random(ROWS).round(2),
            "currency": ["EUR"] * ROWS,
            "category": pick("food", "rent", "travel"),
            "description": UNIQUE,
        },
        {"user": "account", "time": "booking_date", "event": "category"},
    ),
    "app usage": (
        "log.csv",
        {
            "Unnamed: 0": range(ROWS),
            "device_id": USERS,
            "start_time": written("%m/%d/%Y %I:%M:%S %p"),
            "duration": RNG.integers(1, 99, ROWS),
            "package_name": pick("com.mail", "com.maps", "com.game"),
        },
        {"user": "device_id", "time": "start_time", "event": "package_name"},
    ),
    "check-ins": (
        "log.tsv",
        {
            "userId": USERS,
            "venueId": pick("v1", "v2", "v3", "v4"),
            "venueCategoryId": pick("a1", "a2"),
            "venueCategory": pick("Bar", "Office"),
            "latitude": RNG.random(ROWS),
            "utcTimestamp": written("%a %b %d %H:%M:%S +0000 %Y"),
        },
        {"user": "userId", "time": "utcTimestamp", "event": "venueCategory", "location": "venueId"},
    ),
    "shop": (
        "log.csv",
        {
            "event_time": written("%Y-%m-%d %H:%M:%S UTC"),
            "event_type": pick("view", "cart", "purchase"),
            "product_id": pick("1", "2", "3", "4"),
            "brand": NOTHING,
            "user_id": USERS,
            "user_session": UNIQUE,
        },
        {"user": "user_id", "time": "event_time", "event": "event_type"},
    ),
    "git log": (
        "log.csv",
        {
            "commit": UNIQUE,
            "author": USERS,
            "author_email": [f"{u}@x.org" for u in USERS],
            "date": written("%Y-%m-%d %H:%M:%S +0200"),
            "subject": UNIQUE,
            "file": pick("a.py", "b.py", "c.py"),
        },
        {"user": "author_email", "time": "date", "event": "file"},
    ),
    "apache": (
        "log.csv",
        {
            "host": USERS,
            "ident": ["-"] * ROWS,
            "time": written("[%d/%b/%Y:%H:%M:%S +0000]"),
            "request": pick("GET / HTTP/1.1", "GET /a HTTP/1.1"),
            "status": pick("200", "404"),
            "bytes": RNG.integers(0, 9999, ROWS),
        },
        {"user": "host", "time": "time", "event": "request"},
    ),
    "excel": (
        "log.csv",
        {
            "Customer ID": USERS,
            "Date": [s / 86_400 + 25_569 for s in SECONDS],
            "Product Name": pick("Tea", "Cup"),
            "Store": pick("North", "South"),
        },
        {"user": "Customer ID", "time": "Date", "event": "Product Name", "location": "Store"},
    ),
    "german": (
        "log.csv;",
        {
            "Kundennummer": USERS,
            "Datum": written("%d.%m.%Y"),
            "Uhrzeit": written("%H:%M"),
            "Artikel": pick("Tee", "Tasse"),
            "Menge": pick("1,5", "2,0"),
            "Filiale": pick("Köln", "Bonn"),
        },
        {
            "user": "Kundennummer",
            "time": "Datum+Uhrzeit",
            "event": "Artikel",
            "location": "Filiale",
        },
    ),
    "date and hour": (
        "log.parquet",
        {
            "uid": USERS,
            "date": TIMES.dt.date.tolist(),
            "hour": TIMES.dt.hour.tolist(),
            "app": pick("a", "b"),
        },
        {"user": "uid", "time": "date+hour", "event": "app"},
    ),
}
WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    ".csv": lambda f, p: f.to_csv(p, index=False),
    ".csv;": lambda f, p: f.to_csv(p, index=False, sep=";"),
    ".tsv": lambda f, p: f.to_csv(p, index=False, sep="\t"),
    ".jsonl": lambda f, p: f.to_json(p, orient="records", lines=True),
    ".parquet": lambda f, p: f.to_parquet(p, index=False),
}
DATES_ALONE = ("bank",)


def saved(name: str, folder: Path) -> Path:
    file, columns, _ = LOGS[name]
    path = folder / file.rstrip(";")
    WRITERS[file[file.index(".") :]](pd.DataFrame(columns), path)
    return path


@pytest.mark.parametrize("name", LOGS)
def test_the_dry_run_guesses_right_and_says_what_the_run_does(tmp_path: Path, name: str) -> None:
    file, expected = saved(name, tmp_path), LOGS[name][2]
    schema, _ = guess_schema(file, {})
    assert {role: getattr(schema, role) for role in ("user", "time", "event", "location")} == {
        "location": None
    } | expected
    seen, told = preview(file, schema), []
    store = prepare(file, tmp_path / "out", schema, progress=told.append)
    assert (seen.rows, seen.rejected, seen.users) == (ROWS, {}, store.manifest.users)
    assert list(seen.split.values()) == store.manifest.split["events"]
    assert seen.schema == store.schema
    assert seen.labels == {
        field: vocabulary.classes for field, vocabulary in store.vocabulary.items()
    }
    assert [f"note: {remark}" for remark in seen.remarks] == [
        line for line in told if line.startswith("note: ")
    ]
    card = (store.path / "data_card.md").read_text()
    assert all(" ".join(remark.split()).replace("|", "\\|") in card for remark in seen.remarks)
    exact = 0 if name in DATES_ALONE else SECONDS[0] % 86_400
    # to the hour, or with an offset of two
    assert abs(store.manifest.time_origin % 86_400 - exact) < 7201
    assert store.schema.slots == (1 if name in DATES_ALONE else 48)


BAD: dict[str, tuple[dict[str, list[Any]], dict[str, Any], str]] = {
    "unreadable times": ({"time": ["soon"] * 9}, {}, "--time-format"),
    "day or month": ({"time": ["01/02/2024", "03/04/2024"] * 5}, {}, "%m/%d/%Y"),
    "seconds since a start": ({"time": list(range(9))}, {}, "--time-unit"),
    "no user": ({"user": [None] * 9}, {}, "--user"),
    "no event": ({"event": [""] * 9}, {}, "--event"),
    "some bad times": (
        {"time": ["2024-01-01 10:00:00"] * 90 + ["soon"] * 10},
        {},
        "--max-reject-share",
    ),
    "few events of a user": ({}, {"min_events": 99}, "--min-events"),
    "rare labels": ({}, {"min_count": 99}, "--min-count"),
    "split": ({}, {"split": "date:2001-01-01,2002-01-01"}, "--split"),
    "no rows": ({"time": []}, {}, "no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_dry_run_refuses_what_the_run_refuses(tmp_path: Path, name: str) -> None:
    changed, options, remedy = BAD[name]
    rows = max([len(values) for values in changed.values()] or [9]) if name != "no rows" else 0
    columns: dict[str, list[Any]] = {
        "user": [f"u{i % 3}" for i in range(rows)],
        "time": [f"2024-01-{1 + i % 28:02} 10:00:00" for i in range(rows)],
        "event": [f"e{i % 2}" for i in range(rows)],
    } | changed
    schema = EventSchema(user="user", time="time", event="event")
    errors = []
    for verb in (
        preview,
        lambda *args, **more: prepare(args[0], tmp_path / "out", *args[1:], **more),
    ):
        with pytest.raises(DataError) as caught:
            verb(columns, schema, **options)  # type: ignore[operator]
        errors.append(str(caught.value))
    beside = f" They are in {tmp_path / 'out.rejects.parquet'}."
    assert errors[0] == errors[1].replace(beside, "")
    assert remedy in errors[0]
    assert ("--max-reject-share" in errors[0]) == (name == "some bad times")
    with pytest.raises(DataError, match=r"holds no|exists"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("x")
        preview(columns, schema, out=tmp_path / "full")


def test_dates_without_a_clock_are_told_and_have_one_slot(tmp_path: Path) -> None:
    columns = {
        "user": USERS,
        "event": pick("a", "b"),
        "date": written("%Y-%m-%d"),
        "wie spät": written("%H"),
    }
    seen = preview(
        columns, EventSchema(user="user", time="date", event="event", tz="Europe/Berlin")
    )
    assert seen.schema.slots == 1
    assert any("100% of the times" in r and "--time date+hour" in r for r in seen.remarks)
    asked = preview(columns, EventSchema(user="user", time="date", event="event", slot_minutes=30))
    assert asked.schema.slots == 48
    assert any("slot 0 of 48" in remark for remark in asked.remarks)
    joined = preview(columns, EventSchema(user="user", time="date+wie spät", event="event"))
    assert joined.schema.slots == 48
    assert all("share user and time" in remark for remark in joined.remarks)
    half = dict(
        columns, date=[t if i % 2 else t[:10] for i, t in enumerate(written("%Y-%m-%d %H:%M:%S"))]
    )
    mixed = preview(half, EventSchema(user="user", time="date", event="event"))
    assert mixed.schema.slots == 48
    assert any("50% of the times" in remark for remark in mixed.remarks)


@pytest.mark.parametrize("role", ["event", "behavior"])
def test_one_label_needs_no_model(tmp_path: Path, role: str) -> None:
    columns = {"user": USERS, "time": SECONDS, "event": pick("a", "b"), "kind": pick("x", "y")}
    columns["event" if role == "event" else "kind"] = ["same"] * ROWS
    schema = EventSchema(
        user="user", time="time", event="event", behavior=None if role == "event" else "kind"
    )
    store = prepare(columns, tmp_path / "out", schema)
    assert any(
        "a constant predictor is enough" in remark for remark in preview(columns, schema).remarks
    )
    assert "a constant predictor is enough" in (store.path / "data_card.md").read_text()


def test_numbers_that_would_be_times_of_1970_are_told() -> None:
    """Day numbers, as of Matlab and of astronomers, look like seconds."""
    schema = EventSchema(user="user", time="time", event="event")
    for day, told in ((739_312, True), (2_460_370, True), (1_709_251_200, False)):
        columns = {
            "user": USERS,
            "time": [day + i * 0.25 for i in range(ROWS)],
            "event": pick("a", "b"),
        }
        assert (
            any("are before 1980: 1970-01-" in r for r in preview(columns, schema).remarks) == told
        )


def test_a_wide_log_is_looked_at_column_by_column(tmp_path: Path) -> None:
    """Hundreds of counts of distinct values at once take gigabytes."""
    columns = {"user_id": USERS, "time": SECONDS, "event": pick("a", "b")} | {
        f"x{i}": USERS for i in range(400)
    }
    pd.DataFrame(columns).head(50).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    schema, guesses = guess_schema(tmp_path / "a.jsonl", {})
    assert (schema.user, schema.time, schema.event) == ("user_id", "time", "event")
    assert [guess.column for guess in guesses] == list(columns)


MANY = [f"{i}" for i in range(40)]
CHOICES: dict[str, tuple[dict[str, list[Any]], dict[str, str]]] = {
    "an empty user_id": (
        {"user_id": [None], "user_pseudo_id": ["a"], "ts": [1.7e9], "event": ["x"]},
        {"user": "user_pseudo_id"},
    ),
    "texts that are empty": (
        {"user_id": [""], "distinct_id": ["a"], "ts": [1.7e9], "event": ["x"]},
        {"user": "distinct_id"},
    ),
    "a time of day is no time": (
        {"uid": ["a"], "time": ["10:00"], "created_at": ["2024-01-01 10:00:00"], "app": ["x"]},
        {"time": "created_at"},
    ),
    "type before product": (
        {"uid": ["a"], "ts": [1.7e9], "product_id": ["1"], "event_type": ["view"]},
        {"event": "event_type"},
    ),
    "an id of each row is no event": (
        {
            "user_id": ["a"] * 40, "time": [1.7e9] * 40,
            "event_id": MANY, "event_table": ["x", "y"] * 20,
        },
        {"event": "event_table"},
    ),
    "one label is still the event": (
        {"uid": ["a"], "time": [1.7e9], "event": ["x"], "item_price": ["2"]}, {"event": "event"},
    ),
    "parts of a name": (
        {"shop_user_key": ["a"], "visit_time_utc": [1.7e9], "item_code": ["x"]},
        {"user": "shop_user_key"},
    ),
    "dotted names": (
        {"properties.distinct_id": ["a"], "properties.time": [1.7e9], "event": ["x"]},
        {"user": "properties.distinct_id", "time": "properties.time"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_contents_decide_with_the_names(name: str) -> None:
    columns, expected = CHOICES[name]
    schema, _ = guess_schema(
        {column: values * (3 if len(values) == 1 else 1) for column, values in columns.items()}, {}
    )
    assert {role: getattr(schema, role) for role in expected} == expected


def test_the_command_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from behavegpt.cli import main

    file = saved("bank", tmp_path)
    assert main(["prepare", str(file), "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["schema"]["time_format"] == ["%d/%m/%Y"]
    assert "note: times of 'booking_date' are read as %d/%m/%Y" in shown.err
    assert "replace --dry-run by --out FOLDER" in " ".join(shown.err.split())
    named = [
        "prepare", str(file), "--user", "account", "--time", "booking_date", "--event", "category",
        "--time-format", "%d/%m/%Y", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(named) == 0
    assert main(["prepare", str(file), "--time-format", "%H:%M", "--dry-run"]) == 2
    assert "year, month and day" in " ".join(capsys.readouterr().err.split())
