"""RUN/updates: a folder for each update, which comes into being in one rename.

RUN/updates/0003/data           all events so far, a prepared folder (none in 0000: the run's own)
RUN/updates/0003/model          the model after this update, or the one before, if rolled back
RUN/updates/0003/states         its users' states, if they were asked for
RUN/updates/0003/updates.jsonl  a row for each update so far
RUN/updates/0003/published      empty: model, states and rows lie in RUN too

Whatever moment a process is killed at: an update is there, or it is not; RUN/model is the one
before, or the one after; and what was not published yet is published by the next call.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from behavegpt.data.state_files import holds_states
from behavegpt.errors import ConfigError
from behavegpt.io import discard, remove_stale, scratch, write_text

NAME = re.compile(r"[0-9]{4,}")
ROWS, PUBLISHED = "updates.jsonl", "published"
MODEL, STATES = "model", "states"


class Versions:
    """What the updates of a run have left. One process at a time, which holds the run's lock."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "updates"

    @property
    def numbers(self) -> list[int]:
        """The updates whose folders are kept, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def path(self, number: int) -> Path:
        """The folder of an update."""
        return self.folder / f"{number:04d}"

    @property
    def data(self) -> Path | None:
        """The prepared folder of all events so far; None before the first update."""
        numbers = self.numbers
        path = self.path(numbers[-1]) / "data" if numbers else None
        return path if path is not None and path.is_dir() else None

    def rows(self) -> list[dict[str, Any]]:
        """What was found at each update so far."""
        numbers = self.numbers
        if not numbers:
            return []
        text = (self.path(numbers[-1]) / ROWS).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @contextmanager
    def add(self) -> Iterator[Path]:
        """A folder for the next update; it counts when all went well, and is published then."""
        if self.numbers in ([], [0]):  # the model before the first update
            with scratch(self.path(0)) as folder:
                shutil.copytree(self.run / MODEL, folder / MODEL)
                write_text(folder / ROWS, "")
                write_text(folder / PUBLISHED, "")

        # renamed at the end: a folder with a number is a whole update
        with scratch(self.path(self.numbers[-1] + 1)) as folder:
            yield folder
        self.publish()

    def recover(self) -> None:
        """Clear away what killed processes left half made, and publish what they did not."""
        if self.folder.is_dir():
            remove_stale(self.folder)
        self.publish()

    def publish(self) -> None:
        """Put the latest model, states and rows into the run, each in one step, unless they lie
        there already."""
        numbers = self.numbers
        if not numbers or (self.path(numbers[-1]) / PUBLISHED).is_file():
            return

        latest = self.path(numbers[-1])
        # copies, not renames: the version stays for `undo`
        for part in (MODEL, STATES):
            if (latest / part).is_dir():
                with scratch(self.run / part) as folder:
                    shutil.copytree(latest / part, folder, dirs_exist_ok=True)
        # states of an earlier update lack the events since
        if not (latest / STATES).is_dir() and holds_states(self.run / STATES):
            discard(self.run / STATES)
        write_text(self.run / ROWS, (latest / ROWS).read_text(encoding="utf-8"))
        # last: without it the next call publishes again, which changes nothing
        write_text(latest / PUBLISHED, "")

    def tidy(self, keep: int) -> None:
        """Delete the folders of all but the latest `keep` updates; their rows stay."""
        for number in self.numbers[:-keep]:
            discard(self.path(number))

    def undo(self) -> int:
        """Put back what was before the latest update; returns the number of that one. Raises
        ConfigError where that was not kept."""
        numbers = self.numbers
        if len(numbers) < 2:
            was = f"update {numbers[0]} is the oldest one kept" if numbers else "it has no update"
            raise ConfigError(
                f"{self.run}: nothing to undo, {was}; `--keep` sets how many versions are "
                "kept. To start over, train a new run."
            )
        # what becomes the latest is to be published, whenever a kill comes
        (self.path(numbers[-2]) / PUBLISHED).unlink(missing_ok=True)
        discard(self.path(numbers[-1]))
        self.publish()
        return numbers[-1]
