"""Export: CPU seconds and peak memory by the number of users, and what that means for a million of
them.

    python benchmarks/export.py --users 50000 200000 --work ../bench

For each size a log of 20 events a user is generated and prepared, a model (configs/challenge.yaml,
one step of training: the weights do not matter for the cost) reads it, and the vectors of all users
are exported in a random order, as a list of clients asks for them, by `behavegpt export` in a fresh
process with one thread, imports included. The last line is linear in the users, from the two
largest sizes: an extrapolation. The table goes to benchmarks/results/export.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import measured

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "export.json"
EVENTS_PER_USER = 20
MANY_USERS = 1_000_000

SHUFFLE = (
    "import sys, numpy as np, pyarrow.parquet as pq; ids = "
    "pq.read_table(sys.argv[1])['user'].to_numpy();"
    "np.save(sys.argv[2], np.random.default_rng(0).permutation(ids.astype(np.int64)))"
)


def behavegpt(*arguments: object) -> dict[str, float]:
    """One measured command line, on one thread."""
    return run_python("-m", "behavegpt.cli", *arguments)


def run_python(*arguments: object) -> dict[str, float]:
    """A measured Python process on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return measured(command, environment=environment, cwd=ROOT)


def run_size(users: int, work: Path, pool: str) -> dict[str, float]:
    """Everything for one number of users; only the export is measured."""
    data, log, run = work / f"data_{users}", work / f"log_{users}.parquet", work / "run"
    if not data.exists():
        behavegpt("synthesize", "--users", users, "--events", users * EVENTS_PER_USER, "--out", log)
        behavegpt("prepare", log, "--out", data)
        run_python("-c", SHUFFLE, data / "users.parquet", work / f"clients_{users}.npy")

    if not (run / "model").exists():
        behavegpt(
            "train", "configs/challenge.yaml", f"data.path={data}", f"out={run}", "train.steps=1"
        )

    out = work / f"vectors_{users}"
    shutil.rmtree(out, ignore_errors=True)
    clients = ("--clients", work / f"clients_{users}.npy")
    figures = behavegpt("export", run / "model", data, out, *clients, "--pool", pool)
    manifest = json.loads((data / "dataset.json").read_text())

    return {
        "users": manifest["users"],
        "events": manifest["events"],
        **figures,
        "events_per_cpu_s": manifest["events"] / figures["cpu_s"],
    }


def extrapolated(rows: list[dict[str, float]]) -> dict[str, float]:
    """MANY_USERS on the line through the two largest sizes."""
    low, high = sorted(rows, key=lambda row: row["users"])[-2:]
    step = (MANY_USERS - high["users"]) / (high["users"] - low["users"])
    return {
        name: high[name] + step * (high[name] - low[name])
        for name in ("users", "events", "cpu_s", "peak_mib")
    }


def main() -> None:
    """Measure all sizes, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--pool", default="last+mean")
    parser.add_argument(
        "--work", type=Path, help="folder for what is made, kept (default: a temporary one)"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows = [run_size(users, work, args.pool) for users in sorted(args.users)]

    for row in rows:
        print("  ".join(f"{name} {value:,.0f}" for name, value in row.items()))

    result = {
        "pool": args.pool,
        "python": sys.version.split()[0],
        "cpu": platform.machine(),
        "table": rows,
    }
    if len(rows) > 1:
        result["extrapolated"] = extrapolated(rows)
        print(
            "extrapolated: "
            + "  ".join(f"{name} {value:,.0f}" for name, value in result["extrapolated"].items())
        )

    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
