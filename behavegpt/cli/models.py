"""The model that a command names, and the logs that it is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import (
    Arguments,
    Parser,
    encoding_argument,
    given_options,
    named_logs,
)
from behavegpt.collector import paused_collector
from behavegpt.errors import ConfigError

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor
    from behavegpt.zero_shot import UniversalPredictor

_COLUMNS = ("user", "time", "event", "location", "behavior", "order", "group")
# how the training log was written is part of a model; these say what differs now
_READING = (*_COLUMNS, "time_format", "time_unit", "naive_time")


def log_arguments(parser: Parser) -> None:
    """Options for a log whose encoding, columns or times are not written as the training log's."""
    encoding_argument(parser)
    parser.add_argument(
        "--users",
        metavar="TABLE",
        help="user table, one row per user; for models whose data were prepared with --users",
    )
    group = parser.add_argument_group("logs that differ from the training log")
    for role in _COLUMNS:
        group.add_argument(f"--{role}", metavar="COLUMN", help=f"{role} column")

    group.add_argument(
        "--time-format",
        action="append",
        metavar="FORM",
        help="strptime format of the times: '%%d/%%m/%%Y %%H:%%M'",
    )
    group.add_argument(
        "--time-unit",
        choices=("s", "ms", "us", "ns", "excel"),
        help="unit of numeric times",
    )
    group.add_argument(
        "--naive-time",
        choices=("local", "utc"),
        help="how to read times without a zone: in the log's zone, or as UTC",
    )
    group.add_argument(
        # a trained model keeps the zone of its training: weekday and slot would be others
        "--tz",
        metavar="ZONE",
        help="universal only: IANA time zone used for weekday and time slot (default UTC)",
    )


@paused_collector(freeze=True)
def load_trained(arguments: Arguments, device: Any = None) -> Predictor:
    """The predictor of a trained model, reading logs as the arguments say. Raises ConfigError for a
    universal one."""
    from behavegpt.shipped import is_universal
    from behavegpt.trained_folder import load

    if is_universal(arguments.model):
        raise ConfigError(
            f"{arguments.command.split()[-1]} needs a trained model, and "
            f"{arguments.model} is the universal one; train a model with: behavegpt train "
            "memory data.path=DIR out=RUN"
        )

    return _reading(load(arguments.model, device), arguments)


@paused_collector(freeze=True)
def load_with_logs(
    arguments: Arguments, device: Any = None
) -> tuple[Predictor | UniversalPredictor, Any]:
    """The predictor and the logs to ask it about; None for those from which the universal model
    counted its tables.

    Raises ConfigError where logs are missing.
    """
    from behavegpt.loading import load_zero_shot
    from behavegpt.shipped import is_universal

    if is_universal(arguments.model):
        refuse_users(arguments)
        universal = load_zero_shot(arguments.model)
        # a saved folder has its tables already: logs are asked about, not counted
        changes = log_changes(arguments, counting=not universal.counted)
        if universal.counted:
            asked = named_logs(arguments, arguments.logs) if arguments.logs else None
            return universal.reading(**changes) if changes else universal, asked
        if arguments.logs:
            given = _given(arguments)
            logs = named_logs(arguments, arguments.logs)
            return universal.fit_tables(logs, given=given, **changes), None
    # of a trained model all logs are asked about: its counts are those of its training
    elif arguments.logs:
        return load_trained(arguments, device), named_logs(arguments, arguments.logs)

    raise ConfigError(
        f"{arguments.command.split()[-1]} {arguments.model}: add the log files after the model."
    )


@paused_collector(freeze=True)
def load_uncounted(
    arguments: Arguments,
) -> tuple[Predictor | UniversalPredictor, dict[str, Any]]:
    """The predictor, and what the options say of the log's columns, for a command that reads the
    log itself."""
    from behavegpt.loading import load_zero_shot
    from behavegpt.shipped import is_universal

    if is_universal(arguments.model):
        refuse_users(arguments)
        universal = load_zero_shot(arguments.model)
        return universal, log_changes(arguments, counting=not universal.counted)

    from behavegpt.trained_folder import load

    predictor, changes = load(arguments.model), log_changes(arguments)
    if not arguments.users:
        return predictor, changes
    # the table is written as the log is, under the names that are given here
    tokenizer = predictor.tokenizer.reading(changes).with_features(arguments.users)
    return predictor.with_features(tokenizer.users), changes


def _reading(predictor: Predictor, arguments: Arguments) -> Predictor:
    """The predictor that reads logs, and what is known of their users, as the arguments say."""
    changes = log_changes(arguments)
    if changes:
        predictor = predictor.reading(**changes)
    return predictor.with_features(arguments.users) if arguments.users else predictor


def refuse_users(arguments: Arguments) -> None:
    """Raise ConfigError for a table of users beside the universal model."""
    if arguments.users:
        raise ConfigError(
            "--users is for trained models: the universal model counts events and uses "
            "no user features; train on data prepared with --users, or remove the option."
        )


def _given(arguments: Arguments) -> tuple[str, ...]:
    """What is known of the event that is predicted: what a command names, or what it asks about."""
    from behavegpt.ingest.asked import named_given

    # a command has either --at and --location-now or --given
    named = named_given(getattr(arguments, "at", None), getattr(arguments, "location_now", None))
    return named or tuple(getattr(arguments, "given", None) or ())


def given_argument(parser: Parser, what: str) -> None:
    """`--given time location`, of the universal model."""
    parser.add_argument(
        "--given", nargs="+", choices=("time", "location"), metavar="time|location", help=what
    )


def say_unread(unknown: Mapping[str, int], rejected: Mapping[str, int]) -> None:
    """Say how many labels of a log the model does not know, and how many rows it left out."""
    from behavegpt.console import say

    for what, counts in (("unknown labels", unknown), ("rows left out", rejected)):
        for name, number in counts.items():
            if number:
                say(f"{what}: {name}: {number:,}")


def log_changes(arguments: Arguments, counting: bool = False) -> dict[str, Any]:
    """What the options say of the columns and times of a log. Raises ConfigError for a zone, unless
    the log is counted: what was trained or counted keeps its own."""
    if arguments.tz and not counting:
        raise ConfigError(
            f"--tz is for a log that `universal` counts; {arguments.model} keeps the time "
            "zone of its training log."
        )
    return given_options(arguments, (*_READING, "tz"))
