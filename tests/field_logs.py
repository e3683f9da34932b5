"""Logs of Online Retail with all kinds of fields, which several tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from behavegpt.demo.make_online_retail import events, families, purchases

COLUMNS = [
    "--user",
    "user_id",
    "--time",
    "timestamp",
    "--event",
    "event",
    "--location",
    "location",
    "--behavior",
    "family",
    "--tz",
    "Europe/London",
]
AT = "2011-10-10"


def write_logs(folder: Path, shared_data: Callable[[str], Path]) -> Path:
    """The log until November, what came after, users and labels, as files of a folder."""
    source = pq.read_table(shared_data("online_retail.parquet"))
    source = source.filter(pc.equal(pc.bit_wise_and(source["user_id"], 31), 0))
    pq.write_table(source, folder / "source.parquet")
    lines = purchases(folder / "source.parquet")
    log = events(lines, families(lines)).drop_columns(["line"]).to_pandas()
    log["invoice"] = lines["invoice"].to_numpy()
    log["quantity"] = source["quantity"].to_numpy()[lines["row"].to_numpy()]
    log[log["timestamp"] < "2011-11-15"].to_parquet(folder / "log.parquet", index=False)
    log[log["timestamp"] >= "2011-11-15"].to_parquet(folder / "new.parquet", index=False)

    users = log.groupby("user_id").agg(country=("location", "first"), spend=("quantity", "sum"))
    users.iloc[3:].reset_index().to_csv(folder / "users.csv", index=False)
    past = log[log["timestamp"] < AT].groupby("user_id").size()
    labels = pd.DataFrame({"user_id": past.index, "busy": past.to_numpy() > past.median()})
    labels.to_csv(folder / "labels.csv", index=False)
    return folder


def few_users(work: Path) -> pd.DataFrame:
    """The log of a few users."""
    log = pd.read_parquet(work / "log.parquet")
    return log[log["user_id"].isin(log["user_id"].unique()[:12])].reset_index(drop=True)


def users(work: Path) -> pd.DataFrame:
    """The table of users."""
    return pd.read_csv(work / "users.csv")
