"""`behavegpt COMMAND ...`: a table of commands. Nothing heavy is imported before a command runs.

Exit codes: 0 done, 2 a mistake the user can mend or a disk that fails (one paragraph on standard
error), 1 our bug or a failed check, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from behavegpt.cli import (
    benchmark,
    challenge,
    convert,
    decision,
    evaluate,
    export,
    forecast,
    generate,
    predict,
    prepare,
    probe,
    profile,
    scale,
    serve,
    tools,
    train,
    update,
    vocabulary,
    when,
)
from behavegpt.cli.command import Arguments, Command, Group, Parser
from behavegpt.errors import BehaveGPTError, environment_fault
from behavegpt.signals import interrupting

COMMANDS: dict[str, Command | Group] = {
    # in the order of --help: first what is tried first, then the way from a log to a model in use
    "demo": tools.COMMANDS["demo"],
    **prepare.COMMANDS,
    **convert.COMMANDS,
    **train.COMMANDS,
    **evaluate.COMMANDS,
    **predict.COMMANDS,
    **decision.COMMANDS,
    **when.COMMANDS,
    **forecast.COMMANDS,
    **update.COMMANDS,
    "vocabulary": vocabulary.VOCABULARY,
    **generate.COMMANDS,
    **export.COMMANDS,
    **probe.COMMANDS,
    **serve.COMMANDS,
    "challenge": challenge.CHALLENGE,
    **profile.COMMANDS,
    "scale": scale.SCALE,
    **benchmark.COMMANDS,
    **tools.COMMANDS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `2>&-`
            # to the end of the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115

    arguments = _parse(argv)
    warnings.formatwarning = _one_line

    with interrupting() as received:
        try:
            _check_outputs(arguments)

            result = arguments.carry_out(arguments)
            # standard output holds the JSON alone; all that is told goes to standard error
            if arguments.json and result is not None:
                print(json.dumps(result, indent=2, ensure_ascii=False, default=str), flush=True)
        except BrokenPipeError:  # `behavegpt ... | head` has read enough
            return 0
        except (KeyboardInterrupt, Exception) as error:
            return _failed(arguments, error, received)
        finally:
            if argv is not None:  # called from Python, which goes on: what loading froze is freed
                gc.unfreeze()

    # `doctor` found a fault: a script must notice
    return 1 if isinstance(result, dict) and result.get("ok") is False else 0


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **_: Any) -> str:
    """Our warnings are for the user; the place in the code helps with those of libraries."""
    if category is UserWarning and "behavegpt" in str(where[0]):
        return f"warning: {message}\n"
    return f"{where[0]}:{where[1]}: {category.__name__}: {message}\n"


def _failed(arguments: Arguments, error: BaseException, received: list[int]) -> int:
    """Tell why a command ended; returns the exit code. Raises the error if it is our bug, or with
    --debug."""
    # `received` too: DuckDB turns a signal into an error of its own
    if received or isinstance(error, KeyboardInterrupt):
        number = received[0] if received else signal.SIGINT
        print(
            f"\n{arguments.command}: interrupted; nothing half written was left.", file=sys.stderr
        )
        return 128 + number  # as shells report a process that a signal ended

    # a full disk or a missing permission is no bug of ours, and has no type of ours
    message = str(error) if isinstance(error, BehaveGPTError) else environment_fault(error)
    if arguments.debug or message is None:
        raise error

    print(f"{arguments.command}: {message}", file=sys.stderr)
    return 2


def _check_outputs(arguments: Arguments) -> None:
    """Refuse an output that could not be written before anything is read or computed."""
    from behavegpt.outputs import check_output

    for name, output in arguments.outputs.items():
        path = getattr(arguments, name)
        if path is not None:
            check_output(path, output.kind, output.endings)


def _parse(argv: Sequence[str] | None) -> Arguments:
    """The arguments; overrides may also stand behind options
    (`train CONFIG --resume train.lr=1e-4`)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(
        _with_default(list(sys.argv[1:] if argv is None else argv))
    )
    # argparse gives positionals to the list of overrides only up to the first option
    if "overrides" in arguments:
        late = [item for item in rest if "=" in item and not item.startswith("-")]
        arguments.overrides += late
        rest = [item for item in rest if item not in late]

    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    return arguments


def _with_default(argv: list[str]) -> list[str]:
    """`scale CONFIG.yaml` becomes `scale run CONFIG.yaml`."""
    group = COMMANDS.get(argv[0]) if argv else None
    if (
        isinstance(group, Group)
        and group.default
        and argv[1:]
        and argv[1] not in (*group.commands, "-h", "--help")
    ):
        return [argv[0], group.default, *argv[1:]]

    return argv


def _parser() -> Parser:
    import behavegpt

    parser = Parser(
        prog="behavegpt",
        description="Foundation models of user behavior, from event logs.",
        epilog=(
            "exit codes: 0 success; 1 a failed check, or a bug; 2 invalid input, or an "
            "output that cannot be written; 130 stopped by Ctrl-C; 143 stopped by SIGTERM"
        ),
    )

    parser.add_argument("--version", action="version", version=f"behavegpt {behavegpt.__version__}")
    _add_commands(parser, COMMANDS)
    return parser


def _add_commands(parser: Parser, commands: dict[str, Any]) -> None:
    children = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.items():
        if isinstance(command, Group):
            group = children.add_parser(name, help=command.help, description=command.help)
            _add_commands(group, command.commands)
            continue

        child = children.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

        command.arguments(child)
        child.add_argument(
            "--json", action="store_true", help="print the result as JSON on standard output"
        )
        child.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        # `carry_out`, not `run`: `report RUN` has an argument of that name
        child.set_defaults(carry_out=command.run, command=child.prog, outputs=command.outputs)
