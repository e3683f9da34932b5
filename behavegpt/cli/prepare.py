"""`prepare`: event logs into a folder to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import (
    Arguments,
    Command,
    Output,
    Parser,
    encoding_argument,
    given_options,
    named_logs,
)

if TYPE_CHECKING:
    from behavegpt.data.schema import EventSchema
    from behavegpt.ingest.prepare import Preview


ROLES = ("user", "time", "event", "location", "behavior", "order", "group")
# roles that are never guessed say what they are for
_HINTS = {
    "order": "column that orders events of one moment, such as a line number (default: none)",
    "group": "column that tells baskets apart, such as an invoice: events of one are a set, "
    "predicted as a whole from those before (default: none)",
}
_SCHEMA_OPTIONS = (
    *ROLES,
    "tz",
    "naive_time",
    "time_unit",
    "time_format",
    "slot_minutes",
    "tie_seed",
)
_COLUMNS = ("extra", "numeric", "user_features", "user_numeric")
_PREPARE_OPTIONS = (
    "split", "min_events", "min_count", "max_vocabulary", "max_reject_share", "memory", "overwrite",
    "engine", "spark_master", "users",
)  # fmt: skip


def _column_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--schema", type=Path, metavar="YAML", help="EventSchema file instead of the options below"
    )
    for role in ROLES:
        joined = "; DATE+CLOCK if split over two" if role == "time" else ""
        hint = f"{role} column (default: guessed{joined})"
        parser.add_argument(f"--{role}", metavar="COLUMN", help=_HINTS.get(role, hint))

    parser.add_argument(
        "--extra",
        nargs="*",
        # a list and not None: the columns are joined to those of the schema
        default=[],
        metavar="COLUMN",
        help="additional categorical input columns",
    )
    parser.add_argument(
        "--numeric",
        nargs="*",
        default=[],
        metavar="COLUMN",
        help="numeric input columns, such as amount or duration; binned by quantiles",
    )
    parser.add_argument(
        "--users",
        metavar="TABLE",
        help="user table: a file with the user column and one row per user",
    )
    parser.add_argument(
        "--user-features",
        nargs="*",
        default=[],
        metavar="COLUMN",
        help=(
            "categorical columns of the user table (default: all, unless --user-numeric is given)"
        ),
    )
    parser.add_argument(
        "--user-numeric",
        nargs="*",
        default=[],
        metavar="COLUMN",
        help="numeric columns of the user table, such as age; binned by quantiles",
    )


def _time_arguments(parser: Parser) -> None:
    parser.add_argument("--tz", help="IANA time zone used for weekday and time slot (default UTC)")
    parser.add_argument(
        "--naive-time",
        choices=("local", "utc"),
        help="how to read times without a zone: in --tz, or as UTC (default local)",
    )
    parser.add_argument(
        "--time-unit",
        choices=("s", "ms", "us", "ns", "excel"),
        help="unit of numeric times; excel: days since 1899-12-30 (default: guessed)",
    )
    parser.add_argument(
        "--time-format",
        action="append",
        metavar="FORM",
        help="strptime format of the times: '%%d/%%m/%%Y %%H:%%M' (default: guessed)",
    )
    parser.add_argument(
        "--slot-minutes", type=int, help="length of a time slot in minutes (default 30)"
    )
    parser.add_argument(
        "--tie-seed", type=int, help="seed for shuffling simultaneous events (default 0)"
    )


def _prepare_arguments(parser: Parser) -> None:
    parser.add_argument(
        "logs",
        nargs="+",
        help="CSV, JSON, parquet or Arrow files, globs or folders, or hf:NAME[:SPLIT]",
    )
    # not required: --dry-run writes nothing
    parser.add_argument("--out", type=Path, help="output folder")
    encoding_argument(parser)
    _column_arguments(parser)
    _time_arguments(parser)
    _selection_arguments(parser)
    parser.add_argument("--memory", default="2GiB", help="memory limit (default 2GiB)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument(
        "--engine",
        choices=("local", "spark"),
        default="local",
        help="engine that reads and sorts the rows (default local)",
    )
    parser.add_argument(
        "--spark-master", metavar="URL", help="for example local[8] or spark://host:7077"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the guesses and counts, write nothing"
    )


def _selection_arguments(parser: Parser) -> None:
    """Which events and labels are kept, and in which split they are."""
    parser.add_argument(
        "--split",
        default="time:0.7,0.15,0.15",
        help=(
            "time:A,B,C splits by shares of the events, in time order; span:A,B,C by "
            "shares of the calendar; date:D1,D2 at two dates; user:A,B,C by shares of "
            "the users (default time:0.7,0.15,0.15)"
        ),
    )
    parser.add_argument(
        "--min-events", type=int, default=1, help="drop users with fewer events (default 1)"
    )
    parser.add_argument(
        "--min-count",
        type=int,
        default=1,
        help="map labels with fewer training events to unknown (default 1)",
    )
    parser.add_argument(
        "--max-vocabulary",
        type=int,
        help="keep at most this many labels per field, the most frequent ones",
    )
    parser.add_argument(
        "--max-reject-share",
        type=float,
        default=0.01,
        help="stop if a larger share of the rows is bad (default 0.01)",
    )


def _given(arguments: Arguments) -> dict[str, Any]:
    given = given_options(arguments, _SCHEMA_OPTIONS)
    # an empty list is an option that was not given
    further = {name: tuple(getattr(arguments, name)) for name in _COLUMNS}
    return given | {name: columns for name, columns in further.items() if columns}


def _prepare(arguments: Arguments) -> Any:
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.ingest.prepare import prepare, preview

    logs = named_logs(arguments, arguments.logs)
    # guessed and shown before anything is read whole: a wrong column costs seconds then, not an
    # hour
    schema = _schema(arguments, logs)
    options = {name: getattr(arguments, name) for name in _PREPARE_OPTIONS}

    if arguments.dry_run:
        return _dry_run(preview(logs, schema, out=arguments.out, **options))
    if arguments.out is None:
        raise ConfigError("add --out FOLDER (or --dry-run to look first).")

    store = prepare(logs, arguments.out, schema, progress=say, **options)
    say(
        f"{store.manifest.events:,} events of {store.manifest.users:,} users in {arguments.out} "
        "(see data_card.md)"
    )
    # counts know no further fields: a network reads them
    further = store.schema.extra or store.schema.numeric or store.schema.features
    config = "small" if further else "memory"
    if store.schema.has_baskets:
        config = "baskets"
    say(f"next: behavegpt train {config} data.path={arguments.out} out=runs/my-run")

    return store.manifest.model_dump(mode="json")


def _schema(arguments: Arguments, logs: Any) -> EventSchema:
    """The schema of a file, or the one that is guessed from the logs, which is shown."""
    from behavegpt.console import table
    from behavegpt.data.schema import read_schema
    from behavegpt.errors import ConfigError
    from behavegpt.ingest.guess import guess_schema

    given = _given(arguments)
    if arguments.schema:
        # two sources of one schema would have to be merged, and either could be the mistake
        if given:
            raise ConfigError(
                f"--schema and --{next(iter(given))} cannot be combined; put the setting "
                f"into {arguments.schema}."
            )
        return read_schema(arguments.schema)

    schema, guesses = guess_schema(logs, given)
    rows = [
        [
            guess.column,
            guess.role or "-",
            guess.type,
            f"{guess.nulls:,}",
            f"{guess.distinct:,}",
            str(guess.example),
        ]
        for guess in guesses
    ]
    table(
        ("column", "role", "type", "nulls", "distinct", "example"),
        rows,
        "columns, from up to 100,000 rows",
    )
    return schema


def _dry_run(preview: Preview) -> dict[str, Any]:
    from behavegpt.console import say

    splits = _counted(preview.split)
    say(f"{preview.rows:,} rows, {preview.users:,} users; events by split: {splits}")
    say(f"rejected: {_counted(preview.rejected) or 'none'}; labels: {_counted(preview.labels)}")
    for remark in preview.remarks:
        say(f"note: {remark}")

    say("nothing was written; to prepare the data, replace --dry-run by --out FOLDER.")
    names = ("rows", "users", "split", "rejected", "labels", "remarks")
    return {name: getattr(preview, name) for name in names} | {
        "schema": preview.schema.model_dump(mode="json")
    }


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


COMMANDS: dict[str, Command] = {
    "prepare": Command(
        "turn event logs into a folder to train on",
        "  behavegpt prepare my_logs.parquet --dry-run\n"
        "  behavegpt prepare 'logs/*.csv' --out data/mine --user uid --time ts --event app --tz "
        "Europe/London\n"
        "  behavegpt prepare my_logs.csv --users customers.csv --user-features segment "
        "--user-numeric age --out data/mine\n"
        "  behavegpt prepare sales.csv --event product --group invoice --out data/sales\n"
        "  behavegpt prepare logs/ --schema schema.yaml --split date:2024-05-10,2024-05-25 --out "
        "data/mine\n"
        "  behavegpt prepare '/nfs/logs/*.parquet' --engine spark --spark-master "
        "spark://host:7077 --out /nfs/mine",
        _prepare_arguments,
        _prepare,
        {"out": Output("whole")},
    ),
}
