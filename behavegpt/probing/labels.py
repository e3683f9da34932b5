"""Labels of users: a CSV, JSONL or parquet file, or a frame, with a row for each user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.config import closest
from behavegpt.data.database import connect, literal, named_rows, one_row, quoted, reading
from behavegpt.errors import DataError
from behavegpt.ingest.column_names import NAMES
from behavegpt.ingest.dictionaries import build_dictionary
from behavegpt.ingest.log_table import Source, open_source
from behavegpt.ingest.sources import Logs, find_logs
from behavegpt.io import temporary_folder
from behavegpt.probing.settings import Task

MOST_CLASSES = 20  # beyond, numbers are values, not classes
_SHOWN = 20


@dataclass(frozen=True)
class Labels:
    """One label for each of L users."""

    column: str
    users: pa.StringArray  # (L,), sorted
    values: np.ndarray  # (L,) float64, or int64 indices of `classes`
    classes: tuple[str, ...]  # empty for a regression
    skipped: int  # rows without a user or a label

    @property
    def task(self) -> Task:
        """What the labels are predicted by."""
        return "classification" if self.classes else "regression"


def read_labels(
    source: Any,
    column: str | None,
    user: str | None,
    log_user: str,
    user_rule: str | None,
    task: str,
) -> Labels:
    """Read the labels of `source`; `column` and `user` may be left out where the file leaves no
    choice.

    `log_user`: what the log calls its users; `user_rule`: how it writes them. Raises DataError.
    """

    logs = find_logs(source)
    user = _named(logs, user, "--label-user") or _user_column(logs, log_user)
    column = _named(logs, column, "--label") or _label_column(logs, user)

    with temporary_folder() as folder, connect(folder) as con:
        opened = open_source(con, logs, [user, column], folder)
        with reading(logs.name, logs.files):
            _refuse_malformed(con, opened)
            # by the log's rule: its user `7` may stand as 7.0 in this file
            build_dictionary(con, opened, user, 0, user_rule)
            # without a rule: how labels are written is found out, as for a log's column
            build_dictionary(con, opened, column, 1, None)
            rows = _rows(con, opened, user, column)
            skipped = one_row(con, f"SELECT count(*) FROM {opened.sql}")[0] - rows[2]
    return _typed(logs.name, column, rows[0], rows[1], int(skipped), task)


def _rows(
    con: Any, source: Source, user: str, column: str
) -> tuple[pa.StringArray, pa.StringArray, int]:
    """Users (L,) sorted, their labels (L,), and the rows they come from. Raises DataError for a
    user with two labels."""
    con.execute(
        f"CREATE TABLE labeled AS SELECT u.label AS user, l.label AS label, count(*) AS rows FROM "
        f"(SELECT {quoted(user)} AS user, {quoted(column)} AS label FROM {source.sql}) s "
        "JOIN (SELECT r.raw, d.label FROM raw_0 r JOIN dictionary_0 d USING (code)) u "
        "ON s.user = u.raw "
        "JOIN (SELECT r.raw, d.label FROM raw_1 r JOIN dictionary_1 d USING (code)) l "
        "ON s.label = l.raw GROUP BY ALL"
    )
    # which of the two is right nobody can tell; equal ones were joined above
    twice = named_rows(
        con,
        "SELECT user, min(label) AS one, max(label) AS two FROM labeled GROUP BY user "
        "HAVING count(*) > 1 ORDER BY user LIMIT 1",
    )
    if twice:
        one = twice[0]
        raise DataError(
            f"{source.name}: user {one['user'][:100]!r} has two labels in column {column!r}, "
            f"{one['one'][:60]!r} and {one['two'][:60]!r}; write one row for each user."
        )

    table = con.sql("SELECT user, label FROM labeled ORDER BY user").to_arrow_table()
    total = one_row(con, "SELECT coalesce(sum(rows), 0) FROM labeled")[0]
    columns = [table[name].combine_chunks().cast(pa.string()) for name in ("user", "label")]
    return columns[0], columns[1], int(total)


def _typed(
    name: str,
    column: str,
    users: pa.StringArray,
    texts: pa.StringArray,
    skipped: int,
    task: str,
) -> Labels:
    """Labels as classes, or as numbers where they are."""
    if not len(users):
        raise DataError(
            f"{name}: no row has both a user and a value in column {column!r}; name another one "
            "with --label."
        )

    # each distinct text is looked at once, whatever the number of users
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    numbers = [_number(text) for text in distinct]
    strange = next((t for t, n in zip(distinct, numbers, strict=True) if n is None), None)

    measured = np.array([n for n in numbers if n is not None])
    # amounts of which some are infinite are no classes
    if task == "auto" and strange is not None and _measures(measured):
        texts_of_none = (text for text, n in zip(distinct, numbers, strict=True) if n is None)
        task = "regression" if all(map(_is_infinite, texts_of_none)) else task
    if task == "regression" and strange is not None:
        raise DataError(
            f"{name}: column {column!r} holds {strange[:60]!r}, which is no finite number; mend "
            "it, or ask for --task classification."
        )
    # 0 stands for no number: it decides nothing where there is one text
    values = np.array([0.0 if n is None else n for n in numbers])
    if task == "regression" or (task == "auto" and strange is None and _measures(values)):
        return Labels(column, users, values[encoded.indices.to_numpy()], (), skipped)

    if len(distinct) == 1:
        raise DataError(
            f"{name}: all {len(users):,} users have the label {distinct[0][:60]!r} in column "
            f"{column!r}; a probe needs two classes or more."
        )
    # numbers in their own order: class 10 after class 9
    order = sorted(range(len(distinct)), key=lambda i: (numbers[i] is None, values[i], distinct[i]))
    place = np.argsort(order)
    classes = tuple(distinct[i] for i in order)
    return Labels(column, users, place[encoded.indices.to_numpy()], classes, skipped)


def _measures(values: np.ndarray) -> bool:
    """Whether distinct numbers are amounts rather than classes."""
    # also of few values: 1.5 is no name of a class
    return len(values) > MOST_CLASSES or bool((values != np.floor(values)).any())


def _is_infinite(text: str) -> bool:
    """Whether a text is a number, but no finite one."""
    return text.strip("+-").lower() in ("inf", "infinity", "nan")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _named(logs: Logs, column: str | None, option: str) -> str | None:
    """A column that was named. Raises DataError where there is none, with the nearest one."""
    if column is None or column in logs.columns:
        return column
    raise DataError(
        f"{logs.name}: no column {column!r}. {closest(column, logs.columns[:_SHOWN])} "
        f"Name the right one with {option} COLUMN."
    )


def _user_column(logs: Logs, log_user: str) -> str:
    """The log's name of the column, else a usual one."""
    names = {name.lower(): name for name in logs.columns}
    # the log's own name first: the table was often cut out of it
    usual = (log_user, *NAMES["user"].split())
    match = next((names[name.lower()] for name in usual if name.lower() in names), None)
    if match is None:
        raise DataError(
            f"{logs.name}: no column {log_user!r} that tells the user. "
            f"{closest(log_user, logs.columns[:_SHOWN])} Name it with --label-user COLUMN."
        )
    return match


def _label_column(logs: Logs, user: str) -> str:
    """The only other column."""
    others = [name for name in logs.columns if name != user]
    if len(others) == 1:
        return others[0]
    listed = ", ".join(map(repr, others[:_SHOWN])) or "none"
    raise DataError(
        f"{logs.name}: which column is the label? Beside the user {user!r} there are: {listed}. "
        "Name it with --label COLUMN."
    )


def _refuse_malformed(con: Any, source: Source) -> None:
    """Raise DataError for the first line of a CSV file that could not be cut into columns."""
    if source.malformed is None:
        return
    # a label that is lost would go unseen among thousands
    rows = named_rows(con, f"SELECT file, line FROM {source.malformed} ORDER BY file, number")
    if rows:
        raise DataError(
            f"{rows[0]['file']}: the line {literal(rows[0]['line'][:100])} does not have the "
            "columns that the first line names; fix it."
        )
