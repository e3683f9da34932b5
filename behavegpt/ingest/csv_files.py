"""CSV files in DuckDB, as text; a quote that is not closed is found before it swallows rows without
a word."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb

from behavegpt.data.database import literal, quoted
from behavegpt.errors import DataError
from behavegpt.ingest.log_file import LONGEST_LINE, LogFile, encoding_error, open_text, write_utf8

_CERTAIN = 5  # columns from which on two lines inside one field are no coincidence


def csv_query(
    files: Sequence[LogFile], columns: Sequence[str], folder: Path, check: bool = True
) -> str:
    """Query of the columns as text, with the file; `folder` takes copies of files that DuckDB
    cannot read.

    `check` adds the column `behavegpt_swallowed`, true where a field holds lines that look like
    rows.
    """
    values = ", ".join(quoted(column) for column in columns)

    # Files that are written alike are read together; DuckDB cannot both match columns by name and
    # keep broken lines.
    groups: dict[tuple[object, ...], list[LogFile]] = {}
    for file in files:
        alike = (file.csv, file.compression, file.path if file.converted else None)
        groups.setdefault(alike, []).append(file)

    parts = []
    for group in groups.values():
        first = group[0]
        name, paths = "behavegpt_file", [file.path for file in group]
        compression = first.compression

        if first.converted:
            paths, compression = [_scratch(files, first, folder)], "none"
            write_utf8(first, paths[0])
            name = f"{literal(first.path)} AS behavegpt_file"

        test = f", {_swallowed(first)} AS behavegpt_swallowed" if check else ""
        names = "{" + ", ".join(f"{literal(column)}: 'VARCHAR'" for column in first.csv.names) + "}"
        # nothing is sniffed: the layout is known, and every value is text until the dictionaries
        parts.append(
            f"SELECT {values}, {name}{test} FROM read_csv({_listed(paths)}, columns={names}, "
            f"header=true, skip={first.csv.skip}, delim={literal(first.csv.delimiter)}, "
            f"quote='\"', escape='\"', auto_detect=false, compression={literal(compression)}, "
            "filename='behavegpt_file', hive_partitioning=false, store_rejects=true, "
            f"rejects_limit=0, max_line_size={LONGEST_LINE})"
        )

    return " UNION ALL ".join(parts)


def copy_csv(
    con: duckdb.DuckDBPyConnection,
    files: Sequence[LogFile],
    columns: Sequence[str],
    target: Path,
    folder: Path,
) -> None:
    """Copy the columns to a parquet file of text and make the table `behavegpt_malformed`. Raises
    DataError."""
    # broken lines end up in the tables reject_errors and reject_scans
    con.execute(f"COPY ({csv_query(files, columns, folder)}) TO {literal(target)} (FORMAT parquet)")

    # a record may break over several lines: `lines` counts the line ends in its text
    con.execute(
        "CREATE TABLE behavegpt_malformed AS SELECT file_path AS file, any_value(csv_line) AS "
        "line, line AS number, any_value(error_type::VARCHAR) AS kind, 1 + "
        "len(regexp_replace(rtrim(any_value(csv_line), chr(10) || chr(13)), '[^\\n]', '', 'g')) AS "
        "lines FROM reject_errors JOIN reject_scans USING (scan_id, file_id) GROUP BY ALL"
    )

    # errors name the file that people know, not its copy
    for file in files:
        if file.converted:
            scratch = _scratch(files, file, folder)
            con.execute(
                f"UPDATE behavegpt_malformed SET file = {literal(file.path)} WHERE file = "
                f"{literal(scratch)}"
            )

    _refuse(con, files)
    # a quote that swallowed rows makes no error of its own: one long value
    query = (
        f"SELECT behavegpt_file FROM read_parquet({literal(target)}) WHERE behavegpt_swallowed "
        "LIMIT 1"
    )
    swallowing = con.execute(query).fetchone()
    if swallowing:
        _refuse_swallowed(next(file for file in files if str(file.path) == swallowing[0]))


def _scratch(files: Sequence[LogFile], file: LogFile, folder: Path) -> Path:
    """Where the copy of a file goes."""
    return folder / f"text-{files.index(file)}.csv"


def _refuse(con: duckdb.DuckDBPyConnection, files: Sequence[LogFile]) -> None:
    """Raise DataError for records that are more than a line gone wrong."""
    # of several rows at fault always the same one: the first by file and line
    row = con.execute(
        "SELECT file, number FROM behavegpt_malformed WHERE kind = 'INVALID ENCODING' ORDER BY "
        "ALL LIMIT 1"
    ).fetchone()

    # an encoding that somebody named may reject lines; a guessed one may not
    if row and any(str(file.path) == row[0] and file.strict for file in files):
        raise encoding_error(Path(row[0]), f", line {row[1]}")

    row = con.execute(
        "SELECT file, number FROM behavegpt_malformed WHERE (kind = 'UNQUOTED VALUE' AND lines > "
        "1) OR kind = 'LINE SIZE OVER MAXIMUM' ORDER BY ALL LIMIT 1"
    ).fetchone()
    if row:
        raise _unclosed(row[0], row[1])


def _unclosed(file: object, line: int) -> DataError:
    return DataError(
        f'{file}, line {line}: a quote (") opens there and is not closed where its field ends, so '
        "that the lines behind it would become one value. Remove it, or write it twice "
        '("") and put the whole field into quotes.'
    )


def _patterns(file: LogFile) -> list[str]:
    """Of a field of each column: text that holds the end of one row, whole rows, and the beginning
    of another."""
    # (?s) for the first field alone: it is prose that may run over lines, rows may not
    delimiter, width = re.escape(file.csv.delimiter), len(file.csv.names)

    # prose has a space behind its commas, tables have none
    field = f"(?:[^ {delimiter}\n][^{delimiter}\n]*)?"
    rest = f"(?:{delimiter}{field})"
    # with few columns a single line break could be prose: at least one whole row between
    inner = "*" if width >= _CERTAIN else "+"
    return [
        f"(?s)[^{delimiter}\n]*{rest}{{{width - 1 - i}}}(?:\n{field}{rest}{{{width - 1}}}){inner}"
        f"\n{field}{rest}{{{i}}}\r?"
        for i in range(width)
    ]


def _swallowed(file: LogFile) -> str:
    """SQL of whether a field of the row holds lines that look like rows."""
    width = len(file.csv.names)
    # one column has no rows to tell from prose; the pattern of very many is too large
    if not 2 <= width <= 500:
        return "false"
    tests = (
        f"(contains({quoted(name)}, chr(10)) AND regexp_full_match(replace({quoted(name)}, "
        f"chr(13), ''), {literal(pattern)}))"
        for name, pattern in zip(file.csv.names, _patterns(file), strict=True)
    )
    return f"coalesce({' OR '.join(tests)}, false)"


def _refuse_swallowed(file: LogFile) -> None:
    """Find the line for the error: the file is read once more, by the standard library."""
    patterns = [re.compile(pattern) for pattern in _patterns(file)]
    csv.field_size_limit(LONGEST_LINE)

    # the number of the line on which the record begins
    begin = 1 + file.csv.skip

    with open_text(file) as text:
        for _ in range(file.csv.skip):
            text.readline()

        reader = csv.reader(text, delimiter=file.csv.delimiter)
        for record in reader:
            if any(
                p.fullmatch(field.replace("\r", ""))
                for p, field in zip(patterns, record, strict=False)
                if "\n" in field
            ):
                raise _unclosed(file.path, begin)
            begin = 1 + file.csv.skip + reader.line_num
    # DuckDB's patterns and Python's may differ at an odd character: the file is named at least
    raise _unclosed(file.path, 1)


def _listed(files: Sequence[Path]) -> str:
    return "[" + ", ".join(literal(glob.escape(str(file))) for file in files) + "]"
