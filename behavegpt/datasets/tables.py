"""Published benchmark logs -> a parquet log and its schema, as `published.py` describes them.
Labels stay text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from behavegpt.config import dump_settings
from behavegpt.data.database import connect, literal, quoted
from behavegpt.data.schema import EventSchema
from behavegpt.datasets.clock import add_clock
from behavegpt.datasets.converters import SENSIBLE, unread_column
from behavegpt.datasets.published import PUBLISHED, PublishedLog
from behavegpt.errors import DataError, first_line
from behavegpt.io import workspace
from behavegpt.paths import local_path


def convert_published(
    name: str, source: str | Path, out: str | Path, clock: float | None = None
) -> EventSchema:
    """Write the published log `name`, downloaded to `source`, as parquet to `out`; return its
    schema.

    The schema also goes beside it as NAME.schema.yaml. `source` is a folder, or a file where the
    log is one. `clock`: days between the ticks of `datasets/clock.py`, none without it. Raises
    DataError.
    """
    log, source, out = PUBLISHED[name], local_path(source), local_path(out)
    if out.is_dir():
        raise DataError(f"{out}: a folder; give the name of the parquet file to write.")

    parts = _find(source, log)
    with workspace(out) as work, connect(work) as con:
        # or row numbers would not follow the files
        con.execute("SET preserve_insertion_order = true")

        part, schema = work / "log.parquet", log.schema
        with _explained(name, source, log):
            rows, time = _rows(con, source, log, parts)

            columns = ", ".join(
                f"{sql.replace('{time}', time)} as {quoted(name)}"
                for name, sql in log.select.items()
            )

            con.execute(
                f"copy (select {columns} from {rows}) to {literal(part)} (format parquet, "
                "compression zstd)"
            )
            _check(con, name, source, log, part)

            if clock is not None:
                plain, part = part, work / "ticking.parquet"
                schema = add_clock(con, plain, part, schema, clock)

        described = work / "schema.yaml"
        described.write_text(dump_settings(schema), encoding="utf-8")
        # the log first: a schema without its log would be taken for one that is complete
        os.replace(part, out)
        os.replace(described, out.with_suffix(".schema.yaml"))
    return schema


def _find(source: Path, log: PublishedLog) -> dict[str, list[Path]]:
    """The files of each part: those of the first name that any file has."""
    if source.is_file() and len(log.files) == 1:
        return {part: [source] for part in log.files}

    parts = {}
    for part, names in log.files.items():
        # formats of one log differ by mirror; the first that is there is read
        for name in names:
            files = sorted(file for file in source.glob(name) if file.is_file())
            if files:
                break
        else:
            missing = "a file; give the folder it is in" if source.is_file() else "no such folder"
            seen = f"no {' or '.join(names)} in it" if source.is_dir() else missing
            raise DataError(f"{source}: {seen}. {log.about}")

        parts[part] = files
    return parts


def _rows(
    con: duckdb.DuckDBPyConnection, source: Path, log: PublishedLog, parts: dict[str, list[Path]]
) -> tuple[str, str]:
    """SQL of one row per event with the columns of `log`, and SQL of its column `time` as a
    timestamp."""
    # union by name: parts of a log differ in their columns
    reads = [
        f"select *, {literal(part)} as part from {_reader(files, log)}"
        for part, files in parts.items()
    ]

    con.execute(f"create view raw as {' union all by name '.join(reads)}")

    # of the union: a column may have another type in each part
    types = {row[0]: row[1] for row in con.execute("describe raw").fetchall()}

    # mirrors of one log rename columns: the first known name that is there
    known = {}
    for column, names in log.columns.items():
        actual = next((name for name in names if name in types), None)
        if actual is None and column not in log.optional:
            raise DataError(
                f"{source}: no column {' or '.join(names)}, but {', '.join(types)}. {log.about}"
            )
        # absent and optional: null
        known[column] = actual

    named = ", ".join(
        f"{quoted(actual) if actual else 'null'} as {quoted(c)}" for c, actual in known.items()
    )
    con.execute(f"create view named as select part, filename as file, {named} from raw")

    kinds = {column: types[actual] if actual else "NULL" for column, actual in known.items()}
    # one row per user: its lists become one row per event
    # a list of structs stays: the log's own SQL takes it apart
    lists = [
        column for column, kind in kinds.items() if kind.endswith("[]") and "STRUCT" not in kind
    ]

    time = kinds.get("time", "").removesuffix("[]")
    if time.startswith(("TIMESTAMP", "DATE")):
        instant = "time::timestamp"
    # "": no column of times, but SQL in `select` that makes one
    elif time in ("VARCHAR", ""):
        instant = "try_cast(time as timestamp)"
    else:  # epoch seconds
        instant = "make_timestamp((time * 1000000)::bigint)"

    return log.rows.format(table=_flat(con, source, list(known), lists)), instant


def _flat(
    con: duckdb.DuckDBPyConnection, source: Path, columns: list[str], lists: list[str]
) -> str:
    """SQL of the view `named` with its lists unpacked and with `line`. Raises DataError for lists
    of unequal length."""
    if not lists:
        return "(select *, row_number() over () as line from named)"

    sizes = [f"len({quoted(column)})" for column in lists]
    # unnest would pad the shorter list with nulls
    unequal = " or ".join(f"{size} <> {sizes[0]}" for size in sizes) or "false"

    bad = con.execute(
        f"select file, {', '.join(sizes)} from named where {unequal} limit 1"
    ).fetchone()
    if bad:
        lengths = ", ".join(f"{name} {size}" for name, size in zip(lists, bad[1:], strict=True))
        raise DataError(
            f"{bad[0]}: the lists of a row differ in length ({lengths}); download {source} again."
        )

    values = ", ".join(
        f"unnest({quoted(c)}) as {quoted(c)}" if c in lists else quoted(c) for c in columns
    )
    return (
        f"(select part, file, {values}, generate_subscripts({quoted(lists[0])}, 1) as line from "
        "named)"
    )


def _reader(files: list[Path], log: PublishedLog) -> str:
    listed = "[" + ", ".join(literal(file) for file in files) + "]"
    if files[0].suffix == ".parquet":
        return f"read_parquet({listed}, union_by_name = true, filename = true)"

    # by the first file: `_find` took files of one name
    if files[0].suffix == ".csv":
        # all as text; values may be quoted
        return (
            f"read_csv({listed}, header = true, all_varchar = true, quote = '\"', escape = '\"', "
            "filename = true)"
        )

    types = ", ".join(f"{literal(column)}: {literal(kind)}" for column, kind in log.types.items())
    # all lines: a field that is missing from the first ones would be lost
    guess = f"columns = {{{types}}}" if types else "sample_size = -1"
    return f"read_json({listed}, {guess}, filename = true)"


@contextmanager
def _explained(name: str, source: Path, log: PublishedLog) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DataError(
            f"{source}: cannot be read as {name} ({first_line(error)}). {log.about}"
        ) from None


def _check(
    con: duckdb.DuckDBPyConnection, name: str, source: Path, log: PublishedLog, part: Path
) -> None:
    """Raise DataError when more than MAX_UNREAD of the users, times or events make no sense."""
    tests = SENSIBLE | {"event": "{} <> ''"}
    unread = unread_column(con, part, tests, f"{source}: no events of {name} in it. {log.about}")
    if unread is not None:
        column, share = unread
        raise DataError(
            f"{source}: {column} cannot be read in {share:.0%} of the rows. {log.about}"
        )
