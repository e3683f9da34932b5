"""CPU seconds from the shell to the first answer: `--help`, a small preparation, ten rows.

    python benchmarks/start.py runs/mine/model --log my_logs.parquet --repeats 5

Each case is a process of its own, begun anew REPEATS times, all cases in turn, so that other work
on the machine meets them alike; a row tells the least and the median user + system seconds, and the
median of the wall. `floor` cases are what cannot be avoided: Python, torch, and the base class of
transformers' models. Each case runs once before, so that files are cached and compiled. Rows go to
benchmarks/results/start.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from serve import service

RESULT = Path(__file__).parent / "results" / "start.json"
ROWS = 10
SMALL = 1000  # rows of the file that is prepared, spread over the log's time
FLOORS = {
    "floor: python": "pass",
    "floor: torch": "import torch",
    "floor: transformers' models": "from transformers import PreTrainedModel",
}


def small_files(model: Path, log: Path, folder: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A CSV file of rows of the whole log; one of the last rows of one user with the columns of the
    model; and the latter's rows."""
    schema = json.loads((model / "preprocessor_config.json").read_text())["event_schema"]
    roles = ("user", "time", "event", "location", "behavior", "order")
    names = [*dict.fromkeys(schema[role] for role in roles if schema[role]), *schema["extra"]]
    table = pq.read_table(log, columns=names).to_pandas()
    user = table[schema["user"]].value_counts().index[0]
    ordered = table.sort_values(schema["time"], kind="stable")
    spread, one = folder / "small.csv", folder / "rows.csv"
    ordered.iloc[:: max(1, len(table) // SMALL)].to_csv(spread, index=False)
    rows = ordered[ordered[schema["user"]] == user].tail(ROWS)
    rows.to_csv(one, index=False)
    return spread, one, rows.astype(str).to_dict("records")


def commands(model: Path, small: Path, file: Path, rows: Any, folder: Path) -> dict[str, list[str]]:
    """Name -> command line."""
    behavegpt, python = [sys.executable, "-m", "behavegpt"], [sys.executable, "-c"]
    asked = f"import behavegpt; behavegpt.load({str(model)!r}, 'cpu').predict({rows!r})"
    prepare = ["prepare", str(small), "--out", str(folder / "data"), "--overwrite"]
    return {
        **{name: [*python, code] for name, code in FLOORS.items()},
        "behavegpt --help": [*behavegpt, "--help"],
        f"behavegpt prepare, {SMALL:,} rows": [*behavegpt, *prepare],
        "behavegpt predict MODEL, ten rows": [*behavegpt, "predict", str(model), str(file)],
        "behavegpt predict universal, ten rows": [*behavegpt, "predict", "universal", str(file)],
        "load and predict in Python": [*python, asked],
    }


def run(command: list[str]) -> None:
    """Run a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}: {done.stderr[-2000:]}")


def serve_once(model: Path, rows: list[dict[str, Any]], user: str) -> None:
    """Start the service, have one answer, stop it."""
    events = [{name: value for name, value in row.items() if name != user} for row in rows]
    with service(model, ["--threads", "1"]) as (port, _):
        body = {"users": [{"id": "7", "events": events}]}
        httpx.post(f"http://127.0.0.1:{port}/v1/predict", json=body).raise_for_status()


@contextlib.contextmanager
def timed(into: list[tuple[float, float]]) -> Iterator[None]:
    """User + system seconds of the processes that end inside, and the wall's."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    into.append((cpu, time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", default="", help="what else the machine did, for the record")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, file, rows = small_files(arguments.model, arguments.log, folder)
        schema = json.loads((arguments.model / "preprocessor_config.json").read_text())
        cases: dict[str, Callable[[], None]] = {
            name: lambda command=command: run(command)  # type: ignore[misc]
            for name, command in commands(arguments.model, small, file, rows, folder).items()
        }
        user = schema["event_schema"]["user"]
        cases["behavegpt serve, until an answer"] = lambda: serve_once(arguments.model, rows, user)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for number in range(arguments.repeats + 1):
            for name, case in cases.items():
                with timed(times[name] if number else []):
                    case()
    found = [
        {
            "case": name,
            "cpu_s": round(min(cpu for cpu, _ in taken), 3),
            "median_cpu_s": round(statistics.median(cpu for cpu, _ in taken), 3),
            "median_wall_s": round(statistics.median(wall for _, wall in taken), 2),
        }
        for name, taken in times.items()
    ]
    facts = {"repeats": arguments.repeats, "beside": arguments.beside, "rows": found}
    RESULT.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
