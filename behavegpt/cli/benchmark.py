"""The command of benchmarks: many models on many logs."""

from __future__ import annotations

import sys
from typing import Any

from behavegpt.cli.command import Arguments, Command, Parser, show


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "config", help="YAML file, or the name of a shipped one, such as benchmark/small"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="settings, for example data.mine.path=DIR out=FOLDER seeds=[0,1]",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs that would start; train nothing"
    )
    parser.add_argument(
        "--table", action="store_true", help="only write tables and figures from finished runs"
    )


def _benchmark(arguments: Arguments) -> Any:
    from pathlib import Path

    from behavegpt.benchmark.run import benchmark, plans_of
    from behavegpt.benchmark.settings import BenchmarkSettings
    from behavegpt.benchmark.tables import write_tables
    from behavegpt.config import read_settings
    from behavegpt.data.store import open_store

    settings = read_settings(BenchmarkSettings, arguments.config, arguments.overrides)

    if arguments.dry_run:
        # a plan needs sizes and vocabularies of the logs; nothing of them is read whole
        stores = {name: open_store(entry.path) for name, entry in settings.data.items()}
        runs = [planned for plan in plans_of(settings, stores) for planned in plan.open()]
        rows = [
            [one.run.data, one.run.model, one.kind, str(one.run.seed), str(one.run.point or "-")]
            for one in runs
        ]
        show(arguments, ("data", "model", "kind", "seed", "point"), rows, "runs that can start now")
        return {"open": len(runs)}

    # the rows of earlier processes count too: `write_tables` reads them all
    done = [] if arguments.table else benchmark(settings)
    path = write_tables(settings)
    if not arguments.json:
        print(path.read_text(encoding="utf-8"))

    print(f"rows: {Path(settings.out) / 'rows.jsonl'}; tables: {path}", file=sys.stderr)
    return {"tables": str(path), "failed": sum(row["status"] == "failed" for row in done)}


COMMANDS: dict[str, Command] = {
    "benchmark": Command(
        "train and compare many models on many logs: same data, budget and tuning, several seeds",
        "  behavegpt benchmark benchmark/small data.mine.path=data/mine "
        "out=runs/benchmark --dry-run\n"
        "  behavegpt benchmark benchmark/small data.mine.path=data/mine "
        "out=runs/benchmark\n"
        "  behavegpt benchmark CONFIG out=runs/benchmark --table          # from "
        "finished runs",
        _arguments,
        _benchmark,
    ),
}
