"""Times as people write them: the same instant from CSV, JSONL, parquet and frames, and never a
wrong guess."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from behavegpt.data.schema import EventSchema
from behavegpt.data.time_formats import form_of
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.plan import plan_events
from behavegpt.ingest.sources import find_logs
from behavegpt.ingest.time_survey import TimeSurvey, add_surveys, survey_column

BERLIN = {"tz": "Europe/Berlin"}


def schema(**settings: object) -> EventSchema:
    return EventSchema.model_validate({"user": "u", "time": "t", "event": "e", **settings})


def saved(columns: dict[str, list[Any]], kind: str, folder: Path) -> Any:
    """The columns in memory, or as a file."""
    frame = pd.DataFrame(columns)
    file = folder / f"log.{kind}"
    if kind == "csv":
        frame.to_csv(file, index=False)
    elif kind == "jsonl":
        frame.to_json(file, orient="records", lines=True, force_ascii=False)
    elif kind == "parquet":
        frame.to_parquet(file)
    else:
        return frame if kind == "frame" else columns
    return file


def log(times: list[Any], **more: list[Any]) -> dict[str, list[Any]]:
    return {"u": ["a"] * len(times), "e": [f"e{i}" for i in range(len(times))], "t": times, **more}


def read(logs: Any, **settings: object) -> list[str]:
    """ISO times (UTC) by event, `-` for a rejected row."""
    found = read_events(logs, schema(**settings))
    times = dict(
        zip(found.table["event"].to_pylist(), found.table["time"].to_pylist(), strict=True)
    )
    rows = len(times) + len(found.rejects)
    return [
        str(np.datetime64(times[f"e{i}"], "us"))[:19] if f"e{i}" in times else "-"
        for i in range(rows)
    ]


T13 = ["2024-04-13T08:05:00", "2024-04-01T17:30:00"]
T13_SECONDS = ["2024-04-13T08:05:09", "2024-04-01T17:30:59"]
FORMS: dict[str, tuple[list[Any], list[str]]] = {
    "dd/mm/yyyy": (["13/04/2024 08:05", "01/04/2024 17:30"], T13),
    "mm/dd/yyyy": (["04/13/2024 08:05", "04/01/2024 17:30"], T13),
    "d/m/yyyy": (["13/4/2024 8:05", "1/4/2024 17:30"], T13),
    "m/d/yy AM PM": (["4/13/24 8:05 AM", "4/1/24 5:30 PM"], T13),
    "m/d/yyyy, seconds, am pm": (["4/13/2024, 8:05:09 am", "4/1/2024, 5:30:59 pm"], T13_SECONDS),
    "narrow space before PM": (
        ["4/13/2024, 8:05:09\u202fAM", "4/1/2024, 5:30:59\u202fPM"],
        T13_SECONDS,
    ),
    "a.m. and p.m.": (["13/4/2024 8:05 a.m.", "1/4/2024 5:30 p.m."], T13),
    "dd-mm-yyyy": (["13-04-2024 08:05", "01-04-2024 17:30"], T13),
    "dd.mm.yyyy": (["13.04.2024 08:05", "01.04.2024 17:30"], T13),
    "dd.mm.yy": (["13.04.24 08:05", "01.04.24 17:30"], T13),
    "dots, no day beyond 12": (
        ["03.04.2024 08:05", "01.04.2024 17:30"],
        ["2024-04-03T08:05:00", T13[1]],
    ),
    "yyyy.mm.dd": (["2024.04.13 08:05", "2024.04.01 17:30"], T13),
    "yyyy/mm/dd": (["2024/04/13 08:05", "2024/04/01 17:30"], T13),
    "Mon dd, yyyy": (["Apr 13, 2024 08:05", "Apr 01, 2024 17:30"], T13),
    "month in full": (["April 13, 2024 8:05 AM", "April 1, 2024 5:30 PM"], T13),
    "dd-Mon-yy": (["13-APR-24 08:05", "01-APR-24 17:30"], T13),
    "dd Mon yyyy": (["13 Apr 2024 08:05", "1 Apr 2024 17:30"], T13),
    "14 digits": (["20240413080509", "20240401173059"], T13_SECONDS),
    "14 digits as numbers": ([20240413080509, 20240401173059], T13_SECONDS),
    "12 digits": (["202404130805", "202404011730"], T13),
    "10 digits": ([2024041308, 2024040117], ["2024-04-13T08:00:00", "2024-04-01T17:00:00"]),
    "basic ISO": (["20240413T080509", "20240401T173059"], T13_SECONDS),
    "AM PM behind an ISO date": (["2024-04-13 08:05 AM", "2024-04-01 05:30 PM"], T13),
    "decimal comma of seconds": (
        ["2024-04-13 08:05:09,250", "2024-04-01 17:30:59,750"],
        T13_SECONDS,
    ),
    "ISO beside dd/mm": (["13/04/2024 08:05", "2024-04-01 17:30:00"], T13),
    "Excel serials": ([45395.3368055556, 45383.7291666667], T13),
    "Excel serials as text": (["45395,3368055556", "45383,7291666667"], T13),
}
ZONED: dict[str, tuple[list[Any], list[str]]] = {
    "Apache": (["[13/Apr/2024:10:05:09 +0200]", "[01/Apr/2024:17:30:59 +0000]"], T13_SECONDS),
    "git log": (["Sat Apr 13 10:05:09 2024 +0200", "Mon Apr 1 12:30:59 2024 -0500"], T13_SECONDS),
    "git log --date=iso": (["2024-04-13 10:05:09 +0200", "2024-04-01 12:30:59 -0500"], T13_SECONDS),
    "mail": (["Sat, 13 Apr 2024 10:05:09 +0200", "Mon, 01 Apr 2024 17:30:59 GMT"], T13_SECONDS),
    "Twitter": (["Sat Apr 13 08:05:09 +0000 2024", "Mon Apr 01 17:30:59 +0000 2024"], T13_SECONDS),
    "JavaScript": (
        [
            "Sat Apr 13 2024 10:05:09 GMT+0200 (Central European Summer Time)",
            "Mon Apr 01 2024 17:30:59 GMT+0000 (UTC)",
        ],
        T13_SECONDS,
    ),
    "basic ISO with Z": (["20240413T080509Z", "20240401T173059Z"], T13_SECONDS),
    "Z beside dd/mm": (["2024-04-13T08:05:09Z", "13/04/2024 08:05:09 UTC"], [T13_SECONDS[0]] * 2),
    "decimal comma of an epoch": (["1712995509,25", "1711992659,75"], T13_SECONDS),
}
KINDS = ["csv", "jsonl", "parquet", "frame", "dict"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMS)
def test_wall_clocks(tmp_path: Path, name: str, kind: str) -> None:
    values, expected = FORMS[name]
    assert read(saved(log(values), kind, tmp_path)) == expected
    zoned = read(saved(log(values), kind, tmp_path), **BERLIN)
    assert zoned == [str(np.datetime64(text) - np.timedelta64(2, "h")) for text in expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ZONED)
def test_instants(tmp_path: Path, name: str, kind: str) -> None:
    values, expected = ZONED[name]
    assert read(saved(log(values), kind, tmp_path), **BERLIN) == expected


@pytest.mark.parametrize("name", [*FORMS, *ZONED])
def test_the_form_is_kept_in_the_schema_and_decides_alone(tmp_path: Path, name: str) -> None:
    """One row is read by the schema of a preparation as it was read there, whatever is beside
    it."""
    values, expected = (FORMS | ZONED)[name]
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    kept = plan_events(con, find_logs(log(values)), schema(), tmp_path).schema
    assert EventSchema.model_validate(json.loads(kept.model_dump_json())) == kept
    for value, text in zip(values, expected, strict=True):
        assert read(log([value]), **kept.model_dump(exclude={"user", "time", "event"})) == [text]


@pytest.mark.parametrize(
    "values,told",
    [
        (["01/04/2024", "02/04/2024"], ["%d/%m/%Y", "%m/%d/%Y", "'01/04/2024'"]),
        (["1-4-24 10:00", "2-4-24 10:00"], ["%d-%m-%y %H:%M", "%m-%d-%y %H:%M"]),
        (["13/04/2024", "04/13/2024"], ["both", "%d/%m/%Y", "%m/%d/%Y"]),
        (["24.04.01", "24.04.29", "24.05.30"], ["%d.%m.%y", "%y.%m.%d"]),
    ],
)  # fmt: skip
def test_two_readings_are_refused_with_the_remedy(values: list[str], told: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(log(values))
    assert all(text in str(caught.value) for text in [*told, "--time-format", "'t'"])
    assert read(log(["01/04/2024"]), time_format="%d/%m/%Y") == ["2024-04-01T00:00:00"]
    assert read(log(["01/04/2024"]), time_format="%m/%d/%Y") == ["2024-01-04T00:00:00"]


@pytest.mark.parametrize("value", [638_487_915_000_000_000, 133_574_691_000_000_000])
def test_ticks_are_no_nanoseconds(value: int) -> None:
    with pytest.raises(DataError, match=r"ticks of .NET .* --time-unit ns"):
        read(log([value] * 3))
    assert read(log([value]), time_unit="ns") == [str(np.datetime64(value, "ns"))[:19]]


def test_a_form_that_is_named_is_the_only_one() -> None:
    assert read(log(["13/04/2024", "04/13/2024", "2024-04-13"]), time_format="%d/%m/%Y") == [
        "2024-04-13T00:00:00", "-", "2024-04-13T00:00:00",
    ]  # fmt: skip
    assert read(log(["2024-01-04", "2024-13-04"]), time_format="%Y-%d-%m") == [
        "2024-04-01T00:00:00",
        "2024-04-13T00:00:00",
    ]
    assert read(log([20240413, 1712995509]), time_format="%Y%m%d") == ["2024-04-13T00:00:00", "-"]


@pytest.mark.parametrize("text", ["%d/%m", "%Y-%m-%d %Q", "yyyy-mm-dd", "%H:%M"])
def test_a_wrong_format_is_one_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"directive|year, month and day"):
        schema(time_format=text)


@pytest.mark.parametrize(
    "text", ["99:99", "v9.9.9", "999.999.9.9", "9", "99-99", "abc 9", "9999-99-99-99-99", "9/9/9/9"]
)
def test_what_is_no_time_has_no_form(text: str) -> None:
    assert form_of(text) is None


def test_a_few_odd_times_are_rejected_as_before() -> None:
    values = ["2024-04-01 10:00:00"] * 200 + ["03/04/2024"]
    assert read(log(values))[-1] == "-"


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_rows_decides_nothing(order: int) -> None:
    values = [f"0{1 + i % 9}/04/2024 10:00" for i in range(300)] + ["13/04/2024 10:00"]
    assert read(log(values[::order]))[::order][-1] == "2024-04-13T10:00:00"
    assert read(log(values[::order]))[::order][0] == "2024-04-01T10:00:00"


JOINED: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {
    "date and hour": (["2024-04-13", "2024-04-01"], [8, 17], {}),
    "date and hour as text": (["2024-04-13", "2024-04-01"], ["08", "17"], {}),
    "hours that a null made floats": (["2024-04-13", "2024-04-01"], [8.0, 17.0], {}),
    "dd/mm and clock": (["13/04/2024", "01/04/2024"], ["8:05", "17:30"], {}),
    "dd.mm and Uhrzeit": (["13.04.2024", "01.04.2024"], ["08:05", "17:30"], {}),
    "AM and PM": (["4/13/2024", "4/1/2024"], ["8:05 AM", "5:30 PM"], {}),
    "a spreadsheet's midnight": (
        ["2024-04-13 00:00:00", "2024-04-01 00:00:00"],
        ["08:05:00", "17:30:00"],
        {},
    ),
    "eight digits": ([20240413, 20240401], ["08:05", "17:30"], {}),
    "HHMM": (["20240413", "20240401"], ["0805", "1730"], {}),
    "named form": (
        ["13/04/2024", "01/04/2024"],
        ["08:05", "17:30"],
        {"time_format": "%d/%m/%Y %H:%M"},
    ),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "frame", "dict"])
@pytest.mark.parametrize("name", JOINED)
def test_date_and_time_of_day_in_two_columns(tmp_path: Path, name: str, kind: str) -> None:
    dates, clocks, settings = JOINED[name]
    logs = saved({"u": ["a", "a"], "e": ["e0", "e1"], "d": dates, "h": clocks}, kind, tmp_path)
    minutes = ["00", "00"] if "hour" in name else ["05", "30"]
    expected = [f"2024-04-13T08:{minutes[0]}:00", f"2024-04-01T17:{minutes[1]}:00"]
    assert read(logs, time="d+h", **settings) == expected


def test_typed_dates_and_clocks_are_joined(tmp_path: Path) -> None:
    table = pa.table(
        {"u": ["a"], "e": ["e0"], "d": pa.array([date(2024, 4, 13)]), "h": pa.array([time(8, 5)])}
    )
    assert read(table, time="d+h") == ["2024-04-13T08:05:00"]
    stamps = table.set_column(2, "d", pa.array([datetime(2024, 4, 13)]))
    assert read(stamps, time="d+h") == ["2024-04-13T08:05:00"]


def test_joined_columns_without_a_value_or_with_a_wrong_one() -> None:
    logs = log(["2024-04-13"] * 4, h=[8, None, 24, 77])
    assert read(logs, time="t+h") == ["2024-04-13T08:00:00", "-", "2024-04-14T00:00:00", "-"]
    with pytest.raises(DataError, match=r"no column 'hour' \(the time\)"):
        read(logs, time="t+hour")
    assert read({"u": ["a"], "e": ["e0"], "UTC+8": ["2024-04-13"]}, time="UTC+8") == [
        "2024-04-13T00:00:00"
    ]


PARTS: dict[str, pa.Array] = {
    "naive": pa.array([datetime(2024, 7, 1, 12)]),
    "naive ns": pa.array([datetime(2024, 7, 1, 12)], pa.timestamp("ns")),
    "zoned": pa.array([datetime(2024, 7, 1, 10)], pa.timestamp("us", "UTC")),
    "zoned ns": pa.array([datetime(2024, 7, 1, 10)], pa.timestamp("ns", "Asia/Tokyo")),
    "text": pa.array(["2024-07-01 12:00:00"]),
    "zoned text": pa.array(["2024-07-01T10:00:00Z"]),
}


@pytest.mark.parametrize("second", PARTS)
@pytest.mark.parametrize("first", PARTS)
def test_naive_and_zoned_files_together(tmp_path: Path, first: str, second: str) -> None:
    """Each file's times mean what they mean alone, in any order of the files."""
    for number, name in enumerate((first, second)):
        pq.write_table(
            pa.table({"u": ["a"], "e": [f"e{number}"], "t": PARTS[name]}),
            tmp_path / f"{number}.parquet",
        )
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    assert read(files, **BERLIN) == read(files[::-1], **BERLIN) == ["2024-07-01T10:00:00"] * 2
    assert read(files, **BERLIN, naive_time="utc")[0] == (
        "2024-07-01T12:00:00" if first in ("naive", "naive ns", "text") else "2024-07-01T10:00:00"
    )


def test_times_in_one_file_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate((pa.array([1_719_828_000]), PARTS["naive"])):
        pq.write_table(
            pa.table({"u": ["a"], "e": ["x"], "t": name}), tmp_path / f"{number}.parquet"
        )
    with pytest.raises(DataError, match=r"0.parquet: column 't' \(the time\) is int64"):
        read([tmp_path / "0.parquet", tmp_path / "1.parquet"])


NAIVE, AWARE = (
    datetime(2024, 7, 1, 12),
    datetime(2024, 7, 1, 12, tzinfo=timezone(timedelta(hours=2))),
)
MIXED: dict[str, list[Any]] = {
    "naive first": [NAIVE, AWARE],
    "zoned first": [AWARE, NAIVE],
    "date first": [date(2024, 7, 1), NAIVE],
    "date behind a null": [None, AWARE, date(2024, 7, 1)],
    "timestamps": [pd.Timestamp(NAIVE), pd.Timestamp(AWARE)],
}


@pytest.mark.parametrize("form", ["list", "objects", "rows"])
@pytest.mark.parametrize("name", MIXED)
def test_times_of_two_kinds_in_a_frame_are_refused(name: str, form: str) -> None:
    """Arrow would make them one kind without a word: the hour of some, or the clock of all, would
    be lost."""
    columns = log(MIXED[name])
    if form == "objects":
        columns["t"] = pd.Series(MIXED[name], dtype=object)  # type: ignore[assignment]
    told = r"the time in row \d is .*, in row \d it is|values of the types NoneType, date, datetime"
    with pytest.raises(DataError, match=f"column 't': ({told})"):
        read(
            columns if form != "rows" else pd.DataFrame(pd.Series(columns).to_dict(), dtype=object)
        )


def test_times_of_one_kind_in_a_frame_are_read() -> None:
    assert (
        read(log([AWARE, pd.NaT, None, pd.Timestamp(AWARE)]), **BERLIN)[0] == "2024-07-01T10:00:00"
    )
    assert read(log([NAIVE, pd.NaT]), **BERLIN) == ["2024-07-01T10:00:00", "-"]


@pytest.mark.parametrize("name", [*FORMS, *ZONED])
def test_surveys_of_parts_add_up(name: str) -> None:
    """What workers find in their files, sent as JSON, is what is found in all of them at once."""
    values = (FORMS | ZONED)[name][0]
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    found = []
    for part in (values, values[:1], values[1:]):
        con.register("part", pa.table({"t": part}))
        kind = con.execute("DESCRIBE part").fetchall()[0][1]
        found.append(survey_column(con, "t", kind, "part"))
    sent = TypeAdapter(list[TimeSurvey])
    assert add_surveys(sent.validate_json(sent.dump_json(found[1:]))) == found[0]
