"""`behavegpt VERB ...`: a table of verbs. Nothing heavy is imported before a verb runs.

Exit codes: 0 done, 2 a mistake the user can mend (one paragraph on standard error), 1 our bug or a failed check.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from behavegpt.errors import BehaveGPTError
from behavegpt.verbs import benchmark, challenge, data, predict, profile, scale, serve, tools, train
from behavegpt.verbs.verb import Arguments, Group, Parser, Verb

VERBS: dict[str, Verb | Group] = {
    "demo": tools.VERBS["demo"],
    **data.VERBS,
    **train.VERBS,
    **predict.VERBS,
    **serve.VERBS,
    "challenge": challenge.CHALLENGE,
    **profile.VERBS,
    "scale": scale.SCALE,
    **benchmark.VERBS,
    **tools.VERBS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = _parse(argv)
    warnings.formatwarning = _one_line
    try:
        result = arguments.carry_out(arguments)
    except BehaveGPTError as error:
        if arguments.debug:
            raise
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print(f"\n{arguments.command}: interrupted; nothing half written was left.", file=sys.stderr)
        return 130
    if arguments.json and result is not None:
        print(json.dumps(result, indent=2, ensure_ascii=False, default=str))
    return 1 if isinstance(result, dict) and result.get("ok") is False else 0


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **_: Any) -> str:
    """Our warnings are for the user; the place in the code helps with those of libraries."""
    if category is UserWarning and "behavegpt" in str(where[0]):
        return f"warning: {message}\n"
    return f"{where[0]}:{where[1]}: {category.__name__}: {message}\n"


def _parse(argv: Sequence[str] | None) -> Arguments:
    """The arguments; overrides may also stand behind options (`train CONFIG --resume train.lr=1e-4`)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(_with_default(list(sys.argv[1:] if argv is None else argv)))
    if "overrides" in arguments:
        late = [item for item in rest if "=" in item and not item.startswith("-")]
        arguments.overrides += late
        rest = [item for item in rest if item not in late]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _with_default(argv: list[str]) -> list[str]:
    """`scale CONFIG.yaml` becomes `scale run CONFIG.yaml`."""
    group = VERBS.get(argv[0]) if argv else None
    if isinstance(group, Group) and group.default and argv[1:] and argv[1] not in (*group.verbs, "-h", "--help"):
        return [argv[0], group.default, *argv[1:]]
    return argv


def _parser() -> Parser:
    import behavegpt

    parser = Parser(prog="behavegpt", description="Foundation models of user behavior, from event logs.")
    parser.add_argument("--version", action="version", version=f"behavegpt {behavegpt.__version__}")
    _add_verbs(parser, VERBS)
    return parser


def _add_verbs(parser: Parser, verbs: dict[str, Any]) -> None:
    children = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb in verbs.items():
        if isinstance(verb, Group):
            group = children.add_parser(name, help=verb.help, description=verb.help)
            _add_verbs(group, verb.verbs)
            continue
        child = children.add_parser(
            name,
            help=verb.help,
            description=verb.help,
            epilog=f"examples:\n{verb.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.arguments(child)
        child.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        child.add_argument("--debug", action="store_true", help="show the traceback of an error")
        child.set_defaults(carry_out=verb.run, command=child.prog)


if __name__ == "__main__":
    sys.exit(main())
