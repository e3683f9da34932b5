"""Preparation against pandas and polars: CPU seconds and peak memory for the same work on the same
generated events.

    python benchmarks/prepare.py --events 10000000 --work ../bench --threads 1 2 --repeats 3

Every program reads the log, sorts it by user (as text) and time, tells weekday and half-hour slot,
splits 70/15/15 at two moments, counts the vocabularies of the training part, and writes columns of
ids; what they write is compared. Ours also does what the others leave out: rejects with reasons,
order within equal times, hashes, data card. Each run is a fresh process, imports included, held to
as many cores as it may have threads; programs take turns. Figures are the best of the repeats.
Several sizes give the curve of time over size:

    python benchmarks/prepare.py --events 1000000 10000000 100000000 --programs behavegpt \
        --threads 2 --repeats 1 --result benchmarks/results/prepare_sizes.json

Needs the extra `test` (pandas, polars). The table goes to benchmarks/results/prepare.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import measured, with_bytecode

if TYPE_CHECKING:  # the parent process stays small: a child's peak memory starts from its parent's
    import numpy as np

RESULT = Path(__file__).parent / "results" / "prepare.json"
FIELDS = ("event", "location", "behavior")
SLOT_MINUTES = 30
ENDS = (0.7, 0.85)  # of the events, in the order of time


def run_behavegpt(logs: Path, out: Path, threads: int) -> None:
    """Our own preparation, at its default memory limit of 2 GiB."""
    from behavegpt.data.schema import EventSchema
    from behavegpt.ingest.prepare import prepare

    schema = EventSchema(
        user="user_id",
        time="timestamp",
        event="event",
        location="location",
        behavior="behavior",
        tz="UTC",
    )
    prepare(logs, out, schema, threads=threads, overwrite=True)


def run_pandas(logs: Path, out: Path, threads: int) -> None:
    """The same with pandas: categories for labels, one sort, `.dt` for the calendar."""
    import numpy as np
    import pandas as pd

    log = (
        pd.read_csv(logs, parse_dates=["timestamp"])
        if logs.suffix == ".csv"
        else pd.read_parquet(logs)
    )
    log = log.dropna(subset=["user_id", "timestamp", "event"])
    user = log["user_id"].astype("category")
    rank = user.cat.categories.astype(str).argsort().argsort()
    log["user"] = rank[user.cat.codes.to_numpy()]
    log = log.sort_values(["user", "timestamp"], ignore_index=True)
    moment = log["timestamp"].dt
    seconds = log["timestamp"].astype("datetime64[s]").astype("int64").to_numpy()
    columns = {
        "weekday": moment.day_of_week.to_numpy(np.uint8),
        "slot": ((moment.hour * 60 + moment.minute) // SLOT_MINUTES).to_numpy(np.uint8),
        "split": _split(seconds),
        "time": (seconds - seconds.min()).astype(np.uint32),
        "offsets": np.concatenate([[0], np.bincount(log["user"]).cumsum()]),
    }

    train = columns["split"] == 0
    for field in FIELDS:
        label = log[field].astype("category")
        counts = label[train].value_counts()
        counts = counts[counts > 0].sort_index().sort_values(ascending=False, kind="stable")
        ids = pd.Series(np.arange(len(counts)) + 2, counts.index.astype(str)).reindex(
            label.cat.categories, fill_value=1
        )
        columns[field] = _small(ids.to_numpy()[label.cat.codes.to_numpy()], len(counts) + 2)
        counts.reset_index().to_parquet(out / f"{field}.parquet")

    _write(columns, out)


def run_polars(logs: Path, out: Path, threads: int) -> None:
    """The same with polars: a join for the users' order, one sort, group_by and replace for the
    vocabularies."""
    import numpy as np
    import polars as pl

    log = (
        pl.read_csv(logs, try_parse_dates=True) if logs.suffix == ".csv" else pl.read_parquet(logs)
    )
    log = log.drop_nulls(["user_id", "timestamp", "event"])
    users = (
        log.select(pl.col("user_id").unique())
        .sort(pl.col("user_id").cast(pl.String))
        .with_row_index("user")
    )
    log = log.join(users, on="user_id").sort("user", "timestamp")
    moment = pl.col("timestamp").dt
    minutes = moment.hour().cast(pl.UInt16) * 60 + moment.minute()
    calendar = log.select(
        weekday=(moment.weekday() - 1).cast(pl.UInt8),
        slot=(minutes // SLOT_MINUTES).cast(pl.UInt8),
        seconds=moment.epoch("s"),
    )
    seconds = calendar["seconds"].to_numpy()
    columns = {name: calendar[name].to_numpy() for name in ("weekday", "slot")}
    columns["split"] = _split(seconds)
    columns["time"] = (seconds - seconds.min()).astype(np.uint32)
    sizes = log.group_by("user").len().sort("user")["len"].to_numpy()
    columns["offsets"] = np.concatenate([[0], sizes.cumsum()])
    train = log.filter(pl.Series(columns["split"]) == 0)

    for field in FIELDS:
        counts = (
            train.group_by(field)
            .len()
            .sort("len", field, descending=[True, False])
            .with_row_index("id", 2)
        )

        ids = log[field].replace_strict(counts[field], counts["id"], default=1)
        columns[field] = _small(ids.to_numpy(), len(counts) + 2)
        counts.write_parquet(out / f"{field}.parquet")

    _write(columns, out)


PROGRAMS: dict[str, Callable[[Path, Path, int], None]] = {
    "behavegpt": run_behavegpt,
    "polars": run_polars,
    "pandas": run_pandas,
}


def _split(seconds: np.ndarray) -> np.ndarray:
    """0, 1, 2 (N,) for training, validation and test."""
    import numpy as np

    ranks = [int(end * len(seconds)) for end in ENDS]
    first, second = np.partition(seconds, ranks)[ranks]
    return (seconds >= first).astype(np.uint8) + (seconds >= second)


def _small(ids: np.ndarray, size: int) -> np.ndarray:
    return ids.astype("uint8" if size <= 1 << 8 else "uint16" if size <= 1 << 16 else "uint32")


def _write(columns: dict[str, np.ndarray], out: Path) -> None:
    import numpy as np

    (out / "columns").mkdir()
    for name, column in columns.items():
        np.save(out / "columns" / f"{name}.npy", column)


def generate_log(path: Path, events: int) -> None:
    """Write the events, users mixed within each row group; through polars for CSV."""
    from behavegpt.datasets.synthetic import generate

    parquet = path.with_suffix(".parquet")
    generate(parquet, events, seed=0, by_time=True)

    if path.suffix == ".csv":
        import polars as pl

        pl.scan_parquet(parquet).sink_csv(path)


def compare(folders: list[Path]) -> dict[str, float]:
    """Share of equal entries in each column, against the first folder."""
    import numpy as np

    shares: dict[str, float] = {}
    for file in sorted((folders[0] / "columns").glob("*.npy")):
        ours = np.load(file)
        for folder in folders[1:]:
            theirs = np.load(folder / "columns" / file.name)
            equal = (ours == theirs).mean() if len(ours) == len(theirs) else 0.0
            shares[file.stem] = min(float(equal), shares.get(file.stem, 1.0))

    return shares


def child(arguments: list[str], threads: int, cache: Path) -> dict[str, float]:
    """Run this file in a fresh process on `threads` cores: its CPU seconds (user + system), wall
    seconds, peak MiB."""
    limits = (
        "OMP_NUM_THREADS",
        "POLARS_MAX_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )

    environment = (
        os.environ | dict.fromkeys(limits, str(threads)) | {"PYTHONPYCACHEPREFIX": str(cache)}
    )
    command = [sys.executable, __file__, "--threads", str(threads), *arguments]
    return measured(command, environment=with_bytecode(environment))


def run_once(name: str, logs: Path, work: Path, threads: int, cache: Path) -> dict[str, float]:
    """One measured run of a program into a fresh folder WORK/NAME."""
    out = work / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return child(["--program", name, "--logs", str(logs), "--out", str(out)], threads, cache)


def measure(args: argparse.Namespace, size: int, work: Path) -> dict[str, Any]:
    """All programs in turn on `size` events, `repeats` times at each number of threads, and the
    comparison of what they wrote."""
    cache = work / "bytecode"
    logs = work / f"events_{size}.{args.format}"
    few = work / f"events_1000.{args.format}"
    for path in (logs, few):
        if not path.exists():
            events = path.stem.rpartition("_")[2]
            child(["--program", "generate", "--logs", str(path), "--events", events], 1, cache)

    for name in args.programs:
        run_once(name, few, work, 1, cache)  # fills the bytecode cache

    runs = []
    for threads in args.threads:
        for repeat in range(args.repeats):
            for name in args.programs:
                figures = run_once(name, logs, work, threads, cache)
                run = {"events": size, "program": name, "threads": threads, "repeat": repeat}
                runs.append(run | figures)
                shown = "  ".join(f"{figure} {value:.1f}" for figure, value in figures.items())
                print(f"{name:10} {threads} threads: {shown}", flush=True)

    folders = [str(work / name) for name in args.programs]
    subprocess.run(
        [sys.executable, __file__, "--program", "compare", "--out", *folders], check=True
    )
    return {"runs": runs, "equal": json.loads((work / args.programs[0] / "equal.json").read_text())}


def table(runs: list[dict[str, Any]], against: str = "pandas") -> list[dict[str, Any]]:
    """Best CPU time and smallest peak of each program, and the ratios to `against` at the same
    number of threads."""
    best: dict[tuple[int, int, str], dict[str, float]] = {}
    for run in runs:
        low = best.setdefault((run["events"], run["threads"], run["program"]), {})
        for figure in ("cpu_s", "wall_s", "peak_mib"):
            low[figure] = min(run[figure], low.get(figure, run[figure]))

    rows = []
    for (events, threads, program), low in best.items():
        other = best.get((events, threads, against), low)
        ratios = {f"{figure}_ratio": low[figure] / other[figure] for figure in low}
        rows.append({"events": events, "threads": threads, "program": program, **low, **ratios})

    return rows


def report(rows: list[dict[str, Any]], equal: dict[str, float]) -> None:
    """Print the table, the ratios to pandas in brackets."""
    print(
        f"\n{'events':>11}  {'threads':>7}  {'program':10}  {'CPU s':>16}  {'wall s':>16}  "
        f"{'peak MiB':>18}   (ratio to pandas)"
    )
    for row in rows:
        cells = (
            f"{row[f]:9.1f} ({row[f'{f}_ratio']:.2f})" for f in ("cpu_s", "wall_s", "peak_mib")
        )
        print(
            f"{row['events']:>11,}  {row['threads']:>7}  {row['program']:10}  "
            + "  ".join(f"{cell:>16}" for cell in cells)
        )

    print("equal entries: " + ", ".join(f"{name} {share:.6f}" for name, share in equal.items()))


def main() -> None:
    """Measure, or be the child that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument(
        "--work",
        type=Path,
        help="folder for the log and the outputs, kept (default: a temporary one)",
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--program", help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        return be_child(args)

    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        measured_sizes = [measure(args, size, work) for size in args.events]

    runs = [run for found in measured_sizes for run in found["runs"]]
    equal = measured_sizes[-1]["equal"]
    rows = table(runs)
    report(rows, equal)
    packages = ("duckdb", "numpy", "pandas", "polars", "pyarrow")
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    versions = {name: importlib.metadata.version(name) for name in packages}
    facts = {"events": args.events, "format": args.format, "machine": machine, "versions": versions}
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(
        json.dumps({**facts, "table": rows, "runs": runs, "equal": equal}, indent=1) + "\n"
    )

    return None


def be_child(args: argparse.Namespace) -> None:
    """One measured program, or the making or comparing of files around them."""
    if args.program == "generate":
        generate_log(args.logs, args.events[0])
    elif args.program == "compare":
        (args.out[0] / "equal.json").write_text(json.dumps(compare(args.out)))
    else:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads[0]])
        PROGRAMS[args.program](args.logs, args.out[0], args.threads[0])


if __name__ == "__main__":
    main()
