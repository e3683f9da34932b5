"""What people name as logs (files, folders, globs, `datasets` names, frames), and its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behavegpt.config import closest
from behavegpt.data.schema import ROLES
from behavegpt.errors import DataError
from behavegpt.ingest.files import look_at
from behavegpt.ingest.find_files import expand, without_repeats
from behavegpt.ingest.frames import HUB, Frame, as_frame, hub_table
from behavegpt.ingest.log_file import LogFile
from behavegpt.ingest.nested import arrow_paths, split_path
from behavegpt.ingest.source_values import LISTS, by_position
from behavegpt.paths import check_unicode


@dataclass(frozen=True)
class Logs:
    """Files of one format, or one frame in memory."""

    name: str
    format: str  # csv, json, parquet, arrow or table
    members: tuple[LogFile, ...]
    # those that all files have, and those that the names of all their folders tell
    columns: tuple[str, ...]
    parts: tuple[str, ...] = ()  # the latter
    frame: Frame | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order they were named."""
        return tuple(member.path for member in self.members)

    @property
    def nested(self) -> tuple[str, ...]:
        """Dotted paths that are seen below the columns."""
        if self.frame is not None:
            return arrow_paths(self.frame.sample(LISTS).schema)
        return tuple(dict.fromkeys(path for member in self.members for path in member.nested))

    def has(self, column: str) -> bool:
        """Whether there is such a column, or what a dotted name begins with."""
        return split_path(column, self.columns) is not None


def find_logs(logs: Any, encoding: str | None = None) -> Logs:
    """Files of paths, globs and folders, a `hf:NAME[:split]` data set, or a frame. Raises
    DataError.

    A frame is a pyarrow Table, a pandas or polars DataFrame, or a mapping of column name to values.
    `encoding` is that of text files; UTF-8, or UTF-16 with a byte order mark, need none.
    """
    if isinstance(logs, Logs):
        return logs
    if isinstance(logs, (str, Path)):
        logs = [logs]
    # the last thing it can be: what is none is refused by name there
    if not isinstance(logs, (list, tuple)):
        frame = as_frame(logs)
        return Logs("frame", "table", (), frame.names, (), frame)

    if not logs:
        raise DataError("no logs given; name a CSV, JSONL or parquet file, a folder or a glob.")

    if str(logs[0]).startswith(HUB):
        frame = as_frame(hub_table([str(log) for log in logs]))
        return Logs(str(logs[0]), "table", (), frame.names, (), frame)

    files = list(dict.fromkeys(file for log in logs for file in expand(str(log))))

    for file in files:
        check_unicode(file)
    return _logs_of_files(files, encoding)


def _logs_of_files(files: Sequence[Path], encoding: str | None) -> Logs:
    """Files of one format, with the columns that they share. Raises DataError."""
    members = without_repeats([look_at(file, encoding) for file in files])

    # kind -> one file of it, for the error
    formats = {member.kind: member.path for member in members}
    if len(formats) > 1:
        one, two = list(formats.values())[:2]
        raise DataError(f"{one} and {two} differ in format; name files of one format only.")

    kind = next(iter(formats))
    shared = set.intersection(*(set(member.names) for member in members))

    # A column that is missing from the first thousand objects of one JSONL file is null there.
    names = dict.fromkeys(
        name for member in members for name in member.names if kind == "json" or name in shared
    )

    # What a file says of itself wins over the name of the folder in which it lies.
    own = {name.lower() for member in members for name in member.names}
    of_folders = set.intersection(*(set(dict(member.parts)) for member in members))
    parts = tuple(
        name for name, _ in members[0].parts if name in of_folders and name.lower() not in own
    )

    # a name for messages, not a list of thousands of files
    name = str(files[0]) if len(members) == 1 else f"{files[0]} and {len(members) - 1} more"
    return Logs(name, kind, members, (*names, *parts), parts)


def check_columns(logs: Logs, needed: Mapping[str, str]) -> None:
    """Raise DataError when a column of `needed` (role -> column) is missing from any file."""
    for role, column in needed.items():
        path = split_path(column, logs.columns)

        # Fields of typed columns are looked up in their types when they are read; those of JSON are
        # known by example.
        if path and (
            not path[1] or logs.format != "json" or column in logs.nested or by_position(path[1])
        ):
            continue

        missing = (m for m in logs.members if split_path(column, m.names) is None)

        where, names = next(((m.path, m.names) for m in missing), (logs.name, logs.columns))
        names = (*names, *logs.parts, *logs.nested)
        listed = ", ".join(dict.fromkeys(names[:30]))

        # a near name if there is one, else what there is
        hint = closest(column, names)
        known = "" if hint.startswith("Known") else f" Columns: {listed}."

        what, remedy = f"the {role}", f"Name the right one with --{role} COLUMN"
        # a trained model's further inputs have the names that they had in training
        if role not in ROLES:
            what = "a further input"
            remedy = (
                "In `prepare`, name the right one with --extra or --numeric COLUMN. For a trained "
                f"model, rename it to {column!r}"
            )
        headless = (
            ", or put a line of names first if the file has none" if logs.format == "csv" else ""
        )

        raise DataError(
            f"{where}: no column {column!r} ({what}). "
            f"{hint.replace('Known', 'Columns')}{known} "
            f"{remedy}{headless}."
        )
