"""How logs are prepared: the options that `prepare` and `preview` share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from behavegpt.config import check_settings
from behavegpt.errors import DataError
from behavegpt.ingest.plan import TIME_RANGE
from behavegpt.ingest.split import parse_split
from behavegpt.options import PrepareOptions

_LEAST_MEMORY = 256 * 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class PrepareArguments(TypedDict, total=False):
    """The options of `prepare` and `preview` by name; their defaults are those of Preparation."""

    split: str
    min_events: int
    min_count: int
    max_vocabulary: int | None
    max_reject_share: float
    time_range: tuple[str, str]
    memory: str
    threads: int | None
    overwrite: bool
    engine: Literal["local", "spark"]
    spark_master: str | None
    encoding: str | None
    users: Any


@dataclass(frozen=True)
class Preparation:
    """What is left out, how the events are split, and what a preparation may use."""

    split: str = "time:0.7,0.15,0.15"
    # users with fewer events are left out before anything is counted
    min_events: int = 1
    # labels with fewer training events, or beyond the most frequent ones, become unknown
    min_count: int = 1
    max_vocabulary: int | None = None
    max_reject_share: float = 0.01  # of rows that cannot be used
    time_range: tuple[str, str] = TIME_RANGE  # events outside are rejected
    memory: str = "2GiB"
    threads: int | None = None  # of DuckDB; all cores by default
    overwrite: bool = False  # a prepared folder that is there
    engine: Literal["local", "spark"] = "local"
    spark_master: str | None = None
    encoding: str | None = None  # of text files; UTF-8 by default
    users: Any = None  # the table of the users' features: files, or a frame

    def check(self) -> None:
        """Raise ConfigError or DataError for an option without sense."""
        parse_split(self.split)
        # the options that Python and the command line share are checked by one model
        numbers = {name: getattr(self, name) for name in PrepareOptions.model_fields}
        check_settings(PrepareOptions, numbers, "prepare")
        bytes_of(self.memory)

    @property
    def budget(self) -> int:
        """Bytes that may be used."""
        return bytes_of(self.memory)


def bytes_of(memory: str) -> int:
    """Bytes of a text like 2GiB, 512MB or 4G (all in powers of two). Raises DataError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", memory, re.IGNORECASE)
    # in powers of two, also for GB: the limit is one of memory, and a little more is no harm
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0

    if size < _LEAST_MEMORY:
        raise DataError(f"--memory {memory!r}: write a size of at least 256MiB, for example 2GiB.")
    return size


def check_free(out: Path, overwrite: bool) -> None:
    """Raise DataError where a prepared folder must not be written."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    # never a folder of something else, whatever --overwrite says
    if not out.is_dir() or not (out / "dataset.json").is_file():
        raise DataError(
            f"{out}: exists and is not a prepared folder; choose another one with --out."
        )
    if not overwrite:
        raise DataError(
            f"{out}: already contains prepared data; choose another folder, or pass --overwrite."
        )
