"""The command that asks what user vectors know."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import (
    Arguments,
    Command,
    Output,
    Parser,
    given_options,
    named_logs,
    show,
)
from behavegpt.cli.models import load_uncounted, log_arguments

if TYPE_CHECKING:
    from behavegpt.probing.result import ProbeResult, Score

# options of the same names as ProbeSettings has; not given, they keep its defaults
SETTINGS = (
    *("task", "probes", "folds", "seeds", "top_labels", "min_users", "stale_weeks", "pool"),
)  # fmt: skip


def _probe_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        help="model folder; or `universal`, which counts the events before the date",
    )
    parser.add_argument("logs", nargs="+", help="log files with the columns of the training log")
    parser.add_argument(
        "labels", type=Path, help="CSV, JSONL or parquet file with one row per user"
    )
    parser.add_argument(
        "--at",
        required=True,
        metavar="DATE",
        help=(
            "use only events before this time: 2026-11-28, or '2026-11-28 18:30', local time "
            "in the log's zone"
        ),
    )
    parser.add_argument(
        "--label", metavar="COLUMN", help="label column (default: the only other column)"
    )
    parser.add_argument(
        "--label-user",
        metavar="COLUMN",
        help="user column of the labels file (default: named as in the log)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for probe.json and probe.png"
    )
    _setting_arguments(parser)
    log_arguments(parser)


def _setting_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--task",
        choices=("auto", "classification", "regression"),
        help="auto (default): regression for numbers with more than 20 values, else classes",
    )
    parser.add_argument(
        "--pool",
        nargs="+",
        metavar="PART",
        help="parts of the vectors: last (the default), mean, behaviors ...",
    )
    parser.add_argument(
        "--probes",
        nargs="+",
        choices=("linear", "boosting"),
        help="which classifiers to train (default: both)",
    )
    parser.add_argument(
        "--stale-weeks",
        nargs="+",
        type=int,
        metavar="K",
        help="also evaluate features that are K weeks old, for example 0 1 2 4",
    )
    numbers = {
        "folds": "cross-validation folds, by user (default 5)",
        "seeds": "repetitions with other folds (default 3)",
        "top_labels": "labels per column used as count features (default 100)",
        "min_users": "stop with fewer labeled users than this (default 50)",
    }
    for name, text in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)


def _probe(arguments: Arguments) -> Any:
    from behavegpt.config import check_settings
    from behavegpt.console import progress, say
    from behavegpt.probing.run import SETS, probe
    from behavegpt.probing.settings import ProbeSettings

    given = given_options(arguments, SETTINGS)
    # before the model and the log are opened
    settings = check_settings(ProbeSettings, given, "probe")
    predictor, columns = load_uncounted(arguments)
    # fits: each set by each probe, and once more by the first one at each age
    total = len(SETS) * (len(settings.probes) + len(settings.stale_weeks))
    finished = 0

    with progress("probe", total) as advance:

        def step(name: str) -> None:
            nonlocal finished
            finished += 1
            advance(finished, name)

        result = probe(
            predictor,
            named_logs(arguments, arguments.logs),
            arguments.labels,
            arguments.at,
            label=arguments.label,
            label_user=arguments.label_user,
            columns=columns,
            step=step,
            **given,
        )

    # the word as it was typed: `demo` is a path into the package by now
    result.facts["model"] = str(arguments.model)
    _tell(result)
    _show(arguments, result)
    if arguments.out:
        say(f"written: {result.save(arguments.out)}")
    return result.to_dict()


def _tell(result: ProbeResult) -> None:
    """What a reader of the figures must know of the users and of the model."""
    from behavegpt.console import say

    facts = result.facts
    say(f"{facts['users']:,} labeled users with events before {facts['at']}")
    for name, text in (
        ("labeled_without_events", "labeled users have no event before it and are left out"),
        ("rows_without_user_or_label", "label rows without a user or a label are left out"),
    ):
        if facts[name]:
            say(f"{facts[name]:,} {text}")
    if facts["stale_users"]:
        say(f"staleness: {facts['stale_users']:,} users have events before the oldest cutoff")
    # a leak that no figure shows: the vectors may have seen the answer
    if facts["trained_on_later_events"]:
        say(
            f"warning: the model was trained on events until {facts['trained_until']}, "
            "later than --at, so its vectors may have seen what they are to predict; "
            "choose a later date, or train on earlier events."
        )


def _show(arguments: argparse.Namespace, result: ProbeResult) -> None:
    """The figures as tables."""
    from behavegpt.console import say

    facts, metrics = result.facts, result.metrics
    # shares of the classes, or quartiles: figures mean little without them
    spread = facts.get("classes") or facts["values"]
    listed = ", ".join(f"{name} {value:.3g}" for name, value in list(spread.items())[:10])

    if not arguments.json:
        say(f"{facts['label']}: {listed}; below: means and 95 % intervals over folds by user")
    columns = ("features", "width", "probe", *metrics)
    rows = figure_cells(result.scores.rows, metrics, lambda row: (row.features, str(row.width)))
    show(arguments, columns, rows, f"predicting {facts['label']}")
    rows = figure_cells(
        result.differences.rows, metrics, lambda row: (f"{row.features} - ({row.against})",), "+"
    )
    show(arguments, ("difference", "probe", *metrics), rows, "paired, fold by fold")
    if result.staleness.rows:
        rows = figure_cells(
            result.staleness.rows, metrics, lambda row: (row.features, str(row.weeks))
        )
        show(arguments, ("features", "weeks old", "probe", *metrics), rows, "staleness")


def figure_cells(
    scores: Sequence[Score], metrics: Sequence[str], head: Any, sign: str = ""
) -> list[list[str]]:
    """A line for each set and probe, with its metrics side by side."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for score in scores:
        mean, low, high = score.interval
        text = f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
        lines.setdefault((*head(score), score.probe), {})[score.metric] = text
    return [[*line, *(cells[metric] for metric in metrics)] for line, cells in lines.items()]


COMMANDS: dict[str, Command] = {
    "probe": Command(
        "test how well user vectors predict user labels, next to counts and aggregates",
        "  behavegpt probe runs/mine/model log.parquet churn.csv --at 2026-09-01 --out runs/probe\n"
        "  behavegpt probe universal log.csv segments.parquet --label segment --at 2026-09-01\n"
        "  behavegpt probe demo shop.parquet churn.csv --at 2011-10-10 --pool mean behaviors "
        "--stale-weeks 0 1 2 4",
        _probe_arguments,
        _probe,
        {"out": Output("into")},
    ),
}
