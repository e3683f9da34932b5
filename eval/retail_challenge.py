"""Online Retail (real purchases and cancellations) as a directory in the challenge's format, already split.

    python eval/retail_challenge.py LOG.parquet OUT
    behavegpt profile configs/profiles/small.yaml data.path=OUT out=runs/retail --probe

LOG has user_id, timestamp, event (stock code), behavior (buy or cancel), unit_price and description, as
https://archive.ics.uci.edu/dataset/352 gives them (CC BY 4.0). A purchase becomes product_buy, a cancellation
remove_from_cart; the category is the first three characters of the stock code, the price bucket one of 20 quantiles of
the product's median price, and the name the words of its description as codes. The last two windows of 28 days are the
targets, everything before them is the input; labels are the 60 categories and 100 products bought most before them.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

WINDOW = pd.Timedelta(days=28)
CATEGORIES, SKUS, PRICES = 60, 100, 20


def convert(log: Path, out: Path) -> dict[str, int]:
    """Write the directory; returns how many clients, and how many of them buy in each window."""
    events = pd.read_parquet(log, columns=["user_id", "timestamp", "event", "behavior", "unit_price", "description"])
    events = events.rename(columns={"user_id": "client_id"}).astype(
        {"client_id": "int64", "timestamp": "datetime64[ns]"}
    )
    codes, names = pd.factorize(events["event"], sort=True)
    groups, _ = pd.factorize(names.str[:3], sort=True)
    events["sku"] = codes.astype(np.int64)
    properties = _properties(events, groups)
    end = events["timestamp"].max()
    train, validation = end - 2 * WINDOW, end - WINDOW
    bought = events["behavior"] == "buy"
    history = events["timestamp"] < train
    for folder in ("input", "target"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    properties.to_parquet(out / "product_properties.parquet", index=False)
    kept = ["client_id", "timestamp", "sku"]
    events.loc[history & bought, kept].to_parquet(out / "input" / "product_buy.parquet", index=False)
    events.loc[history & ~bought, kept].to_parquet(out / "input" / "remove_from_cart.parquet", index=False)
    clients = np.sort(events.loc[history, "client_id"].unique())
    np.save(out / "input" / "relevant_clients.npy", clients)
    np.save(out / "target" / "active_clients.npy", clients)
    windows = {"train": (train, validation), "validation": (validation, end + pd.Timedelta(seconds=1))}
    facts = {"clients": len(clients)}
    for name, (start, stop) in windows.items():
        inside = bought & (events["timestamp"] >= start) & (events["timestamp"] < stop)
        target = events.loc[inside, kept].merge(properties, on="sku")
        target.to_parquet(out / "target" / f"{name}_target.parquet", index=False)
        facts[f"{name}_buyers"] = len(set(target["client_id"]) & set(clients))
    past = events.loc[history & bought, ["sku"]].merge(properties, on="sku")
    for column, top in (("category", CATEGORIES), ("sku", SKUS), ("price", PRICES)):
        counts = past[column].value_counts().sort_index().sort_values(ascending=False, kind="stable").head(top)
        np.save(out / "target" / f"propensity_{column}.npy", counts.index.to_numpy(np.int64))
        np.save(out / "target" / f"popularity_propensity_{column}.npy", counts.to_numpy(np.float64))
    return facts


def _properties(events: pd.DataFrame, groups: np.ndarray) -> pd.DataFrame:
    """One line for each product: sku, category, price bucket, name codes."""
    products = events.groupby("sku").agg(price=("unit_price", "median"), text=("description", "first"))
    ranks = products["price"].rank(method="average", pct=True)
    words = products["text"].fillna("").str.upper().str.split()
    lines = [f"[{' '.join(str(zlib.crc32(word.encode()) % 256) for word in line)}]" for line in words]
    return pd.DataFrame(
        {
            "sku": products.index.to_numpy(np.int64),
            "category": groups[products.index].astype(np.int64),
            "price": np.ceil(ranks * PRICES).to_numpy(np.int64) - 1,
            "name": lines,
        },
        index=range(len(products)),
    )


def main() -> None:
    """Convert and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(convert(arguments.log, arguments.out))


if __name__ == "__main__":
    main()
