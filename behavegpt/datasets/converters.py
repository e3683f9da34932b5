"""Known public logs, by name: the downloaded file -> a parquet log and its schema, as
`public_logs.py` describes them.

Labels stay text and are not renumbered. Cells that cannot be read become null; `prepare` rejects
and counts them.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb

from behavegpt.config import closest, dump_settings
from behavegpt.data.database import connect, literal, one_row, quoted
from behavegpt.data.schema import EventSchema
from behavegpt.datasets.clock import add_clock
from behavegpt.datasets.public_logs import CONVERTERS, Converter
from behavegpt.datasets.shop_log import shop_table
from behavegpt.errors import DataError, first_line
from behavegpt.io import workspace, write_text
from behavegpt.paths import local_path, target

# known too, made by behavegpt.datasets
ELSEWHERE = ("git", "web_log", "easytpp", "mbd", "massive_steps", "yambda", "carat")
# share of null users, times or events above which the file is not what its name says
MAX_UNREAD = 0.01
# all these logs are later; ids mistaken for epoch seconds are not
EARLIEST = "timestamp '2000-01-01'"
# column -> SQL that holds where it makes sense
SENSIBLE = {"user_id": "{} is not null", "timestamp": f"coalesce({{}} >= {EARLIEST}, false)"}


def convert(
    name: str, source: str | Path, out: str | Path, clock: float | None = None
) -> EventSchema:
    """Write the log `source`, a download of the public data set `name`, as parquet to `out`; return
    its schema.

    The schema also goes beside it as NAME.schema.yaml. `source` is the file or the folder it is in.
    `clock`: days between the ticks of `clock.py`, none without it. Raises DataError.
    """
    if name not in CONVERTERS:
        raise DataError(
            f"{name!r} is not a known public log. {closest(name, [*ELSEWHERE, *CONVERTERS])}"
        )

    converter, out = CONVERTERS[name], local_path(out)
    if out.is_dir():
        raise DataError(f"{out}: a folder; give the name of the parquet file to write.")

    with workspace(out) as work, connect(work) as con:
        # or row numbers would not follow the file
        con.execute("SET preserve_insertion_order = true")

        source = _find(local_path(source), converter)
        table, select, schema = _reading(con, name, source, converter)
        columns = ", ".join(f"{sql} as {quoted(column)}" for column, sql in select.items())
        part = work / "log.parquet"
        with _explained(name, source, converter):
            con.execute(
                f"copy (select {columns} from {table} where {converter.where}) "
                f"to {literal(part)} (format parquet, compression zstd)"
            )
            _check(con, name, source, converter, table, part)
            if clock is not None:
                plain, part = part, work / "ticking.parquet"
                schema = add_clock(con, plain, part, schema, clock)

        os.replace(part, target(out))
        write_text(out.with_suffix(".schema.yaml"), dump_settings(schema))
    return schema


def _reading(
    con: duckdb.DuckDBPyConnection, name: str, source: Path, converter: Converter
) -> tuple[str, dict[str, str], EventSchema]:
    """How a download is read: SQL of its rows, SQL of each column of the log, the log's schema."""
    # labels are kept as events; their categories, if known, are what is predicted
    categories = _beside(source, converter)
    select, schema = dict(converter.select), converter.schema
    if categories:
        select["behavior"] = "category"
        schema = schema.model_copy(update={"behavior": "behavior"})

    # five files of different columns, where all others are one text file
    if name == "recsys2025":
        table, codes = shop_table(con, source.parent)
        select |= {f"code_{i:02}": f"codes[{i + 1}]" for i in range(codes)}
        return table, select, schema
    return _text_table(source, converter, categories), select, schema


def _find(source: Path, converter: Converter) -> Path:
    """The file itself, or the one in the folder `source` that has the download's name."""
    if source.is_file():
        return source
    # exactly one: of two copies of a log nothing tells the right one
    matches = sorted(source.glob(converter.file)) if source.is_dir() else []
    if len(matches) != 1:
        seen = f"{len(matches)} files" if source.is_dir() else "no such file or folder"
        raise DataError(
            f"{source}: {seen} with the name {converter.file}; give the path of that one file."
        )
    return matches[0]


def _beside(source: Path, converter: Converter) -> Path | None:
    """The file of categories beside `source`, if this log has one and it was downloaded too."""
    path = source.parent / converter.categories[0] if converter.categories else None
    return path if path is not None and path.is_file() else None


def _text_table(source: Path, converter: Converter, categories: Path | None) -> str:
    """A delimited text file as SQL: the converter's columns as text, the number of the line, and
    the category."""
    fields = _first_line(source, converter.encoding)
    # some copies of a log have another
    separator = next((s for s in converter.separators if s in fields), converter.separators[0])

    names = fields.split(separator)
    expected = list(converter.columns)
    if len(names) != len(expected) or (converter.header and names != expected):
        raise DataError(
            f"{source}: the first line has the columns {names}, expected are {expected} between "
            f"{separator!r}{'' if converter.header else ' and no header'}. {converter.about}"
        )

    lines = _read_csv(source, expected, separator, converter.header, converter.encoding)
    table = f"(select *, row_number() over () as line from {lines})"
    if categories is None or converter.categories is None:
        return table

    tab = "\t" if "\t" in _first_line(categories, "utf-8") else " "
    kinds = _read_csv(categories, ["label", "kind"], tab, False, "utf-8")

    label = converter.categories[1]
    # never doubles an event
    known = f"(select label, any_value(kind) as category from {kinds} group by label)"

    return f"(select log.*, category from {table} log left join {known} on {label} = label)"


def _read_csv(path: Path, columns: list[str], separator: str, header: bool, encoding: str) -> str:
    types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns)
    return (
        # nothing is sniffed, and nothing is quoted: a name may hold a quote
        f"read_csv({literal(path)}, auto_detect = false, columns = {{{types}}}, delim = "
        f"{literal(separator)}, header = {header}, quote = '', escape = '', "
        f"encoding = {literal(encoding)})"
    )


def _first_line(path: Path, encoding: str) -> str:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            # bounded: an archive has no line ends
            line = file.readline(1 << 20)
        text = line.decode(encoding).strip("\r\n")
    except (OSError, EOFError, UnicodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}); download it again or unpack it."
        ) from None

    if not text or "\0" in text:
        raise DataError(
            f"{path}: {'an archive' if text else 'empty'}; give the unpacked text file."
        )

    return text


@contextmanager
def _explained(name: str, source: Path, converter: Converter) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DataError(
            f"{source}: not a {name} log ({first_line(error)}). {converter.about}"
        ) from None


def unread_column(
    con: duckdb.DuckDBPyConnection, part: Path, tests: Mapping[str, str], empty: str
) -> tuple[str, float] | None:
    """The first column of a written log that makes no sense in more than MAX_UNREAD of the rows,
    and the share of these; None where all can be read.

    `tests`: column -> SQL that holds where it makes sense, `{}` for the column. Raises DataError
    with the text `empty` for a log without rows.
    """
    counts = ", ".join(f"count(*) filter ({test.format(column)})" for column, test in tests.items())
    rows, *sound = one_row(con, f"select count(*), {counts} from {literal(part)}")
    if not rows:
        raise DataError(empty)

    for column, count in zip(tests, sound, strict=True):
        if 1 - count / rows > MAX_UNREAD:
            return column, 1 - count / rows
    return None


def _check(
    con: duckdb.DuckDBPyConnection,
    name: str,
    source: Path,
    converter: Converter,
    table: str,
    part: Path,
) -> None:
    """Raise DataError with an example when more than MAX_UNREAD of the users, times or events make
    no sense."""
    # what `prepare` would reject row by row is refused at once where it is many rows
    tests = SENSIBLE | {"event": "{} is not null"}
    empty = f"{source}: no rows of a {name} log. {converter.about}"
    unread = unread_column(con, part, tests, empty)
    if unread is None:
        return

    column, share = unread
    names = ", ".join(map(quoted, converter.columns))
    # the expression itself: the written column is null where it could not be read
    bad = f"not {tests[column].format(f'({converter.select[column]})')}"
    row = one_row(con, f"select {names} from {table} where {converter.where} and {bad} limit 1")
    example = dict(zip(converter.columns, row, strict=True))
    raise DataError(
        f"{source}: {column} cannot be read in {share:.0%} of the rows, for example in {example}. "
        f"{converter.about}"
    )
