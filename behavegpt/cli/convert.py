"""Commands that make logs to prepare: convert, of what others collected, and synthesize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Output, Parser


def _convert_arguments(parser: Parser) -> None:
    parser.add_argument(
        "name",
        help="git, web_log, tsinghua_app, lsapp, foursquare_tsmc, gowalla, retailrocket, taobao, "
        "recsys2025, easytpp, mbd, massive_steps, yambda, carat",
    )
    parser.add_argument(
        "source",
        type=Path,
        nargs="+",
        help="downloaded file or folder; for git: local clones; for web_log: access logs",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="parquet file to write, and its schema beside it"
    )
    parser.add_argument(
        "--clock",
        type=float,
        metavar="DAYS",
        help="insert an event `tick` every DAYS days, and a column with the gaps",
    )
    parser.add_argument(
        # with the same salt, logs converted on different days can be joined
        "--salt",
        help=(
            "git, web_log: secret for hashing users; the same secret gives the same "
            "hashes (default: random)"
        ),
    )


def _convert(arguments: Arguments) -> Any:
    from behavegpt.errors import ConfigError

    if arguments.clock is not None and not 0 < arguments.clock < float("inf"):
        raise ConfigError(f"--clock {arguments.clock}: must be a number of days above 0.")

    split = ""
    # imported by name: each reader pulls in libraries of its own
    if arguments.name == "git":
        from behavegpt.datasets.git import convert_git

        schema = convert_git(arguments.source, arguments.out, arguments.salt, arguments.clock)
    elif arguments.name == "web_log":
        from behavegpt.datasets.web_log import convert_web_log

        schema = convert_web_log(arguments.source, arguments.out, arguments.salt, arguments.clock)
    else:
        from behavegpt.datasets.converters import convert
        from behavegpt.datasets.published import PUBLISHED
        from behavegpt.datasets.tables import convert_published

        if arguments.salt is not None:
            raise ConfigError(
                f"--salt is for git and web_log; {arguments.name} keeps the user ids of its "
                "download."
            )
        if len(arguments.source) > 1:
            raise ConfigError(
                f"{arguments.name} converts one download, not {len(arguments.source)}; name one."
            )

        # published logs are tables that need no program of their own
        log = PUBLISHED.get(arguments.name)
        make = convert_published if log else convert
        schema = make(arguments.name, arguments.source[0], arguments.out, arguments.clock)
        split = f" --split {log.split}" if log and log.split else ""

    # the columns are known: guessing them again could only go wrong
    schema_file = arguments.out.with_suffix(".schema.yaml")
    print(
        f"next: behavegpt prepare {arguments.out} --schema {schema_file}{split} --out DIR",
        file=sys.stderr,
    )
    return schema.model_dump(mode="json")


def _synthesize_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument(
        "--events", type=int, default=1_000_000, help="approximate number of events (default 1e6)"
    )
    parser.add_argument("--users", type=int, help="number of users (default: events / 30)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")


def _synthesize(arguments: Arguments) -> Any:
    from behavegpt.datasets.synthetic import generate

    generate(arguments.out, events=arguments.events, users=arguments.users, seed=arguments.seed)
    print(f"next: behavegpt prepare {arguments.out} --out DIR", file=sys.stderr)
    return {"out": str(arguments.out)}


COMMANDS: dict[str, Command] = {
    "convert": Command(
        "turn local clones, access logs or a known data set's download into a log to prepare",
        "  behavegpt convert git ~/src/numpy ~/src/scipy --out commits.parquet\n"
        "  behavegpt convert web_log access.log access.log.*.gz --out visits.parquet\n"
        "  behavegpt convert foursquare_tsmc dataset_TSMC2014_NYC.txt --out nyc.parquet\n"
        "  behavegpt convert recsys2025 challenge/input --clock 7 --out stream.parquet",
        _convert_arguments,
        _convert,
        {"out": Output("file", (".parquet",))},
    ),
    "synthesize": Command(
        "write phone-log-like events with known structure",
        "  behavegpt synthesize --events 10000000 --out logs.parquet",
        _synthesize_arguments,
        _synthesize,
        {"out": Output("file", (".parquet",))},
    ),
}
