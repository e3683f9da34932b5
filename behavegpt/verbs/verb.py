"""What a verb of the command line is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")  # what `data.store.write_table` writes
Parser = argparse.ArgumentParser
Arguments = argparse.Namespace


class Output(NamedTuple):
    """What an argument names to be written; see `io.check_output`, which looks at it before the work."""

    kind: Literal["file", "into", "whole"]
    endings: tuple[str, ...] = ()


class Verb(NamedTuple):
    """One command: what it says of itself, its arguments, and what it runs (returning the JSON for `--json`)."""

    help: str
    examples: str
    arguments: Callable[[Parser], None]
    run: Callable[[Arguments], Any]
    outputs: Mapping[str, Output] = {}  # argument -> what it writes


class Group(NamedTuple):
    """Verbs under a common word, as in `behavegpt challenge split`."""

    help: str
    verbs: dict[str, Verb]
    default: str | None = None  # the verb that is meant when none of them follows the word


def show(arguments: Arguments, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A result as a table on standard output, unless JSON was asked for."""
    from behavegpt.console import table

    if not arguments.json:
        table(columns, rows, title, sys.stdout)
