"""Daily operation: the command that brings a run up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Parser, given_options, named_logs, show
from behavegpt.cli.models import log_arguments, log_changes

NUMBERS = {
    "steps": (int, "optimizer steps on the new events (default 100); 0: tables and labels alone"),
    "rate": (float, "learning rates, as a share of the run's (default 0.3)"),
    "replay": (float, "share of earlier events among those trained on (default 0.5)"),
    "held_out": (float, "share of the users whose new events judge the update (default 0.2)"),
    "margin": (float, "how far NDCG@3 on them may fall before it is rolled back (default 0.005)"),
    "min_count": (int, "new events of a new label, to enter the vocabulary (default 1)"),
    "max_reject_share": (float, "bad rows that are tolerated (default 0.01)"),
    "keep": (int, "versions kept in RUN/updates (default 2)"),
    "seed": (int, "of the held-out users, the replay and the steps (default 0)"),
}
OPTIONS = (*NUMBERS, "late", "states")


def _update_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="RUN", help="run folder of train or finetune, which is changed"
    )
    parser.add_argument("logs", nargs="*", metavar="NEW_LOG", help="files of later events")
    parser.add_argument(
        "--undo", action="store_true", help="put back what was before the latest update"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared folder of the run, if it is not where config.yaml says; first update only",
    )
    for name, (kind, text) in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    parser.add_argument(
        "--late",
        choices=("refuse", "drop"),
        help="events that are not later than all that was seen (default refuse)",
    )
    parser.add_argument(
        "--states", action="store_true", default=None, help="write users' states into RUN/states"
    )
    log_arguments(parser)


def _update(arguments: Arguments) -> Any:
    from behavegpt.config import check_settings
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.updating.run import left_out, undo_update, update
    from behavegpt.updating.settings import UpdateSettings

    given = given_options(arguments, OPTIONS)
    check_settings(UpdateSettings, given, "update")
    run = arguments.model
    if arguments.undo:
        if arguments.logs or arguments.data or given:
            raise ConfigError("--undo takes the run alone; leave the log and other options out.")
        number = undo_update(run)
        say(f"update {number} undone: {run / 'model'} is the one before")
        return {"run": str(run), "undone": number}
    if not arguments.logs:
        raise ConfigError(f"update {run}: name the files of a log of later events behind the run.")

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
        say(f"{row['late']:,} events were not later than those seen, and left out")
    say(f"{result.verdict}: {result.model}; all updates: {run / 'updates.jsonl'}")
    if beside and result.verdict != "rolled back":
        say(f"learn anew what belonged to the weights before: {', '.join(beside)}")
    return row


COMMANDS: dict[str, Command] = {
    "update": Command(
        "predict a log of later events, learn it, and keep the better model",
        "  behavegpt update runs/mine today.csv\n"
        "  behavegpt update runs/mine today.parquet --steps 200 --late drop --states\n"
        "  behavegpt update runs/mine --undo",
        _update_arguments,
        _update,
    ),
}
