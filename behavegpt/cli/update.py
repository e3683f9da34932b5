"""Daily operation: the command that brings a run up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Parser, given_options, named_logs, show
from behavegpt.cli.models import log_arguments, log_changes

# setting -> its type and help; the defaults are those of UpdateSettings
NUMBERS = {
    "steps": (int, "optimizer steps on the new events (default 100); 0: only counts and labels"),
    "rate": (float, "learning rates, relative to the run's (default 0.3)"),
    "replay": (float, "share of earlier events in the training data (default 0.5)"),
    "held_out": (float, "share of users whose new events evaluate the update (default 0.2)"),
    "margin": (float, "drop in NDCG@3 on them that rolls the update back (default 0.005)"),
    "min_count": (int, "new events a label needs to enter the vocabulary (default 1)"),
    "max_reject_share": (float, "stop if a larger share of the rows is bad (default 0.01)"),
    "keep": (int, "versions to keep in RUN/updates (default 2)"),
    "seed": (int, "seed for held-out users, replay and training (default 0)"),
}
OPTIONS = (*NUMBERS, "late", "states")


def _update_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="RUN", help="run folder of train or finetune; updated in place"
    )
    parser.add_argument("logs", nargs="*", metavar="NEW_LOG", help="files with later events")
    parser.add_argument("--undo", action="store_true", help="revert the latest update")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared folder of the run, if it has moved since training; first update only",
    )
    for name, (kind, text) in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    parser.add_argument(
        "--late",
        choices=("refuse", "drop"),
        help="what to do with events that are not later than all earlier ones (default refuse)",
    )
    parser.add_argument(
        "--states", action="store_true", default=None, help="write user states to RUN/states"
    )
    log_arguments(parser)


def _update(arguments: Arguments) -> Any:
    from behavegpt.config import check_settings
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.updating.run import left_out, undo_update, update
    from behavegpt.updating.settings import UpdateSettings

    given = given_options(arguments, OPTIONS)
    # before the log is read
    check_settings(UpdateSettings, given, "update")
    run = arguments.model
    if arguments.undo:
        if arguments.logs or arguments.data or given:
            raise ConfigError("--undo takes only the run; remove the log and the other options.")
        number = undo_update(run)
        say(f"update {number} undone: {run / 'model'} is the previous model again")
        return {"run": str(run), "undone": number}
    if not arguments.logs:
        raise ConfigError(f"update {run}: add the files of later events after the run.")

    # before the update, which leaves them out
    beside = left_out(run)
    result = update(
        run,
        named_logs(arguments, arguments.logs),
        data=arguments.data,
        columns=log_changes(arguments),
        users=arguments.users,
        **given,
    )
    for sheet in result.sheets():
        show(arguments, sheet.columns, sheet.rows, sheet.title)
    row = result.row

    if row["late"]:
        say(f"dropped {row['late']:,} events that are not later than those seen before")
    say(f"{result.verdict}: {result.model}; all updates: {run / 'updates.jsonl'}")
    if beside and result.verdict != "rolled back":
        # thresholds and times follow the weights: old ones would be wrong without a sign of it
        say(f"learn again what belonged to the previous weights: {', '.join(beside)}")
    return row


COMMANDS: dict[str, Command] = {
    "update": Command(
        "evaluate a model on a log of later events, train on it, and keep the better model",
        "  behavegpt update runs/mine today.csv\n"
        "  behavegpt update runs/mine today.parquet --steps 200 --late drop --states\n"
        "  behavegpt update runs/mine --undo",
        _update_arguments,
        _update,
    ),
}
