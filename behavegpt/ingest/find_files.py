"""Names, globs and folders -> the files of a log."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from behavegpt.errors import DataError
from behavegpt.ingest.log_file import LogFile


def expand(log: str) -> list[Path]:
    """The files of a path, a glob or a folder, sorted. Raises DataError where there is none."""
    if not log.strip():
        raise DataError(
            "empty path for the log (is a shell variable not set?); name a file or folder."
        )

    # a file first: its name may hold what a glob would take for a pattern
    path = Path(os.path.expanduser(log))
    if path.is_file():
        return [path]

    if (path / "dataset.json").is_file() and (path / "columns").is_dir():
        raise DataError(
            f"{log}: a folder that `prepare` wrote, and a log is wanted here; name the log files "
            "that it was prepared from."
        )
    if path.is_dir():
        # all formats: what is no log is refused by name, not passed over
        members = [p for p in path.rglob("*") if not _is_hidden(p.relative_to(path))]
    else:
        members = list(map(Path, glob.glob(str(path), recursive=True)))

    # sorted: no file system's order decides anything
    files = sorted(p for p in members if p.is_file())
    if not files:
        raise DataError(f"{log}: {_why_nothing(log, path)}.")
    return files


def _why_nothing(log: str, path: Path) -> str:
    if path.is_dir():
        return "the folder holds no files; check the path"
    # a prepared folder may be remote, a log may not: it is read several times
    if "://" in log:
        return (
            "logs are not read from addresses; download the files, or name a data set of the Hub "
            "as hf:NAME"
        )
    if log == "-" or path.exists():  # a pipe is read once, logs are read several times
        return "no file on a disk, but a pipe or a device; write the log to a file and name that"
    return (
        f"{'the glob matches no file' if glob.has_magic(log) else 'no such file or folder'}; "
        "check the path"
    )


def _is_hidden(path: Path) -> bool:
    """Whether a file below a log's folder is no part of the log: what editors and Spark keep in
    .NAME and _NAME."""
    return any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.parts
    )


def without_repeats(members: list[LogFile]) -> tuple[LogFile, ...]:
    """Files that are links to one another are one, unless their folders' names tell them apart."""
    distinct: dict[tuple[object, ...], LogFile] = {}
    for member in members:
        # to one file by several names its events would count twice
        status = member.path.stat()
        # one file by its number on the disk, whatever its names
        distinct.setdefault((status.st_dev, status.st_ino, member.parts), member)
    return tuple(distinct.values())
