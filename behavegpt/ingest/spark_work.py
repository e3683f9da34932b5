"""What Spark's workers do with the files of a log: survey them, read them, sort and save the rows.

Each function takes Arrow batches and gives Arrow batches, as `mapInArrow` wants; a file is a task.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from behavegpt.data.database import connect, literal, quoted, reading
from behavegpt.data.schema import EventSchema
from behavegpt.ingest.buckets import PIECE
from behavegpt.ingest.log_table import Source, open_source
from behavegpt.ingest.parts import save_part
from behavegpt.ingest.plan import make_plan
from behavegpt.ingest.plan_columns import needed_columns, reject_columns
from behavegpt.ingest.reasons import MALFORMED, REASONS
from behavegpt.ingest.sources import Logs
from behavegpt.ingest.survey import Survey, survey_rows
from behavegpt.ingest.time_join import join_times, part_columns, time_parts
from behavegpt.io import temporary_folder

_SURVEY = TypeAdapter(Survey)  # a worker sends its findings as JSON

Batches = Iterator[pa.RecordBatch]


class Job(NamedTuple):
    """What a worker has to know to read a file of the logs."""

    logs: Logs  # with absolute paths
    shown: tuple[str, ...]  # the files as they were named
    schema: EventSchema
    columns: dict[str, str]  # see Plan.columns
    types: dict[str, str]  # column -> DuckDB type in all files together
    bounds: tuple[int, int]
    memory: int  # bytes of DuckDB on a worker
    survey: Survey | None = None

    @property
    def spark_schema(self) -> str:
        """Columns of the rows that travel: text, so that no worker needs another's codes.

        A row of a reason above 0 is no event: it tells how many rows of a file were `rejected` for
        it.
        """
        order = {None: "", True: ", order_key long", False: ", order_key double"}

        labels = ", ".join(f"c{i} string" for i in range(len(self.columns)))
        key = None if self.schema.order is None else bool(self.survey and self.survey.order)
        return f"reason int, rejected long, time long{order[key]}, {labels}"


@contextmanager
def _opened(job: Job, number: int) -> Iterator[tuple[duckdb.DuckDBPyConnection, Source]]:
    """A file of the logs on a worker, its columns of the types that they have in all files
    together."""
    file = job.logs.files[number]
    # one thread: Spark starts a task for each core
    with temporary_folder() as work, connect(work, job.memory, 1) as con:
        needed = part_columns(job.logs, needed_columns(job.schema, job.columns))
        alone = replace(job.logs, members=(job.logs.members[number],))
        source = open_source(con, alone, needed, work, time_parts(job.schema.time, alone)[0])

        types = {column: job.types[column] for column in needed}
        # a column may be integer in one file and text in another: all are read as the common type
        casts = ", ".join(
            f"{quoted(column)}::{kind} AS {quoted(column)}"
            for column, kind in types.items()
            if source.types[column] != kind
        )
        if casts:
            sql = f"(SELECT * REPLACE ({casts}) FROM {source.sql})"
            source = replace(source, sql=sql, types=types)

        # rejects name the file as the user did, not as the worker sees it
        if source.malformed:
            con.execute(f"UPDATE {source.malformed} SET file = {literal(job.shown[number])}")

        with reading(job.logs.name, [file]):
            source = replace(source, file=literal(job.shown[number]))
            yield con, join_times(source, alone, job.schema.time)


def survey_files(job: Job, numbers: Batches) -> Batches:
    """The survey of each file as JSON."""
    for number in _numbers(numbers):
        with _opened(job, number) as (con, source):
            survey = survey_rows(con, source, job.schema, job.columns)
            yield pa.record_batch({"survey": [json.dumps(survey)]})


def parse_survey(text: str) -> Survey:
    """What `survey_files` wrote of a file."""
    return _SURVEY.validate_json(text)


def read_files(job: Job, numbers: Batches) -> Batches:
    """Accepted rows as text, then a row for each reason with how many were rejected for it."""
    schema = _arrow_schema(job)
    for number in _numbers(numbers):
        with _opened(job, number) as (con, source):
            plan = make_plan(con, source, job.schema, job.columns, job.bounds, job.survey)

            labels = {field: plan.labels(field) for field in job.columns}

            rejected = np.zeros(len(REASONS), np.int64)
            for rows in plan.batches(PIECE):
                rejected += rows.rejected
                values = _as_text(rows.columns, labels)
                # by name: the order of the columns is that of the schema Spark was told
                yield pa.record_batch([values[name] for name in schema.names], schema=schema)

            # known once the file was read to its end
            rejected[MALFORMED] = plan.malformed()
            if rejected.any():
                yield _tally(rejected, schema)


def _as_text(
    columns: dict[str, np.ndarray], labels: dict[str, pa.StringArray]
) -> dict[str, pa.Array]:
    """Columns of `Job.spark_schema` for accepted events: codes as labels, no rejected rows."""
    count = len(columns["time"])
    values = {
        "reason": pa.array(np.zeros(count, np.int32)),
        "rejected": pa.array(np.zeros(count, np.int64)),
        "time": pa.array(columns["time"]),
    }
    if "order" in columns:
        values["order_key"] = pa.array(columns["order"])
    for i, (field, texts) in enumerate(labels.items()):
        values[f"c{i}"] = texts.take(pa.array(columns[field]))
    return values


def _tally(rejected: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """One row for each reason that rows of a file were rejected for; the other columns are null."""
    reasons = np.flatnonzero(rejected)
    counts = {"reason": reasons.astype(np.int32), "rejected": rejected[reasons]}
    nothing = pa.nulls(len(reasons))
    columns = [
        pa.array(counts[column.name]) if column.name in counts else nothing.cast(column.type)
        for column in schema
    ]
    return pa.record_batch(columns, schema=schema)


def read_rejects(job: Job, numbers: Batches) -> Batches:
    """The rejected rows of each file, as `Plan.rejects` gives them: columns r0, r1, ..."""
    for number in _numbers(numbers):
        with _opened(job, number) as (con, source):
            plan = make_plan(con, source, job.schema, job.columns, job.bounds, job.survey)
            for batch in con.sql(plan.rejects()).to_arrow_reader(PIECE):
                yield pa.record_batch(
                    {f"r{i}": column.cast(pa.string()) for i, column in enumerate(batch.columns)}
                )


def save_rows(job: Job, folder: Path, batches: Batches) -> Batches:
    """Code, sort and save the rows of a range of users as folder/PART; yields its number, nothing
    if it is empty."""
    from pyspark import TaskContext

    # a range of users is at most about PART_ROWS rows
    held = list(batches)
    if not held:
        return

    table = pa.Table.from_batches(held)
    context: Any = TaskContext.get()
    part = context.partitionId()

    # an attempt writes a folder of its own: Spark may run a part twice at a time
    temporary, final = folder / f".{part}-{context.taskAttemptId()}", folder / str(part)
    with temporary_folder() as work, connect(work, job.memory, 1) as con:
        save_part(con, table, list(job.columns), job.schema.tie_seed, temporary)

    try:
        os.rename(temporary, final)
    except OSError:  # another attempt at this part was faster
        shutil.rmtree(temporary)
    yield pa.record_batch({"part": pa.array([part], pa.int32())})


def _arrow_schema(job: Job) -> pa.Schema:
    types = {"int": pa.int32(), "long": pa.int64(), "double": pa.float64(), "string": pa.string()}
    pairs = (column.split(" ") for column in job.spark_schema.split(", "))
    return pa.schema([(name, types[kind]) for name, kind in pairs])


def reject_schema(job: Job) -> str:
    """The columns of `read_rejects`, in Spark's words."""
    return ", ".join(f"r{i} string" for i in range(len(reject_columns(job.schema, job.columns))))


def _numbers(batches: Batches) -> Iterator[int]:
    return (number for batch in batches for number in batch["id"].to_pylist())
