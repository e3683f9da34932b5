"""Split, targets and validator of the challenge on a generated data directory: CPU seconds, wall
seconds, peak memory.

    python benchmarks/challenge.py --events 20000000 --clients 1000000 --work ../bench --threads 1 2

The directory has the challenge's layout and the event shares of a shop; all clients are relevant.
Each command is a fresh process, imports included. Targets are also computed one client after the
other by filtering a table, on a sample, which is what they cost when computed row by row. Same
seed, same bytes. Results: benchmarks/results/challenge.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import measured

RESULT = Path(__file__).parent / "results" / "challenge.json"
SHARES = {
    "page_visit": 0.664,
    "search_query": 0.074,
    "add_to_cart": 0.164,
    "remove_from_cart": 0.036,
    "product_buy": 0.062,
}
SKUS, CATEGORIES, QUERIES, DAYS = 200_000, 2_000, 50_000, 140
SAMPLE = 300  # clients computed one by one
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL}
PASSES = 6  # the organizers compute every target in 3 epochs, for training and validation


def generate(folder: Path, events: int, clients: int, seed: int) -> None:
    """Write a challenge directory; ids and products are hashes of the row number: nothing is kept
    in memory."""
    import duckdb

    for name in ("input", "target"):
        (folder / name).mkdir(parents=True)

    con = duckdb.connect()
    con.execute("SET threads = 2")

    def draw(salt: str, size: int, power: float = 1.0) -> str:
        uniform = f"(hash(i, {seed}, '{salt}') % 1000003) / 1000003.0"
        return f"floor({size} * pow({uniform}, {power}))::BIGINT"

    codes = (
        "'[' || array_to_string([lpad((hash(i, k, {salt}) % 256)::VARCHAR, 3, ' ') for k in "
        "range(16)], ' ') || ']'"
    )
    con.execute(
        f"CREATE TABLE queries AS SELECT i, {codes.format(salt=1)} AS query FROM range({QUERIES}) "
        "r(i)"
    )
    properties = f"""SELECT i AS sku, {draw("category", CATEGORIES, 2)} AS category,
        {draw("price", 100)} AS price, {codes.format(salt=2)} AS name FROM range({SKUS}) r(i)"""
    con.execute(f"COPY ({properties}) TO '{folder / 'product_properties.parquet'}'")
    values = {"page_visit": f"{draw('url', 500_000, 3)} AS url", "search_query": "query"}

    for event, share in SHARES.items():
        rows = int(events * share)
        moment = f"TIMESTAMP '2022-06-23' + to_seconds(i * {DAYS * 86_400} // {rows})"
        text = f"strftime({moment}, '%Y-%m-%d %H:%M:%S') AS timestamp"
        columns = f"{draw('client' + event, clients, 1.5)} * 7 + 3 AS client_id, {text}"
        value = values.get(event, f"{draw('sku' + event, SKUS, 3)} AS sku")
        source = f"range({rows}) r(i)"

        if event == "search_query":
            source = (
                f"(SELECT r.i, query FROM {source} JOIN queries q ON q.i = hash(r.i) % {QUERIES})"
            )

        con.execute(f"COPY (SELECT {columns}, {value} FROM {source}) TO '{folder / event}.parquet'")

    _write_targets(con, folder, clients, seed)


def _write_targets(con: Any, folder: Path, clients: int, seed: int) -> None:
    """The relevant and the active clients, and the labels that the propensities are of."""
    import numpy as np

    rng = np.random.default_rng(seed)
    relevant = rng.permutation(clients) * 7 + 3
    np.save(folder / "input" / "relevant_clients.npy", relevant)
    buyers = con.execute(
        f"SELECT DISTINCT client_id FROM '{folder / 'product_buy.parquet'}'"
    ).fetchnumpy()
    np.save(
        folder / "target" / "active_clients.npy", relevant[np.isin(relevant, buyers["client_id"])]
    )

    top = {"category": "category", "sku": "sku", "price": "price", "new_sku": "sku"}
    for task, column in top.items():
        skip = 100 if task == "new_sku" else 0  # the hidden task has the next hundred
        labels = con.execute(f"""SELECT {column} AS label, count(*) AS n
            FROM '{folder / "product_buy.parquet"}'
            JOIN '{folder / "product_properties.parquet"}' USING (sku)
            GROUP BY 1 ORDER BY n DESC, 1 LIMIT 100 OFFSET {skip}""").fetchnumpy()
        np.save(folder / "target" / f"propensity_{task}.npy", labels["label"])
        np.save(
            folder / "target" / f"popularity_propensity_{task}.npy",
            np.divide(labels["n"], np.sum(labels["n"])),
        )


def write_entry(data: Path, entry: Path, dimensions: int) -> None:
    """A valid entry of random vectors with its entry.json, written in blocks."""
    import numpy as np

    from behavegpt.user_embeddings import seal

    entry.mkdir()
    clients = np.load(data / "input" / "relevant_clients.npy")
    np.save(entry / "client_ids.npy", clients)
    shape = (len(clients), dimensions)
    vectors = np.lib.format.open_memmap(entry / "embeddings.npy", "w+", np.float16, shape)
    rng = np.random.default_rng(0)

    for start in range(0, len(clients), 10_000):
        vectors[start : start + 10_000] = (
            rng.standard_normal((1, dimensions), np.float32)
            + rng.random((10_000, 1))[: len(clients) - start]
        )

    vectors.flush()
    seal(entry)


def row_by_row(data: Path, targets: Path) -> dict[str, float]:
    """CPU seconds a client takes when its rows are filtered out of the window, by task; checked
    against ours."""
    import numpy as np
    import pandas as pd

    window = pd.read_parquet(data / "target" / "train_target.parquet")
    clients = np.load(data / "input" / "relevant_clients.npy")
    rows = np.random.default_rng(0).choice(len(clients), SAMPLE, replace=False)
    columns = {
        "conversion": None,
        "propensity_category": "category",
        "propensity_sku": "sku",
        "propensity_price": "price",
    }

    seconds = {}
    for task, column in columns.items():
        ours = np.load(targets / f"{task}_train.npy", mmap_mode="r")
        labels = np.load(data / "target" / f"{task}.npy") if column else np.empty(0)
        start = time.process_time()

        for row in rows:
            mine = window[window["client_id"] == clients[row]]
            target = (
                np.isin(labels, mine[column].unique()) if column else np.array([len(mine) == 0])
            )
            assert np.array_equal(target, ours[row])

        seconds[task] = (time.process_time() - start) / SAMPLE

    return seconds


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Generate, then split and targets at each number of threads, then the validator."""
    data, targets, entry = work / "data", work / "targets", work / "entry"
    itself = [sys.executable, __file__, "--work", str(work)]
    itself += ["--events", str(args.events), "--clients", str(args.clients)]
    command = [sys.executable, "-m", "behavegpt.cli", "challenge"]
    if not data.exists():
        measured([*itself, "--step", "generate"], **QUIET)

    runs: dict[str, Any] = {}
    for threads in args.threads:
        split = [*command, "split", str(data), "--memory", args.memory, "--threads", str(threads)]
        runs[f"split, {threads} threads"] = measured(split, threads=threads, **QUIET)

    runs["targets, 6 tasks"] = measured(
        [*command, "targets", str(data), "--out", str(targets)], threads=1, **QUIET
    )
    measured([*itself, "--step", "row_by_row"], threads=1, **QUIET)
    slow = json.loads((work / "row_by_row.json").read_text())
    tasks = {
        name: measured(
            [*command, "targets", str(data), "--out", str(targets), "--tasks", name],
            threads=1,
            **QUIET,
        )
        for name in slow
    }
    # the organizers' cost: every client, in every pass
    ratios = {
        name: seconds * args.clients * PASSES / tasks[name]["cpu_s"]
        for name, seconds in slow.items()
    }
    shutil.rmtree(targets)
    measured([*itself, "--step", "entry", "--dimensions", str(args.dimensions)], **QUIET)
    runs["validate"] = measured(
        [*command, "validate", str(entry), "--data", str(data)], threads=1, **QUIET
    )
    size = (entry / "embeddings.npy").stat().st_size / 2**20
    shutil.rmtree(entry)

    return {
        "runs": runs,
        "row_by_row_s": slow,
        "targets_ratio": ratios,
        "targets_by_task": tasks,
        "entry_mib": size,
    }


def main() -> None:
    """Measure, or be the child that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument(
        "--dimensions", type=int, default=1024, help="of the entry that is validated"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument(
        "--work", type=Path, help="folder for the data, which is kept (default: a temporary one)"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument(
        "--step", choices=("generate", "row_by_row", "entry"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.step:
        return be_child(args)

    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures = measure(args, work)

    for name, run in figures["runs"].items():
        print(f"{name:20} " + "  ".join(f"{figure} {value:9.1f}" for figure, value in run.items()))

    for name, ratio in figures["targets_ratio"].items():
        print(f"{name}: {ratio:,.0f} times fewer CPU seconds than row by row in {PASSES} passes")

    facts = {
        "events": args.events,
        "clients": args.clients,
        "dimensions": args.dimensions,
        "memory": args.memory,
    }

    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(facts | {"cores": os.cpu_count()} | figures, indent=1) + "\n")
    return None


def be_child(args: argparse.Namespace) -> None:
    """One step of preparation, or the targets one client after the other."""
    data = args.work / "data"
    if args.step == "generate":
        generate(data, args.events, args.clients, seed=0)
    elif args.step == "entry":
        write_entry(data, args.work / "entry", args.dimensions)
    else:
        (args.work / "row_by_row.json").write_text(
            json.dumps(row_by_row(data, args.work / "targets"))
        )


if __name__ == "__main__":
    main()
