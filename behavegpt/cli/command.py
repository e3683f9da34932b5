"""What a command is: `behavegpt COMMAND ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from behavegpt.errors import ConfigError
from behavegpt.paths import local_path

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")  # what `data.store.write_table` writes
Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """A parser whose paths may begin with `~`, and may not be empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # argparse looks a `type` up here first: every Path of every command goes through `_path`
        self.register("type", Path, _path)


def _path(text: str) -> Path:
    try:
        return local_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def encoding_argument(parser: Parser) -> None:
    """The option `--encoding` of commands that read logs; `named_logs` reads it."""
    parser.add_argument(
        "--encoding",
        help="encoding of CSV and JSON logs that are not UTF-8: latin-1, cp1252, utf-16 ...",
    )


def given_options(arguments: Arguments, names: Sequence[str]) -> dict[str, Any]:
    """The options of these names that the command line gives; the others keep their defaults."""
    # None is what argparse leaves for an option that was not given; defaults stay where the
    # settings are
    return {
        name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None
    }


def named_logs(arguments: Arguments, logs: Sequence[str]) -> Any:
    """The logs of a command line, looked at by their encoding."""
    from behavegpt.ingest.sources import find_logs

    return find_logs(logs, arguments.encoding)


class Output(NamedTuple):
    """What an argument names to be written; see `outputs.check_output`, which looks at it before
    the work."""

    kind: Literal["file", "into", "whole"]
    endings: tuple[str, ...] = ()


class Command(NamedTuple):
    """One command: what it says of itself, its arguments, and what it runs (returning the JSON for
    `--json`)."""

    help: str
    examples: str
    arguments: Callable[[Parser], None]
    run: Callable[[Arguments], Any]
    # looked at before the work: hours of training must not end at a folder that cannot be written
    outputs: Mapping[str, Output] = {}  # argument -> what it writes


class Group(NamedTuple):
    """Commands under a common word, as in `behavegpt challenge split`."""

    help: str
    commands: dict[str, Command]
    default: str | None = None  # the command that is meant when none of them follows the word


class OfUsers(Protocol):
    """What was found of some users."""

    def __len__(self) -> int: ...

    def to_table(self) -> pa.Table: ...


def give(arguments: Arguments, found: OfUsers, **facts: Any) -> Any:
    """The result of a command: how many users were written to --out, and `facts`, or with --json
    all rows; None where they are to be shown."""
    # a file is for programs, so what the screen shows then is a line
    if arguments.out:
        from behavegpt.console import say
        from behavegpt.data.store import write_table

        write_table(found.to_table(), arguments.out)
        say(f"{len(found):,} users, written: {arguments.out}")
        return {"users": len(found), "out": str(arguments.out), **facts}
    return found.to_table().to_pylist() if arguments.json else None


def show(
    arguments: Arguments, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
) -> None:
    """A result as a table on standard output, unless JSON was asked for."""
    from behavegpt.console import table

    if not arguments.json:
        table(columns, rows, title, sys.stdout)
