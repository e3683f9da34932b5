"""Preparation on Spark: reading and sorting on the workers by the local engine's code; the result
is the same bytes.

files -> survey.py on each file, added up -> plan.py on each file: text rows -> repartition by
ranges of users -> each part coded, sorted and saved beside the output -> the driver puts the parts
together as if they were its own spill. The driver holds what the local engine holds for users and
labels, and streams the events once to write them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from behavegpt.data.database import quoted
from behavegpt.data.labels import choose_rule
from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.encode import Encoded, keep_users
from behavegpt.ingest.log_table import Source, open_source
from behavegpt.ingest.parts import Parts
from behavegpt.ingest.plan import Plan, parse_range
from behavegpt.ingest.plan_columns import check_types, label_columns, needed_columns, reject_columns
from behavegpt.ingest.preparation import Preparation
from behavegpt.ingest.reasons import REASONS
from behavegpt.ingest.sources import Logs
from behavegpt.ingest.spark_session import errors_of_workers, spark_session
from behavegpt.ingest.spark_work import (
    Batches,
    Job,
    parse_survey,
    read_files,
    read_rejects,
    reject_schema,
    save_rows,
    survey_files,
)
from behavegpt.ingest.survey import add_up
from behavegpt.ingest.time_columns import time_column
from behavegpt.ingest.time_join import join_times, part_columns, time_parts

PART_ROWS = 1 << 20  # rows of a part: sorted in memory, some 150 bytes each

Tell = Callable[[str], None]


def encode_on_spark(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    schema: EventSchema,
    work: Path,
    chosen: Preparation,
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
    # names and types of the whole log: a file alone may lack values that decide a type
    needed = part_columns(logs, needed_columns(schema, columns))
    source = whole_source(con, logs, needed, work, time_parts(schema.time, logs)[0])
    source = join_times(source, logs, schema.time)
    check_types(source, schema, columns)

    # workers have working folders of their own
    members = tuple(replace(member, path=member.path.absolute()) for member in logs.members)
    absolute, shown = replace(logs, members=members), tuple(map(str, logs.files))
    bounds = parse_range(chosen.time_range)
    job = Job(absolute, shown, schema, columns, source.types, bounds, chosen.budget)

    with spark_session(chosen.spark_master) as spark, errors_of_workers():
        # three passes over the files: what they hold, the rows, and those that were rejected
        job = _surveyed(spark, job, tell)
        rejected, parts = _make_parts(spark, job, work / "parts")

        names = reject_columns(job.schema, columns)
        # a second reading of the files, only where something was rejected
        rejects = pa.table({name: pa.array([], pa.string()) for name in names})
        if rejected.any():
            rows = _over_files(spark, job, read_rejects, reject_schema(job)).toArrow()
            rejects = rows.rename_columns(names)
    tell(f"{len(parts)} parts")

    con.register("behavegpt_rejects", rejects)
    # workers end in any order, and the file must be the same bytes
    query = "SELECT * FROM behavegpt_rejects ORDER BY ALL"

    plan = _plan_of(con, job, source)
    events = Parts(plan, parts)
    return keep_users(plan, events, rejected, plan.events("user"), chosen.min_events, query)


def _surveyed(spark: Any, job: Job, tell: Tell) -> Job:
    """The job with what its files hold, and the rules by which their labels are written."""
    files = len(job.logs.files)
    tell(f"Spark {spark.version}, {spark.sparkContext.master}: surveying {files} files")
    rows = _over_files(spark, job, survey_files, "survey string").collect()
    survey = add_up([parse_survey(row.survey) for row in rows])

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

    # the parts hold accepted events in their order: no nulls and no order key are left
    resolved = schema.model_copy(update={"time_unit": time.unit, "time_format": time.formats})
    no_nulls = (False,) * len(job.columns)
    return Plan(con, source, resolved, job.columns, no_nulls, time, None, job.bounds)


def whole_source(
    con: duckdb.DuckDBPyConnection, logs: Logs, columns: list[str], work: Path, time: str
) -> Source:
    """The logs for the driver: names and types, without reading a row."""
    # typed columns have their types in the files; all others are text
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
    rows = _over_files(spark, job, read_files, job.spark_schema).persist(StorageLevel.DISK_ONLY)

    rejected = np.zeros(len(REASONS), np.int64)
    for row in rows.filter("reason > 0").select("reason", "rejected").collect():
        rejected[row.reason] += row.rejected

    # at least a part for each core, none larger than a worker can sort
    count = max(spark.sparkContext.defaultParallelism, -(-job.survey.rows // PART_ROWS))

    sorted_rows = (
        rows.filter("reason = 0")
        # by ranges of users, whose parts then follow each other as codes do
        .repartitionByRange(count, "c0")
        .mapInArrow(partial(save_rows, job, folder), "part int")
    )

    # empty ranges make no part
    parts = sorted(row.part for row in sorted_rows.collect())
    rows.unpersist()
    return rejected, [folder / str(part) for part in parts]


def _over_files(spark: Any, job: Job, work: Callable[[Job, Batches], Batches], schema: str) -> Any:
    """A data frame of what `work` makes of each file, one task a file."""
    files = len(job.logs.files)
    return spark.range(0, files, 1, files).mapInArrow(partial(work, job), schema)
