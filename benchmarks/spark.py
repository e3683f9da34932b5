"""Spark's engine against the local one on a real log: the same bytes, and how long both take.

    python benchmarks/spark.py clicks.parquet --master 'local[2]' --files 8 --work ../bench

The log is cut into files first, since Spark reads one file a task. Wall seconds; Java's start is
told apart. The row goes to benchmarks/results/spark.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq

from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.spark_session import spark_session

RESULT = Path(__file__).parent / "results" / "spark.json"


def cut(log: Path, files: int, folder: Path) -> Path:
    """The log as `files` parquet files."""
    folder.mkdir(parents=True)
    table = pq.read_table(log)
    size = -(-len(table) // files)
    for i in range(files):
        pq.write_table(table[i * size : (i + 1) * size], folder / f"{i:03}.parquet")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work = arguments.work / "spark"
    shutil.rmtree(work, ignore_errors=True)
    logs = cut(arguments.log, arguments.files, work / "logs")
    began = time.perf_counter()
    local = prepare(logs, work / "local").manifest
    seconds = {"local": time.perf_counter() - began}
    began = time.perf_counter()

    with spark_session(arguments.master):
        seconds["spark_start"] = time.perf_counter() - began
        began = time.perf_counter()
        there = prepare(logs, work / "spark-out", engine="spark", progress=print).manifest
        seconds["spark"] = time.perf_counter() - began

    one, two = digests(work / "local"), digests(work / "spark-out")
    row = {
        "log": arguments.log.name,
        "events": local.events,
        "users": local.users,
        "master": arguments.master,
        "files": arguments.files,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "same_content_hash": local.content_hash == there.content_hash,
        "same_files": one == two,
        "compared_files": len(one),
    }

    RESULT.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=2))
    if one != two:
        raise SystemExit(f"differ: {sorted(name for name in one if one[name] != two.get(name))}")

    shutil.rmtree(work)


if __name__ == "__main__":
    main()
