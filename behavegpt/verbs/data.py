"""Verbs that make data: prepare, convert, synthesize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from behavegpt.verbs.verb import Arguments, Output, Parser, Verb


def _schema_arguments(parser: Parser) -> None:
    parser.add_argument("--schema", type=Path, metavar="YAML", help="EventSchema file instead of the options below")
    for role in ("user", "time", "event", "location", "behavior", "order"):
        parser.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role} (guessed when left out)")
    parser.add_argument("--extra", nargs="*", default=[], metavar="COLUMN", help="further categorical input columns")
    parser.add_argument("--tz", help="IANA zone in which weekday and time slot are told (default UTC)")
    parser.add_argument("--naive-time", choices=("local", "utc"), help="what a time without zone means (default local)")
    parser.add_argument("--time-unit", choices=("s", "ms", "us", "ns"), help="unit of epoch numbers (default: guessed)")
    parser.add_argument("--slot-minutes", type=int, help="length of a time slot (default 30)")


def _prepare_arguments(parser: Parser) -> None:
    parser.add_argument("logs", nargs="+", help="CSV, JSONL or parquet files, globs or folders, or hf:NAME[:SPLIT]")
    parser.add_argument("--out", type=Path, help="folder to write")
    _schema_arguments(parser)
    parser.add_argument(
        "--split",
        default="time:0.7,0.15,0.15",
        help="time:A,B,C shares of the events in time; span:A,B,C of the calendar; date:D1,D2; user:A,B,C",
    )
    parser.add_argument("--min-events", type=int, default=1, help="leave out users with fewer events")
    parser.add_argument("--min-count", type=int, default=1, help="labels seen less often in training become unknown")
    parser.add_argument("--max-vocabulary", type=int, help="keep the most frequent labels of each field")
    parser.add_argument("--max-reject-share", type=float, default=0.01, help="stop above this share of bad rows")
    parser.add_argument("--memory", default="2GiB", help="memory to stay under (default 2GiB)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--engine", choices=("local", "spark"), default="local", help="where rows are read and sorted")
    parser.add_argument("--spark-master", metavar="URL", help="for example local[8] or spark://host:7077")
    parser.add_argument("--dry-run", action="store_true", help="show the guesses and counts, write nothing")


def _given(arguments: Arguments) -> dict[str, Any]:
    names = ("user", "time", "event", "location", "behavior", "order", "tz", "naive_time", "time_unit", "slot_minutes")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return given | ({"extra": tuple(arguments.extra)} if arguments.extra else {})


def _prepare(arguments: Arguments) -> Any:
    from behavegpt.console import say, table
    from behavegpt.data.guess import guess_schema
    from behavegpt.data.prepare import prepare, preview
    from behavegpt.data.schema import read_schema
    from behavegpt.errors import ConfigError

    if arguments.schema:
        if _given(arguments):
            raise ConfigError(
                f"--schema and --{next(iter(_given(arguments)))} together: put it into {arguments.schema}."
            )
        schema = read_schema(arguments.schema)
    else:
        schema, guesses = guess_schema(arguments.logs, _given(arguments))
        rows = [[g.column, g.role or "-", g.type, f"{g.nulls:,}", f"{g.distinct:,}", str(g.example)] for g in guesses]
        table(("column", "role", "type", "nulls", "distinct", "example"), rows, "columns, from up to 100,000 rows")
    if arguments.dry_run:
        seen = preview(
            arguments.logs,
            schema,
            split=arguments.split,
            min_events=arguments.min_events,
            memory=arguments.memory,
        )
        say(f"{seen.rows:,} rows, {seen.users:,} users; events by split: {_counted(seen.split)}")
        say(f"rejected: {_counted(seen.rejected) or 'none'}")
        say("nothing was written; the same with --out FOLDER prepares the data.")
        return {
            "rows": seen.rows,
            "users": seen.users,
            "split": seen.split,
            "rejected": seen.rejected,
            "schema": seen.schema.model_dump(mode="json"),
        }
    if arguments.out is None:
        raise ConfigError("--out FOLDER is needed (or --dry-run to look first).")
    store = prepare(
        arguments.logs,
        arguments.out,
        schema,
        split=arguments.split,
        min_events=arguments.min_events,
        min_count=arguments.min_count,
        max_vocabulary=arguments.max_vocabulary,
        max_reject_share=arguments.max_reject_share,
        memory=arguments.memory,
        overwrite=arguments.overwrite,
        engine=arguments.engine,
        spark_master=arguments.spark_master,
        progress=say,
    )
    say(f"{store.manifest.events:,} events of {store.manifest.users:,} users in {arguments.out} (see data_card.md)")
    say(f"next: behavegpt train configs/small.yaml data.path={arguments.out} out=runs/my-run")
    return store.manifest.model_dump(mode="json")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _convert_arguments(parser: Parser) -> None:
    parser.add_argument("name", help="tsinghua_app, lsapp, foursquare_tsmc, gowalla, retailrocket, taobao, recsys2025")
    parser.add_argument("source", type=Path, help="the downloaded file or folder")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write; its schema goes beside it")
    parser.add_argument("--clock", type=float, metavar="DAYS", help="add an event `tick` every DAYS days, and gaps")


def _convert(arguments: Arguments) -> Any:
    from behavegpt.data.converters import convert

    schema = convert(arguments.name, arguments.source, arguments.out, arguments.clock)
    beside = arguments.out.with_suffix(".schema.yaml")
    print(f"next: behavegpt prepare {arguments.out} --schema {beside} --out DIR", file=sys.stderr)
    return schema.model_dump(mode="json")


def _synthesize_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--events", type=int, default=1_000_000, help="about how many events")
    parser.add_argument("--users", type=int, help="users (default: events / 30)")
    parser.add_argument("--seed", type=int, default=0)


def _synthesize(arguments: Arguments) -> Any:
    from behavegpt.data.synthetic import generate

    generate(arguments.out, events=arguments.events, users=arguments.users, seed=arguments.seed)
    print(f"next: behavegpt prepare {arguments.out} --out DIR", file=sys.stderr)
    return {"out": str(arguments.out)}


VERBS: dict[str, Verb] = {
    "prepare": Verb(
        "turn event logs into a folder to train on",
        "  behavegpt prepare my_logs.parquet --dry-run\n"
        "  behavegpt prepare 'logs/*.csv' --out data/mine --user uid --time ts --event app --tz Europe/London\n"
        "  behavegpt prepare logs/ --schema schema.yaml --split date:2024-05-10,2024-05-25 --out data/mine\n"
        "  behavegpt prepare '/nfs/logs/*.parquet' --engine spark --spark-master spark://host:7077 --out /nfs/mine",
        _prepare_arguments,
        _prepare,
        {"out": Output("whole")},
    ),
    "convert": Verb(
        "turn a known public data set's download into a log to prepare",
        "  behavegpt convert foursquare_tsmc dataset_TSMC2014_NYC.txt --out nyc.parquet\n"
        "  behavegpt convert recsys2025 challenge/input --clock 7 --out stream.parquet",
        _convert_arguments,
        _convert,
        {"out": Output("file", (".parquet",))},
    ),
    "synthesize": Verb(
        "write phone-log-like events with known structure",
        "  behavegpt synthesize --events 10000000 --out logs.parquet",
        _synthesize_arguments,
        _synthesize,
        {"out": Output("file", (".parquet",))},
    ),
}
