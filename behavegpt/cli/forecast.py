"""`forecast`: what each user of a log will do in the days to come, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import (
    TABLES,
    Arguments,
    Command,
    Output,
    Parser,
    give,
    given_options,
    named_logs,
    show,
)
from behavegpt.cli.models import log_arguments, log_changes, refuse_users, say_unread

SHOWN = 40  # events


def _arguments(parser: Parser) -> None:
    parser.add_argument("logs", nargs="+", help="log files of one kind, all of whose events count")
    parser.add_argument(
        "--days", type=int, help="days to come, 1 to 28 (default 7), counted from --now"
    )
    parser.add_argument(
        "--now",
        metavar="TIME",
        help="where the days begin; later events are ignored (default: the log's last event)",
    )
    parser.add_argument("--top-k", type=int, help="events for each user (default 10)")
    parser.add_argument(
        "--least",
        type=float,
        metavar="P",
        help="leave out events whose probability within a day of their time is lower (default 0)",
    )
    parser.add_argument("--seed", type=int, help="of the moments that are learned (default 0)")
    parser.add_argument(
        "--backtest",
        action="store_true",
        help=(
            "instead, forecast the log's own last days (or those after --now) and tell how good "
            "that was"
        ),
    )
    parser.add_argument(
        "--out", type=Path, help="parquet, CSV or JSONL file (default: print the first events)"
    )
    log_arguments(parser)


def _forecast(arguments: Arguments) -> Any:
    from behavegpt.console import progress
    from behavegpt.horizon.forecast import CHANCES, forecast

    refuse_users(arguments)
    columns, logs = log_changes(arguments, counting=True), named_logs(arguments, arguments.logs)
    if arguments.backtest:
        return _backtest(arguments, logs, columns)

    options = given_options(arguments, ("days", "now", "top_k", "least", "seed"))
    with progress("learn", 100) as advance:
        found = forecast(
            logs,
            columns=columns,
            step=lambda done, of: advance(100 * done // of, "%"),
            **options,
        )

    say_unread({}, found.rejected)
    result = give(arguments, found, days=found.days, learned_from=found.learned_from)
    if result is not None:
        return result

    rows = found.to_table()
    surest = rows.sort_by([(CHANCES[-1], "descending")]).slice(0, SHOWN).to_pylist()
    cells = [
        [row["user"], f"{row['local_time']:%a %Y-%m-%d %H:%M}", row["behavior"]]
        + [f"{row[name]:.3f}" for name in CHANCES]
        for row in surest
    ]
    title = (
        f"the next {found.days} days: the {len(cells)} most probable of {rows.num_rows:,} events; "
        f"times of {found.tz}"
    )
    show(arguments, ("user", "time", "behavior", *CHANCES), cells, title)
    return None


def _backtest(arguments: Arguments, logs: Any, columns: dict[str, Any]) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.errors import ConfigError
    from behavegpt.horizon.backtest import backtest

    for name in ("top_k", "least", "out"):
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} cannot be combined with --backtest; remove one of "
                "them."
            )

    options = given_options(arguments, ("days", "now", "seed"))
    with progress("learn", 100) as advance:
        found = backtest(
            logs,
            columns=columns,
            step=lambda done, of: advance(100 * done // of, "%"),
            **options,
        )

    facts = found.facts()
    rows = [
        [name, f"{figures['t_map']:.4f}", f"{figures['t_map_w']:.4f}"]
        for name, figures in found.figures.items()
    ]
    show(
        arguments,
        ("forecast", "T-mAP by behavior", "T-mAP by event"),
        rows,
        f"{found.days} days from {facts['now']}: {found.events:,} events of {found.users:,} users",
    )
    say(f"calibration error of probabilities within a day: {found.calibration_error:.4f}")
    return {**facts, "models": found.figures}


COMMANDS: dict[str, Command] = {
    "forecast": Command(
        "say what each user will do in the coming days, and when; learned from the log itself",
        "  behavegpt forecast my_logs.csv --days 7 --out week.parquet\n"
        "  behavegpt forecast my_logs.csv --now '2011-11-12 09:00' --least .2 --top-k 20\n"
        "  behavegpt forecast my_logs.csv --backtest",
        _arguments,
        _forecast,
        {"out": Output("file", TABLES)},
    ),
}
