"""The organizers' split: the last 28 calendar days become two target windows, what lies before
becomes the input.

Windows are counted back from the last PURCHASE: training from midnight 27 days before it,
validation from 14 days after that. Larger than memory: DuckDB streams each file once. Files appear
under their names only when all are written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow.parquet as pq

from behavegpt.challenge.strict import recompute_targets
from behavegpt.challenge.tables import (
    UNUSABLE,
    Progress,
    events,
    first_and_last,
    kept_columns,
    limit_memory,
    moment_sql,
    naming_bad_rows,
    shown,
    unusable,
    write_query,
)
from behavegpt.data.database import connect, literal, one_row, quoted, reading
from behavegpt.datasets.challenge_files import (
    EVENTS,
    PROPERTY_COLUMNS,
    WINDOWS,
    ChallengeDirectory,
    check_products,
    check_table,
    open_directory,
    raw_rows,
)
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import workspace
from behavegpt.paths import local_path

# in nanoseconds: the raw times have fractions of a second
DAY = np.timedelta64(86_400 * 10**9, "ns")
# 28 days with the last one, in two windows
BEFORE_END, WINDOW = 27 * DAY, 14 * DAY


class Boundaries(NamedTuple):
    """Input: before `train`; training: [train, validation); validation: [validation, end], its end
    included."""

    train: np.datetime64
    validation: np.datetime64
    end: np.datetime64


def boundaries(last_purchase: np.datetime64) -> Boundaries:
    """Where the windows begin. Hours, minutes and seconds are cut off, fractions of a second are
    not (as theirs)."""
    end = last_purchase.astype("datetime64[ns]")
    # kept, as the organizers' code keeps it: their windows begin that much after midnight
    fraction = end - end.astype("datetime64[s]")

    train = (end - BEFORE_END).astype("datetime64[D]").astype("datetime64[ns]") + fraction
    return Boundaries(train, train + WINDOW, end)


def split(
    path: str | Path,
    out: str | Path | None = None,
    *,
    strict: bool = False,
    unknown_skus: bool = False,
    memory: str = "2GiB",
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write input/EVENT.parquet and target/{train,validation}_target.parquet into the directory, or
    into a copy `out`.

    strict: `out` gets active clients, labels and popularity of the input part alone (theirs keep
    the full history's). unknown_skus: keep purchases of products without properties (category and
    price stay empty). Returns the boundaries and, for each file, rows and first and last time.
    """
    directory = open_directory(path)
    target = local_path(out) if out is not None else directory.path
    in_place = target.resolve() == directory.path.resolve()
    _check_options(strict and in_place, threads)

    # columns and types of all files, by their footers, before anything is read
    raw_rows(path)
    check_table(directory.properties, PROPERTY_COLUMNS)

    with _workspace(target) as work, connect(work, threads=threads) as con, reading(str(path)):
        limit_memory(con, memory)
        check_products(con, directory.properties)

        ends = _boundaries(con, directory)
        (work / "input").mkdir()
        (work / "target").mkdir()

        written = _write_inputs(con, directory, work, ends, progress)
        written |= _write_targets(con, directory, work, ends, unknown_skus)

        # a copy must hold all that the evaluation reads
        if not in_place:
            _copy_arrays(directory, work)
        if strict:
            recompute_targets(con, directory, work)

        files = {name: rows | first_and_last(con, work / name) for name, rows in written.items()}
        _publish(work, target)

    moments = {name: shown(moment) for name, moment in ends._asdict().items()}
    return {"directory": str(target), "boundaries": moments, "files": files}


def _check_options(strict_in_place: bool, threads: int | None) -> None:
    if strict_in_place:
        raise ConfigError(
            "--strict writes other active clients and labels than the organizers'; add --out "
            "FOLDER."
        )
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: must be at least 1.")


def _boundaries(con: duckdb.DuckDBPyConnection, directory: ChallengeDirectory) -> Boundaries:
    file = directory.raw("product_buy")
    query = f"SELECT epoch_ns(max(moment)), count(*) FILTER ({UNUSABLE}) FROM ({events(file)})"
    with reading(str(file), [file]):
        last, bad = one_row(con, query)

    if bad:
        raise unusable(con, file)
    if last is None:
        raise DataError(
            f"{file}: holds no purchase; the windows are counted back from the last one."
        )
    return boundaries(np.datetime64(last, "ns"))


def _write_inputs(
    con: duckdb.DuckDBPyConnection,
    directory: ChallengeDirectory,
    work: Path,
    ends: Boundaries,
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:
    """Events before the windows, in the order of the raw files."""
    # rows of each file, for the progress
    sizes = {event: pq.read_metadata(directory.raw(event)).num_rows for event in EVENTS}
    before, done = moment_sql(ends.train), 0

    written = {}
    for event, size in sizes.items():
        name, file = f"input/{event}.parquet", directory.raw(event)
        # an unusable row raises inside of DuckDB: no second pass to look for one
        keep = f"CASE WHEN {UNUSABLE} THEN error('unusable') ELSE moment < {before} END"
        query = f"{kept_columns()} FROM ({events(file)}) WHERE {keep}"

        with naming_bad_rows(con, file):
            rows = write_query(con, query, work / name, progress, done, size, event)
        written[name] = {"rows": rows}
        done += size

    if progress:
        progress(done, "")
    return written


def _write_targets(
    con: duckdb.DuckDBPyConnection,
    directory: ChallengeDirectory,
    work: Path,
    ends: Boundaries,
    unknown_skus: bool,
) -> dict[str, dict[str, Any]]:
    """Purchases of the two windows with their product's properties, in the order of the raw
    file."""
    file = directory.raw("product_buy")

    # the last purchase itself belongs to the validation window
    inside = {
        "train": f"moment >= {moment_sql(ends.train)} AND moment < {moment_sql(ends.validation)}",
        "validation": (
            f"moment >= {moment_sql(ends.validation)} AND moment <= {moment_sql(ends.end)}"
        ),
    }

    written = {}
    for window in WINDOWS:
        name = f"target/{window}_target.parquet"
        query = f"""
            {kept_columns("bought.")}, product.* EXCLUDE (sku)
            FROM (SELECT * FROM ({events(file)}) WHERE {inside[window]}) bought
            LEFT JOIN read_parquet({literal(directory.properties)}) product USING (sku)
            ORDER BY bought.file_row_number"""
        with reading(str(file), [file, directory.properties]):
            rows = write_query(con, query, work / name)

        if not unknown_skus:
            _check_joined(con, work / name, directory)
        written[name] = {"rows": rows}
    return written


def _check_joined(
    con: duckdb.DuckDBPyConnection, file: Path, directory: ChallengeDirectory
) -> None:
    """No empty property, as the organizers assert; says which product and column."""
    columns = pq.read_schema(file).names
    for column in columns:
        query = f"SELECT count(*), count(DISTINCT sku), min(sku) FROM read_parquet({literal(file)})"
        # one query a column names an example; a join that failed leaves all of them empty
        rows, skus, first = one_row(con, f"{query} WHERE {quoted(column)} IS NULL")
        if rows:
            raise DataError(
                f"{directory.properties}: {column!r} is missing for {skus:,} products that are "
                f"bought {rows:,} times in the target windows, such as sku {first}; add their "
                "properties, or keep the purchases without them (--unknown-skus)."
            )


@contextlib.contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A hidden folder beside the results, gone afterwards; so is a new `target` into which nothing
    came."""
    # a folder that nobody had is not left behind empty
    fresh = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        with workspace(target / "split") as work:
            yield work
    finally:
        if fresh and not any(target.iterdir()):
            target.rmdir()


def _copy_arrays(directory: ChallengeDirectory, work: Path) -> None:
    """What a copy needs besides the split: clients, labels, popularity and properties."""
    for file in (
        *directory.path.glob("input/*.npy"),
        *directory.path.glob("target/*.npy"),
        directory.properties,
    ):
        shutil.copyfile(file, work / file.relative_to(directory.path))


def _publish(work: Path, target: Path) -> None:
    """Move everything that was written to its place."""
    # DuckDB's spills stay behind, and go with the workspace
    files = [
        file
        for file in work.rglob("*")
        if file.is_file() and "spill" not in file.relative_to(work).parts
    ]

    for name in ("input", "target"):
        (target / name).mkdir(exist_ok=True)
    for file in files:
        # renames within one disk: each file is there as a whole or not at all
        os.replace(file, target / file.relative_to(work))
