"""A small challenge directory after the split, with what is easily got wrong: ties, a new year,
absent items, id 0."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.profiles.events import PRODUCT

FIRST_DAY, DAYS = pd.Timestamp("2022-12-20"), 45
SKUS = np.arange(0, 24)  # 0 is a product like any other; 20 .. 23 have no properties


def make_input(path: Path, seed: int = 0, clients: int = 30, rows: int = 240) -> Path:
    """Events of the first `clients - 2` clients; the last two relevant ones have none. Minutes
    repeat."""
    rng = np.random.default_rng(seed)
    (path / "input").mkdir(parents=True)
    ids = np.sort(rng.choice(10_000, clients + 4, replace=False))
    # the last four are not relevant
    relevant, active = ids[:clients], np.r_[ids[: clients - 2], ids[clients:]]
    for event in EVENTS:
        minutes = rng.integers(0, DAYS * 24 * 60, rows) // 600 * 600
        table: dict[str, Any] = {
            "client_id": rng.choice(active, rows),
            "timestamp": FIRST_DAY + pd.to_timedelta(minutes, unit="min"),
        }
        if event in PRODUCT:
            table["sku"] = np.minimum(rng.zipf(1.4, rows) - 1, 23)
        elif event == "page_visit":
            table["url"] = np.minimum(rng.zipf(1.3, rows) - 1, 40)
        else:
            table["query"] = codes(rng, rows)
        pd.DataFrame(table).to_parquet(path / "input" / f"{event}.parquet", index=False)
    known = SKUS[:20]
    properties = {
        "sku": known,
        "category": known % 6,
        "price": known * 5 % 100,
        "name": codes(rng, len(known)),
    }
    pd.DataFrame(properties).to_parquet(path / "product_properties.parquet", index=False)
    np.save(path / "input" / "relevant_clients.npy", rng.permutation(relevant))
    return path


def codes(rng: np.random.Generator, rows: int, width: int = 3) -> list[str]:
    """Quantized texts as the organizers write them."""
    return [
        f"[{' '.join(f'{code:>3}' for code in line)}]" for line in rng.integers(0, 9, (rows, width))
    ]


def read_events(path: Path) -> pd.DataFrame:
    """All events in plain pandas, with the properties of their products: what the tests compare
    with."""
    frames = []
    for number, event in enumerate(EVENTS):
        frame = pd.read_parquet(path / "input" / f"{event}.parquet")
        frames.append(frame.assign(event=number))
    table = pd.concat(frames, ignore_index=True)
    return table.merge(pd.read_parquet(path / "product_properties.parquet"), on="sku", how="left")


def renamed_clients(path: Path, copy: Path, some: np.ndarray) -> Path:
    """A copy of the directory that has `some` clients alone, under numbers a million higher."""
    shutil.copytree(path, copy)
    for file in (copy / "input").glob("*.parquet"):
        table = pd.read_parquet(file)
        table[table["client_id"].isin(some)].assign(
            client_id=lambda t: t["client_id"] + 10**6
        ).to_parquet(file)
    np.save(copy / "input" / "relevant_clients.npy", some + 10**6)
    return copy


def later(path: Path, copy: Path, days: int) -> Path:
    """A copy of the directory where everything happened `days` later."""
    shutil.copytree(path, copy)
    for file in (copy / "input").glob("*.parquet"):
        table = pd.read_parquet(file)
        table.assign(timestamp=table["timestamp"] + pd.Timedelta(days=days)).to_parquet(file)
    return copy


def without_ties(path: Path, copy: Path) -> Path:
    """A copy of the directory where no two events share a moment."""
    shutil.copytree(path, copy)
    for number, event in enumerate(EVENTS):
        file = copy / "input" / f"{event}.parquet"
        table = pd.read_parquet(file)
        seconds = pd.to_timedelta(number * len(table) + np.arange(len(table)), unit="s")
        table.assign(timestamp=table["timestamp"] + seconds).to_parquet(file, index=False)
    return copy
