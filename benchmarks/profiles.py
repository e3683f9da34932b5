"""Members of a profile on generated clients: seconds and peak memory of each, bytes per event of
the sequence store.

    python benchmarks/profiles.py --clients 1000000 --events 40 --work ../bench --threads 2 [--only
    handcrafted ...]

Writes a challenge directory of random events (a tenth are purchases, carts and removals, a fifth
searches, the rest page visits; items by Zipf's law), then builds the sequence store of six fields
and the members that need no network, each in a process of its own. The table goes to
benchmarks/results/profiles.json, job by job. Goals: at most 12 bytes an event, and the handcrafted
features of a million clients in two minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from behavegpt.io import write_json

RESULT = Path(__file__).parent / "results" / "profiles.json"
SHARES = {
    "product_buy": 0.02,
    "add_to_cart": 0.06,
    "remove_from_cart": 0.02,
    "page_visit": 0.7,
    "search_query": 0.2,
}
DAYS, SKUS, URLS, CATEGORIES = 140, 1_000_000, 3_000_000, 6_000
IALS = ["ials", "item=category", "weights={product_buy: 3, add_to_cart: 1}"]
JOBS = {
    "sequence store, 6 fields, last 126": [
        "store",
        "fields=[week,event,category,price,sku:5000,url:5000]",
        "last=126",
    ],
    "sequence store, name codes, last 64": [
        "store",
        "fields=[name]",
        "last=64",
        "events=[product_buy,add_to_cart]",
    ],
    "handcrafted": ["handcrafted"],
    "ials categories": IALS,
    "ials visits": ["ials", "item=url", "weights={page_visit: 1}"],
}


def generate(path: Path, clients: int, per_client: int) -> None:
    """Write the directory; `per_client` is the mean number of events, spread exponentially."""
    import duckdb
    import numpy as np

    (path / "input").mkdir(parents=True)
    con = duckdb.connect()
    con.execute("SET preserve_insertion_order = false; SELECT setseed(0.5)")
    zipf = "least(floor(pow({n}, random())) - 1, {n} - 1)::BIGINT"  # P(item) ~ 1 / item
    codes = "replace([(hash(r + k) % 256)::INT for k in range(16)]::VARCHAR, ',', '')"
    con.execute(f"""COPY (
        SELECT r AS sku, (hash(r) % {CATEGORIES})::BIGINT AS category,
            (hash(r + 7) % 100)::BIGINT AS price, {codes} AS name
        FROM range({SKUS}) t(r)) TO '{path}/product_properties.parquet'""")
    con.execute(
        "CREATE TABLE clients AS SELECT i, -ln(random()) AS rate FROM range(?) t(i)", [clients]
    )
    items = {"page_visit": f"{zipf.format(n=URLS)} AS url", "search_query": f"{codes} AS query"}

    for event, share in SHARES.items():
        item = items.get(event, f"{zipf.format(n=SKUS)} AS sku")
        moment = f"TIMESTAMP '2022-06-23' + to_seconds((random() * {DAYS * 86400})::BIGINT)"
        con.execute(f"""COPY (
            SELECT 30 * i + 1 AS client_id, {moment} AS timestamp, {item}
            FROM (SELECT i, (random() * 1e9)::BIGINT AS r,
                  unnest(range((rate * {share * per_client} + random())::BIGINT)) FROM clients))
            TO '{path}/input/{event}.parquet'""")

    np.save(path / "input" / "relevant_clients.npy", 30 * np.arange(clients, dtype=np.int64) + 1)


def work(path: Path, threads: int, out: Path, kind: str, *overrides: str) -> dict[str, Any]:
    """One job in this process; returns its figures (both `fit` and `embed` of a member)."""
    from behavegpt.config import read_settings
    from behavegpt.profiles.cache import peak_memory, reset_peak
    from behavegpt.profiles.events import DataSettings, open_events
    from behavegpt.profiles.fields import SequenceSettings
    from behavegpt.profiles.members import Context
    from behavegpt.profiles.settings import KINDS

    context = Context(
        open_events(DataSettings(path=str(path), memory_gb=4, threads=threads)), out / "cache"
    )
    reset_peak()
    started, cpu = time.perf_counter(), time.process_time()

    if kind == "store":
        settings = read_settings(SequenceSettings, None, overrides)
        store = context.sequences(settings, context.vocabularies(settings))
        size = (
            sum(column.nbytes for column in store.columns.values())
            + store.offsets.nbytes
            + store.clients.nbytes
        )
        figures = {
            "rows": int(store.offsets[-1]),
            "bytes_per_row": round(size / store.offsets[-1], 2),
        }
    else:
        block = read_settings(KINDS[kind].settings, None, [f"kind={kind}", *overrides])
        out.mkdir(parents=True, exist_ok=True)
        KINDS[kind].fit(context, block, out)
        embeddings = KINDS[kind].embed(context, block, out)
        figures = {"rows": len(embeddings.vectors), "dimensions": embeddings.vectors.shape[1]}

    peak = peak_memory()
    spent = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    return (
        figures
        | {name: round(value, 1) for name, value in spent.items()}
        | {"peak_mb": peak and round(peak / 1e6)}
    )


def main() -> None:
    """Generate, run every job in a fresh process, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=40, help="mean per client")
    parser.add_argument("--work", type=Path, default=Path("../bench"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=", ".join(JOBS)
    )
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.work / f"challenge-{arguments.clients}-{arguments.events}"

    if arguments.job:
        print(
            json.dumps(
                work(path, arguments.threads, path / "out" / str(os.getpid()), *arguments.job)
            )
        )
        return

    if not path.exists():
        generate(path, arguments.clients, arguments.events)

    size = {
        "clients": arguments.clients,
        "events_per_client": arguments.events,
        "threads": arguments.threads,
    }
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    results: dict[str, Any] = size | {
        "jobs": known["jobs"] if size.items() <= known.items() else {}
    }

    for name in arguments.only:
        command = [sys.executable, __file__, *sys.argv[1:], "--job", *JOBS[name]]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)

        results["jobs"][name] = json.loads(done.stdout.splitlines()[-1]) | {
            "load": round(os.getloadavg()[0], 1)
        }
        print(name, results["jobs"][name], flush=True)
        write_json(RESULT, results)


if __name__ == "__main__":
    main()
