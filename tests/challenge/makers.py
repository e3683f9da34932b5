"""A small challenge directory made on the spot, and the organizers' rules for it in plain
pandas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from behavegpt.datasets.challenge_files import EVENTS, ITEMS

PEAK = """
import re, sys
from behavegpt.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""
SKUS, CATEGORIES, PRICES = np.arange(100, 160), np.arange(7), np.arange(100)


def make_directory(
    path: Path, seed: int = 0, clients: int = 60, last: str = "2022-11-09 23:33:24"
) -> Path:
    """Five event files, properties, clients and labels; the last purchase is at `last`, other
    events come later.

    Rows 5 to 8 lie one second before and at the beginning of the training and the validation
    window.
    """
    rng = np.random.default_rng(seed)
    ids = rng.choice(10_000, clients, replace=False)
    end = pd.Timestamp(last)
    midnight = (end - pd.Timedelta(days=27)).floor("D")
    for folder in ("input", "target"):
        (path / folder).mkdir(parents=True)
    for event, column in ITEMS.items():
        rows = 40 * clients if event == "page_visit" else 12 * clients
        seconds = rng.integers(-60 * 86_400, 0 if event == "product_buy" else 86_400, rows)
        moments = (end + pd.to_timedelta(seconds, unit="s")).floor("s")
        table = pd.DataFrame({"client_id": rng.choice(ids, rows), "timestamp": moments.astype(str)})
        edges = [midnight + pd.Timedelta(days=14 * k, seconds=s) for k in (0, 1) for s in (-1, 0)]
        table.loc[5:8, "timestamp"] = [str(edge) for edge in edges]
        if event == "product_buy":
            table.loc[rows // 2, "timestamp"] = last
        codes = pd.Series(
            [f"[{' '.join(map(str, row))}]" for row in rng.integers(0, 256, (rows, 16))]
        )
        table[column] = (
            codes
            if column == "query"
            else rng.choice(SKUS if column == "sku" else np.arange(500), rows)
        )
        table.to_parquet(path / f"{event}.parquet", index=False)
    properties: dict[str, Any] = {
        "sku": SKUS,
        "category": SKUS % len(CATEGORIES),
        "price": SKUS * 7 % len(PRICES),
    }
    pd.DataFrame(properties | {"name": ["[1 2 3]"] * len(SKUS)}).to_parquet(
        path / "product_properties.parquet"
    )
    np.save(path / "input" / "relevant_clients.npy", rng.permutation(ids)[: clients // 2])
    np.save(path / "target" / "active_clients.npy", rng.permutation(ids)[: clients // 3])
    for task, labels in {
        "category": CATEGORIES[:5],
        "sku": SKUS[::3],
        "new_sku": SKUS[1::9],
        "price": PRICES,
    }.items():
        np.save(path / "target" / f"propensity_{task}.npy", rng.permutation(labels))
        np.save(path / "target" / f"popularity_propensity_{task}.npy", rng.random(len(labels)))
    return path


def split_by_pandas(path: Path) -> dict[str, pd.DataFrame]:
    """What the specification says, as it says it: name of each file -> its rows."""
    raw = {event: pd.read_parquet(path / f"{event}.parquet") for event in EVENTS}
    for table in raw.values():
        table["timestamp"] = pd.to_datetime(table["timestamp"])
    end = raw["product_buy"]["timestamp"].max()
    train = (end - pd.Timedelta(days=27)).replace(hour=0, minute=0, second=0)
    valid = train + pd.Timedelta(days=14)
    result = {
        f"input/{event}.parquet": table[table["timestamp"] < train] for event, table in raw.items()
    }
    bought = raw["product_buy"]
    bought = bought[bought["timestamp"] >= train]
    joined = bought.join(
        pd.read_parquet(path / "product_properties.parquet").set_index("sku"), on="sku"
    )
    result["target/train_target.parquet"] = joined[joined["timestamp"] < valid]
    result["target/validation_target.parquet"] = joined[joined["timestamp"].between(valid, end)]
    return {name: table.reset_index(drop=True) for name, table in result.items()}


def peak_of_command(arguments: list[str]) -> int:
    """Peak resident memory in bytes of a command line that succeeds, in a process of its own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) * 1024
