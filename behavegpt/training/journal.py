"""The journal of a run, one JSON record a line, and the lock that keeps a second run out of its
folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from behavegpt.errors import BehaveGPTError
from behavegpt.locks import lock

LOCK = ".lock"


class Journal:
    """A JSON-lines file that is only appended to; what a crash tore is dropped when the run goes
    on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one record, in one write; its floats are read back exactly. Raises BehaveGPTError on
        a full disk."""
        # json writes the shortest text that gives the same float
        # opened anew for each record: nothing waits in a buffer when the process is killed
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def truncate_after(self, step: int) -> None:
        """Forget, in one rename, the records of later steps and a torn last line; records without
        `step` stay."""
        if not self.path.exists():
            return

        # the lines as they stand: a float that is written again could differ
        kept = [line for line, record in _records(self.path) if record.get("step", step) <= step]

        temporary = self.path.with_name(f".{self.path.name}.tmp")
        # written beside and renamed: a crash leaves the old journal or the new one
        try:
            with open(temporary, "wb") as file:
                file.writelines(line + b"\n" for line in kept)
                # on the disk before the rename, or a power cut could leave an empty file
                file.flush()
                os.fsync(file.fileno())

            os.replace(temporary, self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> BehaveGPTError:
        return BehaveGPTError(
            f"{self.path}: cannot be written ({error}); free some space and continue with --resume."
        )


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a journal, without a torn last line. Raises BehaveGPTError for damage further
    up."""
    return [record for _, record in _records(path)]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the system frees it when the process ends, however it
    ends.

    Raises BehaveGPTError naming the process and host of the run that holds it.
    """
    # in the folder itself: whoever moves it moves the lock along
    with lock(folder, folder / LOCK, "wait for that run, stop it, or choose another out=FOLDER"):
        yield


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines, without their ends, and what they hold."""
    try:
        # whole: a journal is megabytes, and which line is the last must be known
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BehaveGPTError(
            f"{path}: the training log cannot be read ({error}); name a run folder."
        ) from None

    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"a {type(record).__name__}, not a mapping")
        except ValueError as error:
            # the last line may be torn by a crash; any other damage is not ours to guess about
            if number == len(lines):
                return
            raise BehaveGPTError(
                f"{path}, line {number}: not a valid record of the training log "
                f"({error}); remove the line, or start a new run with another out=."
            ) from None
        yield line, record
