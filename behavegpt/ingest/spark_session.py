"""Spark itself: the session of a preparation, and its workers' errors as ours."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from behavegpt.errors import DataError, MissingExtraError


@contextmanager
def spark_session(master: str | None) -> Iterator[Any]:
    """The active Spark session, or one of our own, stopped afterwards. Raises MissingExtraError and
    DataError."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingExtraError("pyspark", "spark") from None

    # workers run the driver's Python, which has the same packages
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # a notebook's own session is used, and not stopped
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
def errors_of_workers() -> Iterator[None]:
    """A worker's DataError as one; what else fails there keeps its traceback."""
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        message = re.search(r"behavegpt\.errors\.DataError: (.*)", str(error))
        if message is None:
            raise
        raise DataError(message[1]) from None
