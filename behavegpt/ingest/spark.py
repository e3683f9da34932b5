"""Preparation on Spark: reading and sorting on the workers by the local engine's code; the result
is the same bytes.

files -> survey.py on each file, added up -> plan.py on each file: text rows -> repartition by
ranges of users -> each part coded, sorted and saved beside the output -> the driver puts the parts
together as if they were its own spill. The driver holds what the local engine holds for users and
labels, and streams the events once to write them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from behavegpt.data.database import connect, literal, quoted, reading
from behavegpt.data.labels import choose_rule
from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError, MissingExtraError
from behavegpt.ingest.buckets import PIECE
from behavegpt.ingest.encode import Encoded, keep_users
from behavegpt.ingest.parts import Parts, save_part
from behavegpt.ingest.plan import MALFORMED, REASONS, Plan, make_plan, parse_range
from behavegpt.ingest.plan_columns import check_types, label_columns, needed_columns, reject_columns
from behavegpt.ingest.preparation import Preparation
from behavegpt.ingest.sources import Logs, Source, open_source
from behavegpt.ingest.survey import Survey, add_up, survey_rows
from behavegpt.ingest.time_columns import time_column
from behavegpt.ingest.time_join import join_times, part_columns, time_parts
from behavegpt.io import temporary_folder

PART_ROWS = 1 << 20  # rows of a part: sorted in memory, some 150 bytes each

_SURVEY = TypeAdapter(Survey)  # a worker sends its findings as JSON

Batches = Iterator[pa.RecordBatch]
Tell = Callable[[str], None]


class Job(NamedTuple):
    """What a worker has to know to read a file of the logs."""

    logs: Logs  # with absolute paths
    shown: tuple[str, ...]  # the files as they were named
    schema: EventSchema
    columns: dict[str, str]  # see Plan.columns
    types: dict[str, str]  # column -> DuckDB type in all files together
    bounds: tuple[int, int]
    memory: int
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


def encode_on_spark(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    schema: EventSchema,
    work: Path,
    how: Preparation,
    tell: Tell,
) -> Encoded:
    """What `encode` gives, with the events in parts that Spark's workers wrote into `work`. Raises
    DataError."""
    if logs.frame is not None:
        raise DataError(
            f"{logs.name}: --engine spark reads files; write the table as parquet, or take "
            "--engine local."
        )
    columns = label_columns(schema)
    needed = part_columns(logs, needed_columns(schema, columns))
    source = join_times(
        _whole_source(con, logs, needed, work, time_parts(schema.time, logs)[0]), logs, schema.time
    )
    check_types(source, schema, columns)

    members = tuple(replace(member, path=member.path.absolute()) for member in logs.members)
    job = Job(
        replace(logs, members=members),
        tuple(map(str, logs.files)),
        schema,
        columns,
        source.types,
        parse_range(how.time_range),
        how.budget,
    )
    with _session(how.spark_master) as spark, _errors_of_workers():
        job = _surveyed(spark, job, tell)
        rejected, parts = _make_parts(spark, job, work / "parts")
        names = reject_columns(job.schema, columns)
        rejects = pa.table({name: pa.array([], pa.string()) for name in names})
        if rejected.any():
            rows = _over_files(spark, job, _rejects, _reject_schema(job)).toArrow()
            rejects = rows.rename_columns(names)
    tell(f"{len(parts)} parts")
    con.register("behavegpt_rejects", rejects)
    plan = _plan_of(con, job, source)
    query = "SELECT * FROM behavegpt_rejects ORDER BY ALL"
    return keep_users(
        plan, Parts(plan, parts), rejected, plan.events("user"), how.min_events, query
    )


def _surveyed(spark: Any, job: Job, tell: Tell) -> Job:
    """The job with what its files hold, and the rules by which their labels are written."""
    files = len(job.logs.files)
    tell(f"Spark {spark.version}, {spark.sparkContext.master}: surveying {files} files")
    found = _over_files(spark, job, _survey, "survey string").collect()
    survey = add_up([_survey_of(row.survey) for row in found])
    fitting = zip(job.columns, survey.rules, strict=True)
    rules = {field: choose_rule(rules) for field, rules in fitting}
    schema = job.schema.model_copy(update={"label_rules": rules | job.schema.label_rules})
    return job._replace(schema=schema, survey=survey)


def _plan_of(con: duckdb.DuckDBPyConnection, job: Job, source: Source) -> Plan:
    """The plan of a surveyed job, as the local engine makes it."""
    assert job.survey is not None
    schema = job.schema
    time = time_column(
        quoted(schema.time),
        source.types[schema.time],
        schema,
        job.survey.times,
        job.bounds,
        job.logs.name,
    )
    resolved = schema.model_copy(update={"time_unit": time.unit, "time_format": time.formats})
    no_nulls = (False,) * len(job.columns)
    return Plan(con, source, resolved, job.columns, no_nulls, time, None, job.bounds)


def _whole_source(
    con: duckdb.DuckDBPyConnection, logs: Logs, columns: list[str], work: Path, time: str
) -> Source:
    """The logs for the driver: names and types, without reading a row."""
    if logs.format in ("parquet", "arrow"):
        return open_source(con, logs, columns, work, time)
    return Source(logs.name, logs.files, "", dict.fromkeys(columns, "VARCHAR"), "")


def _make_parts(spark: Any, job: Job, folder: Path) -> tuple[np.ndarray, list[Path]]:
    """Read, repartition and sort; returns the rejected rows per reason and the folders of the parts
    in order."""
    from pyspark import StorageLevel

    assert job.survey is not None
    folder.mkdir()
    # Kept, since choosing the ranges of users reads them once more.
    rows = _over_files(spark, job, _read, job.spark_schema).persist(StorageLevel.DISK_ONLY)
    rejected = np.zeros(len(REASONS), np.int64)
    for row in rows.filter("reason > 0").select("reason", "rejected").collect():
        rejected[row.reason] += row.rejected
    count = max(spark.sparkContext.defaultParallelism, -(-job.survey.rows // PART_ROWS))
    sorted_rows = (
        rows.filter("reason = 0")
        .repartitionByRange(count, "c0")
        .mapInArrow(partial(_save_part, job, folder), "part int")
    )
    parts = sorted(row.part for row in sorted_rows.collect())
    rows.unpersist()
    return rejected, [folder / str(part) for part in parts]


def _over_files(spark: Any, job: Job, work: Callable[[Job, Batches], Batches], schema: str) -> Any:
    """A data frame of what `work` makes of each file, one task a file."""
    files = len(job.logs.files)
    return spark.range(0, files, 1, files).mapInArrow(partial(work, job), schema)


@contextmanager
def _opened(job: Job, number: int) -> Iterator[tuple[duckdb.DuckDBPyConnection, Source]]:
    """A file of the logs on a worker, its columns of the types that they have in all files
    together."""
    file = job.logs.files[number]
    with temporary_folder() as work, connect(work, job.memory, 1) as con:
        needed = part_columns(job.logs, needed_columns(job.schema, job.columns))
        alone = replace(job.logs, members=(job.logs.members[number],))
        source = open_source(con, alone, needed, work, time_parts(job.schema.time, alone)[0])
        casts = ", ".join(
            f"{quoted(c)}::{job.types[c]} AS {quoted(c)}"
            for c in dict.fromkeys(needed)
            if source.types[c] != job.types[c]
        )
        if casts:
            types = {column: job.types[column] for column in needed}
            source = replace(
                source, sql=f"(SELECT * REPLACE ({casts}) FROM {source.sql})", types=types
            )
        if source.malformed:
            con.execute(f"UPDATE {source.malformed} SET file = {literal(job.shown[number])}")
        with reading(job.logs.name, [file]):
            yield (
                con,
                join_times(
                    replace(source, file=literal(job.shown[number])), alone, job.schema.time
                ),
            )


def _survey(job: Job, numbers: Batches) -> Batches:
    for number in _numbers(numbers):
        with _opened(job, number) as (con, source):
            found = survey_rows(con, source, job.schema, job.columns)
            yield pa.record_batch({"survey": [json.dumps(found)]})


def _survey_of(text: str) -> Survey:
    return _SURVEY.validate_json(text)


def _read(job: Job, numbers: Batches) -> Batches:
    """Accepted rows as text, then a row for each reason with how many were rejected for it."""
    schema = _arrow_schema(job)
    for number in _numbers(numbers):
        with _opened(job, number) as (con, source):
            plan = make_plan(con, source, job.schema, job.columns, job.bounds, job.survey)
            labels = {field: plan.labels(field) for field in job.columns}
            rejected = np.zeros(len(REASONS), np.int64)
            for rows in plan.batches(PIECE):
                rejected += rows.rejected
                time = rows.columns["time"]
                values: dict[str, Any] = {"time": time, "reason": np.zeros(len(time), np.int32)}
                values["rejected"] = np.zeros(len(time), np.int64)
                values |= {
                    f"c{i}": labels[f].take(pa.array(rows.columns[f]))
                    for i, f in enumerate(job.columns)
                }
                if job.schema.order:
                    values["order_key"] = rows.columns["order"]
                yield pa.record_batch(
                    [pa.array(values[name]) for name in schema.names], schema=schema
                )
            rejected[MALFORMED] = plan.malformed()
            reasons = np.flatnonzero(rejected)
            tally = pa.table({"reason": reasons.astype(np.int32), "rejected": rejected[reasons]})
            nothing = pa.nulls(len(reasons))
            yield from pa.table(
                [
                    tally[f.name] if f.name in tally.column_names else nothing.cast(f.type)
                    for f in schema
                ],
                schema=schema,
            ).to_batches()


def _rejects(job: Job, numbers: Batches) -> Batches:
    for number in _numbers(numbers):
        with _opened(job, number) as (con, source):
            plan = make_plan(con, source, job.schema, job.columns, job.bounds, job.survey)
            for batch in con.sql(plan.rejects()).to_arrow_reader(PIECE):
                yield pa.record_batch(
                    {f"r{i}": column.cast(pa.string()) for i, column in enumerate(batch.columns)}
                )


def _save_part(job: Job, folder: Path, batches: Batches) -> Batches:
    """Code, sort and save the rows of a range of users as folder/PART; yields its number, nothing
    if it is empty."""
    from pyspark import TaskContext

    held = list(batches)
    if not held:
        return
    table = pa.Table.from_batches(held)
    context: Any = TaskContext.get()
    part = context.partitionId()
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


def _reject_schema(job: Job) -> str:
    return ", ".join(f"r{i} string" for i in range(len(reject_columns(job.schema, job.columns))))


def _numbers(batches: Batches) -> Iterator[int]:
    return (number for batch in batches for number in batch["id"].to_pylist())


@contextmanager
def _session(master: str | None) -> Iterator[Any]:
    """The active Spark session, or one of our own, stopped afterwards. Raises MissingExtraError and
    DataError."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingExtraError("pyspark", "spark") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    active = SparkSession.getActiveSession()
    builder = SparkSession.builder.appName("behavegpt prepare")
    if master:
        builder = builder.master(master)
    settings = {
        "spark.sql.adaptive.enabled": "false",  # parts are ranges of users, neither joined nor cut
        "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
        "spark.ui.showConsoleProgress": "false",
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        spark = builder.getOrCreate()
    except (PySparkException, OSError) as error:
        raise DataError(
            f"Spark does not start ({str(error).splitlines()[0]}); it needs Java 17 or later "
            "(JAVA_HOME) and a reachable --spark-master."
        ) from None
    spark.sparkContext.setLogLevel("ERROR")
    try:
        with warnings.catch_warnings():
            # which is not used
            warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas")
            yield spark
    finally:
        if active is None:
            spark.stop()


@contextmanager
def _errors_of_workers() -> Iterator[None]:
    """A worker's DataError as one; what else fails there keeps its traceback."""
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        told = re.search(r"behavegpt\.errors\.DataError: (.*)", str(error))
        if told is None:
            raise
        raise DataError(told[1]) from None
