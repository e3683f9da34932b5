"""`generate`: the next events of each user of a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import TABLES, Arguments, Command, Output, Parser, show
from behavegpt.cli.models import load_with_logs, log_arguments

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor
    from behavegpt.zero_shot import UniversalPredictor


def _generate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder; or `universal`: tables from these logs"
    )
    parser.add_argument(
        "logs", nargs="*", help="each user's history: files with the training log's columns"
    )
    parser.add_argument(
        "--out", type=Path, help="parquet, CSV or JSONL file (default: print the first events)"
    )
    parser.add_argument(
        "--steps", type=int, help="events for each user (default 50; with --until, at most 10,000)"
    )
    parser.add_argument(
        "--until", help="stop this long after each user's last event, for example '2 days'"
    )
    parser.add_argument("--samples", type=int, help="futures for each user (default 1)")
    parser.add_argument(
        "--temperature", type=float, help="below 1: closer to the most probable; 0: only those"
    )
    parser.add_argument(
        "--top-p", type=float, help="draw from the smallest set of this probability (default 1)"
    )
    parser.add_argument("--seed", type=int, help="same seed, same futures (default 0)")
    parser.add_argument(
        "--policy",
        nargs="+",
        default=[],
        metavar="[time=|place=]NAME",
        help="where times and places come from: head, observed (random own ones) or typical (own "
        "median gap, most frequent place); default: the model's heads, observed where it has none",
    )

    parser.add_argument(
        "--data",
        type=Path,
        help="another prepared folder to learn from what goes together, and gaps by the hour",
    )
    parser.add_argument(
        "--probabilities",
        type=int,
        help="also write the N most probable behaviors of each step, beside --out",
    )
    log_arguments(parser)


def _generate(arguments: Arguments) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.data.store import write_table

    predictor, logs = load_with_logs(arguments)
    options = {
        n: getattr(arguments, n)
        for n in ("samples", "temperature", "top_p", "until", "seed", "probabilities")
    }
    if arguments.data:
        options["links"] = _links(predictor, arguments.data)

    with progress("generate", 100) as advance:
        found = predictor.generate(
            logs,
            (10_000 if arguments.until else 50) if arguments.steps is None else arguments.steps,
            on_user=lambda done, of: advance(100 * done // of, f"% of {of:,} futures"),
            **options,
            **_policies(arguments.policy),
        )

    for field, policy in found.policies.items():
        say(f"{field}: {policy}")

    for what, counted in (("unknown labels", found.unknown), ("rows left out", found.rejected)):
        for name, number in counted.items():
            if number:
                say(f"{what}: {name}: {number:,}")

    rows = found.to_table()
    if arguments.out is None:
        if arguments.json:
            return rows.to_pylist()

        shown = rows.slice(0, 20).to_pylist()
        show(
            arguments,
            rows.column_names,
            [["" if v is None else str(v) for v in row.values()] for row in shown],
        )
        return None

    write_table(rows, arguments.out)
    if arguments.probabilities:
        beside = arguments.out.with_name(
            f"{arguments.out.stem}.probabilities{arguments.out.suffix}"
        )
        write_table(found.probabilities_table(), beside)

    say(f"{len(found):,} events of {len(found.users):,} users, written: {arguments.out}")
    return {
        "users": len(found.users),
        "events": len(found),
        "out": str(arguments.out),
        "policies": found.policies,
    }


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
        "each user's next events: times, places, events and behaviors",
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
