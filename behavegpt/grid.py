"""Grids of runs: a flat list of runs, one JSON row for each; what has its row is not run again.

    grid = Grid(Path("rows.jsonl"))
    grid.run(
        [
            Run({"loss": loss, "seed": seed}, partial(rows_of, loss, seed))
            for loss in losses
            for seed in seeds
        ]
    )

Any number of processes may work on one file of rows, on one machine or many: a run is claimed by a
file lock, which the system frees however the process ends. The benchmark, the sweep and the scripts
in eval/ are such lists.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from behavegpt.console import say
from behavegpt.errors import BehaveGPTError, is_interruption
from behavegpt.training.journal import read_journal

Row = dict[str, Any]
FAILURES = (BehaveGPTError, RuntimeError, MemoryError)  # RuntimeError: torch, also out of memory


@dataclass(frozen=True)
class Run:
    """One run of a grid."""

    # entries of the last row it writes, and of no other run's; None: the row lacks it
    key: Mapping[str, Any]
    rows: Callable[[], Iterable[Row]]  # carries it out; each row is appended as it comes
    claim: str = ""  # name of its lock; a hash of the key by default
    wait: bool = False  # until another process has ended it, where it is cheap and others need it
    # removes what only an unfinished run needs; once more if the process ended in the middle of it
    tidy: Callable[[], object] = lambda: None

    @property
    def name(self) -> str:
        """The name of its lock, and for a folder of its own."""
        return self.claim or digest(dict(self.key))


class Grid:
    """A file of rows and the locks of the runs that make them."""

    def __init__(self, path: Path, locks: Path | None = None) -> None:
        """`locks`: a folder, by default hidden beside the file."""
        self.path = path
        self.locks = locks or path.with_name(f".{path.name}.locks")

    def rows(self) -> list[Row]:
        """All rows of the file; none if there is no file yet."""
        return read_rows(self.path)

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """The latest row with these entries."""
        return find(self.rows(), key)

    def run(self, runs: Iterable[Run], again: Callable[[Row], bool] = lambda row: False) -> int:
        """Carry out the runs without a row that no other process is on; returns how many.

        `again`: whether a run that has this row is to be run once more. What a run raises ends the
        grid.
        """
        known, carried_out = self.rows(), 0
        for run in runs:
            # before the lock is asked for: a finished grid takes no locks at all, but those of
            # processes that ended between a run's last row and its release
            if not _is_open(known, run, again) and not (self.locks / run.name).exists():
                continue

            with self.claimed(run.name, run.wait) as mine:
                known = self.rows()  # another process may have ended it by now
                if not mine:
                    continue
                if _is_open(known, run, again):
                    for row in run.rows():
                        append_row(self.path, row)
                    carried_out += 1
                run.tidy()

        return carried_out

    @contextmanager
    def claimed(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether this process holds the lock of a run for the time being."""
        with claim(self.locks / name, wait) as mine:
            yield mine


def _is_open(rows: Sequence[Row], run: Run, again: Callable[[Row], bool]) -> bool:
    """Whether a run is still to be carried out."""
    row = find(rows, run.key)
    return row is None or again(row)


def find(rows: Sequence[Row], key: Mapping[str, Any]) -> Row | None:
    """The last of the rows with these entries; an entry None is one that the row lacks.

    >>> find([{"seed": 0, "loss": 2}, {"seed": 0, "lr": 1}], {"seed": 0, "lr": None})
    {'seed': 0, 'loss': 2}
    """
    for row in reversed(rows):
        if all(row.get(name) == value for name, value in key.items()):
            return row
    return None


def attempted(figures: Callable[[], Row], name: str) -> Row:
    """The figures of a run as `status` "done"; of one that fails, `status` "failed" and the
    `reason`."""
    try:
        state = {"status": "done", **figures()}
    # a run that fails is a row, so that the grid goes on and is not stuck at it the next time
    except FAILURES as error:
        if is_interruption(error):
            raise KeyboardInterrupt from error  # no failure of this run: nothing goes on
        state = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        say(f"{name} failed: {error}")
    return state | {"finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def tell_failed(rows: Sequence[Row], names: Callable[[Row], str], path: Path) -> None:
    """Say how many of the rows are of failed runs, and where the reasons are."""
    failed = [names(row) for row in rows if row["status"] == "failed"]
    if failed:
        more = ", ..." if len(failed) > 3 else ""
        say(f"{len(failed)} runs failed ({', '.join(failed[:3])}{more}); see `reason` in {path}")


def append_row(path: Path, row: Row) -> None:
    """Add a row in one write, durably; a line that a killed process tore is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed; the file is never replaced

        file.seek(0)
        held = file.read()
        if held and not held.endswith(b"\n"):
            file.truncate(held.rfind(b"\n") + 1)

        # one write, then on the disk: a row that was reported as done is there after a crash
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; none if there is no file yet."""
    return read_journal(path) if path.exists() else []


@contextmanager
def claim(file: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process holds a lock file for the time being; with `wait` it always does, in the
    end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)  # flock: the kernel frees it however the process ends
    try:
        held = lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        held = None
    if held is None:
        yield False
        return

    with held:
        try:
            yield True
        finally:  # before its release: who waits for this inode looks for the next one
            file.unlink(missing_ok=True)


def made_once(folder: Path, make: Callable[[], object], result: str = "") -> Path:
    """FOLDER/result, made by the process that needs it first; others wait for it meanwhile."""
    # asked again under the lock: another process may have made it in the meantime
    with claim(folder.with_name(f".{folder.name}.making"), wait=True):
        if not (folder / result).exists():
            make()
    return folder / result


def grouped(
    rows: Iterable[Row], names: Sequence[str], figures: Sequence[str]
) -> dict[tuple[Any, ...], Row]:
    """Values of `names` -> figure -> its values (R,) over the rows that share them, in the order of
    the rows.

    >>> grouped([{"loss": "a", "rec": 1}, {"loss": "a", "rec": 3}], ["loss"], ["rec"])
    {('a',): {'rec': array([1., 3.])}}
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)

    grouped_figures: dict[tuple[Any, ...], Row] = {}
    for key, group in groups.items():
        grouped_figures[key] = {name: _column(group, name) for name in figures}
    return grouped_figures


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def mean_and_deviation(values: Iterable[float | None], digits: int = 4, least: float = 0.0) -> str:
    """The mean with the standard deviation behind it, if there are two values and it is at least so
    large.

    >>> mean_and_deviation([0.1, 0.2, None])
    '0.1500 ± 0.0707'
    """
    known = np.array([value for value in values if value is not None], float)
    if len(known) == 0:
        return "-"
    spread = len(known) > 1 and known.std() >= least
    return f"{known.mean():.{digits}f}" + (f" ± {known.std(ddof=1):.{digits}f}" if spread else "")


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
