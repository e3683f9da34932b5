"""The queries of the split: event files as streams of rows, written as parquet, and what is wrong
with a row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import numpy as np

from behavegpt.data.database import literal, one_row, reading
from behavegpt.errors import ConfigError, DataError, first_line
from behavegpt.signals import deferring

Progress = Callable[[int, str], None]
# no client, or no time; `infinity` is one to DuckDB
UNUSABLE = "client_id IS NULL OR moment IS NULL OR NOT isfinite(moment)"


def limit_memory(con: duckdb.DuckDBPyConnection, memory: str) -> None:
    """Set the memory of a connection ("2GiB"), and that rows keep the order of their file."""
    # results keep the order of the raw files, as the organizers' do
    con.execute("SET preserve_insertion_order = true")
    try:
        con.execute(f"SET memory_limit = {literal(memory)}")
    except duckdb.Error as error:
        raise ConfigError(
            f"--memory {memory!r}: {first_line(error)}; write a size such as 2GiB."
        ) from None


def events(file: Path) -> str:
    """SQL: the rows of a raw file with their number and `moment`, null where the time cannot be
    read."""
    # nanoseconds: the windows begin at a fraction of a second
    moment = "TRY_CAST(timestamp AS TIMESTAMP_NS) AS moment"
    return f"SELECT *, {moment} FROM read_parquet({literal(file)}, file_row_number = true)"


def kept_columns(table: str = "") -> str:
    """SQL: the columns of the raw file, the timestamp as a timestamp."""
    return f"SELECT {table}* EXCLUDE (moment, file_row_number) REPLACE ({table}moment AS timestamp)"


def write_query(
    con: duckdb.DuckDBPyConnection,
    query: str,
    file: Path,
    progress: Progress | None = None,
    done: int = 0,
    size: int = 0,
    note: str = "",
) -> int:
    """Write a query's rows as parquet, reporting `done` + the finished part of `size`; returns how
    many.

    Raises DataError when the disk is full.
    """
    command = f"COPY ({query}) TO {literal(file)} (FORMAT parquet)"

    # so that this thread can ask how far it is, and be interrupted
    with ThreadPoolExecutor(1) as pool:
        job: Future[int] | None = None
        try:
            # a stop while the pool's thread starts would leave it out of those that are waited for
            with deferring():
                job = pool.submit(lambda: int(one_row(con, command)[0]))
            while not wait([job], timeout=0.2).done:
                if progress:
                    progress(done + int(max(0.0, con.query_progress()) / 100 * size), note)
        finally:
            # a query that goes on would write into a folder that is being removed; one that has
            # not begun is not interrupted
            with deferring():
                while job is not None and not wait([job], timeout=0.05).done:
                    con.interrupt()
    try:
        return job.result()
    except (duckdb.IOException, OSError) as error:
        if "space" not in str(error):
            raise
        raise DataError(
            f"{file.parent}: the disk is full ({first_line(error)}); free some or give --out."
        ) from None


@contextlib.contextmanager
def naming_bad_rows(con: duckdb.DuckDBPyConnection, file: Path) -> Iterator[None]:
    """Turn the error of an unusable row into one that names it."""
    with reading(str(file), [file]):
        try:
            yield
        except duckdb.InvalidInputException:
            raise unusable(con, file) from None


def unusable(con: duckdb.DuckDBPyConnection, file: Path) -> DataError:
    """The error that names the first unusable row of a raw file."""
    bad = f"FROM ({events(file)}) WHERE {UNUSABLE}"
    # a second reading of the file, only where it was refused
    rows = one_row(con, f"SELECT count(*) {bad}")[0]

    query = f"SELECT file_row_number, client_id, timestamp {bad} ORDER BY 1 LIMIT 1"
    first = con.execute(query).fetchone()
    number, client, moment = first or ("?", "?", "?")

    return DataError(
        f"{file}: {rows:,} rows without a client or a readable time, the first is row {number} "
        f"(client_id {client}, timestamp {moment!r}); write times as YYYY-MM-DD HH:MM:SS and fill "
        "or drop the rows."
    )


def first_and_last(con: duckdb.DuckDBPyConnection, file: Path) -> dict[str, str | None]:
    """The first and the last time of a written file."""
    first, last = one_row(
        con, f"SELECT epoch_ns(min(timestamp)), epoch_ns(max(timestamp)) FROM {literal(file)}"
    )

    moments = {"first": first, "last": last}
    return {
        name: None if ns is None else shown(np.datetime64(ns, "ns")) for name, ns in moments.items()
    }


def moment_sql(moment: np.datetime64) -> str:
    """SQL: an instant to the nanosecond."""
    return f"make_timestamp_ns({moment.astype('int64')})"


def shown(moment: np.datetime64) -> str:
    """YYYY-MM-DD HH:MM:SS, with the fraction of a second if there is one."""
    return str(moment).replace("T", " ").removesuffix(".000000000")
