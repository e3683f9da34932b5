"""DuckDB: the connection with its limits, SQL quoting, and errors that name the broken file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.errors import DataError, disk_fault, first_line


@contextmanager
def connect(
    folder: Path, memory: int = 2**30, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that holds at most `memory` bytes and spills into `folder`; its time zone
    is UTC."""
    con = duckdb.connect()
    try:
        con.execute(f"SET memory_limit = '{memory}B'")
        # spills go to the folder of the caller, who removes it: the default is the working folder
        con.execute(f"SET temp_directory = {literal(folder / 'spill')}")
        # keeping the input's order costs memory; every query that needs an order says ORDER BY
        con.execute("SET preserve_insertion_order = false")
        # no result may depend on the zone of the machine
        con.execute("SET TimeZone = 'UTC'")
        # in Jupyter without ipywidgets it is off, and DuckDB refuses to be told so
        if one_row(con, "SELECT current_setting('enable_progress_bar')")[0]:
            con.execute("SET enable_progress_bar = false")
        if threads is not None:
            con.execute(f"SET threads = {threads}")

        yield con
    finally:
        con.close()


def scratch(con: duckdb.DuckDBPyConnection) -> Path:
    """The folder that `connect` was given for temporary files."""
    return Path(one_row(con, "SELECT current_setting('temp_directory')")[0]).parent


def quoted(name: str) -> str:
    """A column name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: object) -> str:
    """A text as an SQL string literal."""
    return "'" + str(text).replace("'", "''") + "'"


def one_row(con: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The first row of a query that always has one."""
    row: tuple[Any, ...] = con.execute(query).fetchall()[0]
    return row


def named_rows(con: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """All rows of a query as mappings from column name to value."""
    result = con.execute(query)
    names = [column[0] for column in result.description]

    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@contextmanager
def reading(name: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """Turn errors of DuckDB and Arrow into a DataError that names the broken file."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"{name}: not enough memory ({first_line(error)}); raise --memory."
        ) from None
    except (duckdb.Error, pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        if disk_fault(error):  # of a spill, say: the files read are sound
            raise

        # The message names the file most of the time; if it does not, read all of them to find it.
        broken = (
            next((str(file) for file in files if str(file) in str(error)), None)
            or _broken(files)
            or name
        )

        if "state machine reached an invalid state" in str(error):
            raise DataError(
                f"{broken}: lines end in different ways (LF, CR LF, CR); write all in one way."
            ) from None

        raise DataError(
            f"{broken}: cannot be read ({first_line(error)}); write the file again, complete and "
            "in UTF-8."
        ) from None


def _broken(files: Sequence[Path]) -> str | None:
    """The first parquet file that cannot be decoded."""
    for file in files:
        if file.suffix not in (".parquet", ".pq"):
            continue

        # every row group: the footer may be intact where the pages before it are not
        try:
            with pq.ParquetFile(file) as opened:
                for group in range(opened.num_row_groups):
                    opened.read_row_group(group)
        except (pa.ArrowException, OSError):
            return str(file)

    return None


def hash_labels(con: duckdb.DuckDBPyConnection, labels: pa.Array) -> np.ndarray:
    """A stable 64-bit hash (n,) uint64 of labels (n,), none null."""
    # DuckDB keeps no order of rows by itself, so each label carries its place
    con.register("behavegpt_labels", pa.table({"place": np.arange(len(labels)), "label": labels}))

    query = "SELECT md5_number_lower(label) AS hash FROM behavegpt_labels ORDER BY place"
    return np.asarray(con.sql(query).fetchnumpy()["hash"], np.uint64)
