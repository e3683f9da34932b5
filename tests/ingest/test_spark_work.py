"""What Spark's workers do to a file, without Spark: the rows of the local engine, from parts that
were read apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from behavegpt.data.database import connect
from behavegpt.data.labels import choose_rule
from behavegpt.data.schema import EventSchema
from behavegpt.ingest.events import read_events
from behavegpt.ingest.plan import parse_range
from behavegpt.ingest.plan_columns import label_columns, needed_columns
from behavegpt.ingest.sources import find_logs
from behavegpt.ingest.spark import whole_source
from behavegpt.ingest.spark_work import Job, parse_survey, read_files, survey_files
from behavegpt.ingest.survey import add_up
from behavegpt.ingest.time_join import join_times, part_columns, time_parts


def numbers(count: int) -> Iterator[pa.RecordBatch]:
    return iter([pa.record_batch({"id": np.arange(count)})])


def work(folder: Path, schema: EventSchema, scratch: Path) -> list[tuple[Any, ...]]:
    """Accepted rows (user, event, ...) of all files, as `encode_on_spark` has them read."""
    columns = label_columns(schema)
    return sorted(
        tuple(str(row[f"c{i}"]) for i in range(len(columns)))
        for row in accepted(folder, schema, scratch)
    )


def accepted(folder: Path, schema: EventSchema, scratch: Path) -> list[dict[str, Any]]:
    logs, columns = find_logs(folder), label_columns(schema)
    needed = part_columns(logs, needed_columns(schema, columns))
    with connect(scratch) as con:
        time = time_parts(schema.time, logs)[0]
        types = join_times(whole_source(con, logs, needed, scratch, time), logs, schema.time).types
    absolute = replace(
        logs, members=tuple(replace(m, path=m.path.absolute()) for m in logs.members)
    )
    job = Job(
        absolute,
        tuple(map(str, logs.files)),
        schema,
        columns,
        types,
        parse_range(("1970-01-02", "2100-01-01")),
        2**30,
    )
    survey = add_up(
        [parse_survey(b["survey"][0].as_py()) for b in survey_files(job, numbers(len(logs.files)))]
    )
    rules = {
        field: choose_rule(fitting) for field, fitting in zip(columns, survey.rules, strict=True)
    }
    job = job._replace(survey=survey, schema=schema.model_copy(update={"label_rules": rules}))
    rows = pa.Table.from_batches(read_files(job, numbers(len(logs.files)))).to_pylist()
    assert all(
        (row["rejected"] > 0) == (row["reason"] > 0) == (row["time"] is None) for row in rows
    )
    return [row for row in rows if row["reason"] == 0]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_files_read_apart_have_the_labels_of_all(kind: str, tmp_path: Path) -> None:
    """Integers in one file, floats in the other, a user that only the folder tells, and a date that
    the file has too."""
    for user, events in (("ann", [1, 2, 3]), ("bob", [1.0, 2.5, None])):
        folder = tmp_path / "logs" / "time=2020-01-01" / f"user={user}"
        folder.mkdir(parents=True)
        frame = pd.DataFrame(
            {"time": [f"2024-03-0{i} 10:00:00" for i in (1, 2, 3)], "event": events}
        )
        write = {
            "parquet": frame.to_parquet,
            "csv": lambda p, f=frame: f.to_csv(p, index=False),
            "jsonl": lambda p, f=frame: f.to_json(p, orient="records", lines=True),
        }[kind]
        write(folder / f"log.{kind}")
    schema = EventSchema(user="user", time="time", event="event")
    table = read_events(tmp_path / "logs", schema).table
    expected = sorted(zip(table["user"].to_pylist(), table["event"].to_pylist(), strict=True))
    assert expected == [
        ("ann", "1.0"),
        ("ann", "2.0"),
        ("ann", "3.0"),
        ("bob", "1.0"),
        ("bob", "2.5"),
    ]
    assert work(tmp_path / "logs", schema, tmp_path) == expected


NAIVE, ZONED = pd.Timestamp("2024-07-01 12:00"), pd.Timestamp("2024-07-01 12:00", tz="UTC")
TIMES: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "zones in one file": (".parquet", "time", [{"time": [NAIVE] * 2}, {"time": [ZONED] * 2}]),
    "a day beyond 12 in one file": (
        ".csv", "time", [{"time": ["01/04/2024 10:00"] * 2}, {"time": ["13/04/2024 10:00"] * 2}],
    ),
    "two columns": (
        ".csv", "day+clock",
        [{"day": ["01.04.24"] * 2, "clock": [7, 8]},
         {"day": ["13.04.24"] * 2, "clock": ["9", "7:30"]}],
    ),
    "two typed columns": (
        ".parquet", "day+clock",
        [{"day": [NAIVE.date()] * 2, "clock": [7, 8]},
         {"day": [NAIVE.date()] * 2, "clock": [9, 7]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMES)
def test_files_read_apart_have_the_times_of_all(name: str, tmp_path: Path) -> None:
    ending, time, files = TIMES[name]
    (tmp_path / "logs").mkdir()
    for number, columns in enumerate(files):
        frame, file = (
            pd.DataFrame({"user": ["a", "b"], "event": ["x", "y"], **columns}),
            f"{number}{ending}",
        )
        frame.to_csv(
            tmp_path / "logs" / file, index=False
        ) if ending == ".csv" else frame.to_parquet(tmp_path / "logs" / file)
    schema = EventSchema(user="user", time=time, event="event", tz="Europe/Berlin")
    expected = read_events(tmp_path / "logs", schema).table["time"].to_pylist()
    assert len(expected) == 4
    assert sorted(row["time"] for row in accepted(tmp_path / "logs", schema, tmp_path)) == sorted(
        expected
    )
