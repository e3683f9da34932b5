"""`generate`: the next events of each user of a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import TABLES, Arguments, Command, Output, Parser, show
from behavegpt.cli.models import load_with_logs, log_arguments, say_unread

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor
    from behavegpt.zero_shot import UniversalPredictor


def _generate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder; or `universal`, which counts these logs"
    )
    parser.add_argument(
        "logs", nargs="*", help="user histories: log files with the columns of the training log"
    )
    parser.add_argument(
        "--out", type=Path, help="parquet, CSV or JSONL file (default: print the first events)"
    )
    parser.add_argument(
        "--steps", type=int, help="events per user (default 50; with --until, at most 10,000)"
    )
    parser.add_argument(
        "--until", help="stop this long after each user's last event, for example '2 days'"
    )
    parser.add_argument("--samples", type=int, help="futures per user (default 1)")
    parser.add_argument(
        "--temperature", type=float, help="sampling temperature (default 1); 0 is greedy"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        help="nucleus sampling: the smallest set with this probability (default 1)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same futures (default 0)")
    parser.add_argument(
        "--policy",
        nargs="+",
        default=[],
        metavar="[time=|place=]NAME",
        help=(
            "source of times and places: head (predicted), observed (sampled from the user's "
            "own) or typical (the user's median gap and most frequent place); default: the "
            "model's heads, or observed where it has none"
        ),
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="take valid combinations of labels, and gaps by hour, from this prepared folder",
    )
    parser.add_argument(
        "--probabilities",
        type=int,
        help="also write this many of the most probable behaviors of each step, next to --out",
    )
    log_arguments(parser)


# options of `predict` that a sequence of events does not know
_WITHOUT = (
    *("prior_correction", "thresholds", "at", "location_now", "save", "explain"),
    *("among", "exclude", "exclude_seen", "per_group"),
)
# nothing is drawn: the most probable behavior, the user's median gap and most frequent place
_MOST_PROBABLE = {"temperature": 0.0, "time": "typical", "place": "typical"}


def tell_next(arguments: Arguments) -> Any:
    """`predict --next K`. Raises ConfigError for options that it does not know."""
    from behavegpt.errors import ConfigError

    for name in _WITHOUT:
        if getattr(arguments, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} cannot be combined with --next; remove one of them."
            )
    return _futures(arguments, *load_with_logs(arguments), arguments.next, _MOST_PROBABLE)


def _generate(arguments: Arguments) -> Any:
    predictor, logs = load_with_logs(arguments)
    names = ("samples", "temperature", "top_p", "until", "seed", "probabilities")
    options = {name: getattr(arguments, name) for name in names} | _policies(arguments.policy)
    if arguments.data:
        # read before the log: a folder of another schema is refused at once
        options["links"] = _links(predictor, arguments.data)

    # --until ends a future; the number of steps is then but a bound
    steps = (10_000 if arguments.until else 50) if arguments.steps is None else arguments.steps
    return _futures(arguments, predictor, logs, steps, options)


def _futures(
    arguments: Arguments,
    predictor: Predictor | UniversalPredictor,
    logs: Any,
    steps: int,
    options: dict[str, Any],
) -> Any:
    """Generate, and tell or write it as the arguments say."""
    from behavegpt.console import progress, say
    from behavegpt.data.store import write_table

    with progress("generate", 100) as advance:
        futures = predictor.generate(
            logs,
            steps,
            on_user=lambda done, of: advance(100 * done // of, f"% of {of:,} futures"),
            **options,
        )

    # a future whose times are sampled is no forecast of times: the reader is told
    for field, policy in futures.policies.items():
        say(f"{field}: {policy}")

    say_unread(futures.unknown, futures.rejected)
    rows = futures.to_table()
    if arguments.out is None:
        if arguments.json:
            return rows.to_pylist()

        shown = [_cells(row) for row in rows.slice(0, 20).to_pylist()]
        show(arguments, rows.column_names, shown)
        return None

    write_table(rows, arguments.out)
    if options.get("probabilities"):
        # a table of its own: it has several rows for each drawn event
        name = f"{arguments.out.stem}.probabilities{arguments.out.suffix}"
        write_table(futures.probabilities_table(), arguments.out.with_name(name))

    say(f"{len(futures):,} events of {len(futures.users):,} users, written: {arguments.out}")
    return {
        "users": len(futures.users),
        "events": len(futures),
        "out": str(arguments.out),
        "policies": futures.policies,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return ["" if value is None else str(value) for value in row.values()]


def _links(predictor: Predictor | UniversalPredictor, data: Path) -> Any:
    from behavegpt.data.reencode import fit_store
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.generation.constraints import learn_links
    from behavegpt.zero_shot import UniversalPredictor

    if isinstance(predictor, UniversalPredictor):
        raise ConfigError(
            "--data is for trained models; the universal model looks at the log itself."
        )

    # in the model's ids: the folder may have been prepared with another vocabulary
    return learn_links(predictor.model, fit_store(open_store(data), predictor.tokenizer))


def _policies(words: list[str]) -> dict[str, Any]:
    """`observed` for both, or `time=observed place=head`."""
    named: dict[str, Any] = {}
    for word in words:
        field, equals, policy = word.rpartition("=")
        named |= {field: policy} if equals else {"time": policy, "place": policy}
    return named


COMMANDS: dict[str, Command] = {
    "generate": Command(
        "simulate each user's next events: times, places, events and behaviors",
        "  behavegpt generate runs/mine/model history.parquet --steps 50 --out future.parquet\n"
        "  behavegpt generate runs/mine/model history.parquet --until '2 days' --samples 5 "
        "--top-p .95\n"
        "  behavegpt generate runs/mine/model history.csv --policy observed --temperature 0.8 "
        "--json\n"
        "  behavegpt generate universal my_logs.csv --steps 10",
        _generate_arguments,
        _generate,
        {"out": Output("file", TABLES)},
    ),
}
