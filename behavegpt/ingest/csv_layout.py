"""How a CSV file is laid out: delimiter, Excel's `sep=` line, index columns, trailing delimiters, a
missing header."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from behavegpt.errors import DataError

_DELIMITERS = ",\t;|"
_EXCEL = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
_ROWS = 50  # records behind the header that are looked at
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
# dates in the ways that people write them, and epochs from 2001 on
_MOMENT = re.compile(
    r"\d{4}-\d{1,2}-\d{1,2}([ T].*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}([ T].*)?|\d{9,}(\.\d*)?"
)


class CsvLayout(NamedTuple):
    """How to read a CSV file."""

    names: tuple[str, ...] = ()
    delimiter: str = ","
    skip: int = 0  # lines before the header


def csv_layout(where: str, head: str, whole: bool) -> CsvLayout:
    """The layout of a file by its first characters; `whole`: there are no more. Raises DataError
    without a header."""
    # Excel writes `sep=;` before the header, and reads it
    excel = _EXCEL.match(head)
    text = head[excel.end() :] if excel else head
    first = text.partition("\n")[0].rstrip("\r")
    # the caller says that there are no names
    if not first.strip():
        return CsvLayout()

    # the one that the header has most of
    delimiter = excel[1] if excel else max(_DELIMITERS, key=first.count)
    records = _records(text, delimiter, whole)
    names = _names(where, records[0], records[1:])
    return CsvLayout(names, delimiter, 1 if excel else 0)


def _records(text: str, delimiter: str, whole: bool) -> list[list[str]]:
    lines = text.splitlines(keepends=True)

    # the last line may be cut off where the head ends
    reader = csv.reader(
        io.StringIO("".join(lines if whole else lines[:-1] or lines), newline=""),
        delimiter=delimiter,
    )

    records: list[list[str]] = []
    try:
        for record in reader:
            if record:  # not an empty line
                records.append(record)
            if len(records) > _ROWS:
                break
    except csv.Error:  # a field longer than the module reads: what came before it tells enough
        pass
    return records or [next(csv.reader([text.partition("\n")[0]], delimiter=delimiter))]


def _names(where: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of all columns of the rows: columns without a name are called as pandas calls them."""
    if _is_data(header, rows):
        shown = ", ".join(header[:4])
        raise DataError(
            f"{where}: the first line ({shown}) looks like data, not like names of columns; put a "
            "line of names before it, for example user,time,event."
        )

    names = list(header)
    widths = {len(row) for row in rows}
    # only where all rows agree: one row too long is a fault of that row
    if widths == {len(names) + 1}:
        # a delimiter at the end of each line, but not of the header
        if not any(row[-1] for row in rows):
            names.append("")
        elif _counts(rows):  # an index without a name, as R writes it
            names.insert(0, "")
    # a delimiter at the end of the header alone
    elif len(names) > 1 and not names[-1] and widths == {len(names) - 1}:
        names.pop()
    if not any(names):
        return ()

    taken = set(names)
    for i, name in enumerate(names):
        if not name:
            # pandas' names, under which people know these columns
            named = f"Unnamed: {i}"
            while named in taken:
                named += ".1"
            names[i] = named
            taken.add(named)
    return tuple(names)


def _counts(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first fields count up by one."""
    # an index counts up; ids that happen to be numbers do not
    first = [row[0] for row in rows]
    return all(text.isdecimal() for text in first) and all(
        int(b) - int(a) == 1 for a, b in pairwise(first)
    )


def _is_data(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first record is one of the rows: a time where the next has one, or nothing but
    numbers."""
    if not rows or len(header) < 2:
        return False

    pairs = list(zip(header, rows[0], strict=False))
    if any(
        _MOMENT.fullmatch(name.strip()) and _MOMENT.fullmatch(value.strip())
        for name, value in pairs
    ):
        return True

    # names that pandas gives to columns without one
    positions = [str(i) for i in range(len(header))]
    numbers = all(_NUMBER.fullmatch(name) and _NUMBER.fullmatch(value) for name, value in pairs)
    return numbers and list(header) != positions
