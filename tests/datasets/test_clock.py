"""Ticks and gaps of a log, against the same worked out event by event with pandas; and the
challenge's event files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.data.database import connect
from behavegpt.data.schema import EventSchema, read_schema
from behavegpt.datasets.clock import TICK, add_clock
from behavegpt.datasets.converters import convert
from behavegpt.ingest.prepare import prepare

SCHEMA = EventSchema(user="who", time="at", event="what", behavior="class", extra=("place",))


def clocked(log: pd.DataFrame, folder: Path, days: float) -> pd.DataFrame:
    log.to_parquet(folder / "log.parquet")
    with connect(folder) as con:
        schema = add_clock(con, folder / "log.parquet", folder / "out.parquet", SCHEMA, days)
    assert schema.extra == ("place", "gap")
    return pd.read_parquet(folder / "out.parquet")


@pytest.mark.parametrize("days", [7, 0.5])
def test_ticks_end_with_the_log_and_gaps_are_those_of_a_plain_loop(
    tmp_path: Path, days: float
) -> None:
    rng = np.random.default_rng(0)
    start = pd.Timestamp("2024-02-20")
    log = pd.DataFrame(
        {
            "who": rng.choice(["a", "b", "c"], 60),
            # with ties
            "at": start + pd.to_timedelta(rng.integers(0, 30 * 86400, 60) // 3000 * 3000, unit="s"),
            "what": rng.choice(["x", "y"], 60),
            "class": "k",
            "place": "p",
        }
    )
    log = pd.concat([log, log.iloc[:5].assign(what="z")], ignore_index=True)  # certain ties
    found = clocked(log, tmp_path, days)
    ticks = found[found["what"] == TICK]
    assert (ticks["class"] == TICK).all() and ticks["place"].isna().all()
    assert len(found) - len(ticks) == len(log)
    end, first = log["at"].max() + pd.Timedelta(seconds=1), log.groupby("who")["at"].min()
    for who, begin in first.items():
        wanted, moment = [], end
        while moment > begin:
            wanted.append(moment)
            moment = moment - pd.Timedelta(days=days)
        assert sorted(ticks.loc[ticks["who"] == who, "at"]) == sorted(wanted)
        own = found[found["who"] == who]
        for _, event in own.iterrows():
            earlier = own.loc[own["at"] < event["at"], "at"]
            if earlier.empty:
                assert pd.isna(event["gap"])
                continue
            seconds = (event["at"] - earlier.max()).total_seconds()
            assert event["gap"] == str(math.floor(2 * math.log2(1 + seconds)))


def shop(folder: Path, codes: object) -> Path:
    """A challenge's `input` folder below its properties."""
    (folder / "input").mkdir(parents=True)
    rows = {
        "client_id": [1, 2],
        "timestamp": pd.to_datetime(["2022-06-23 00:33:11", "2022-07-03 00:34:25"]),
    }
    for kind in ("product_buy", "add_to_cart", "remove_from_cart"):
        pd.DataFrame(rows | {"sku": [10, 11]}).to_parquet(folder / "input" / f"{kind}.parquet")
    pd.DataFrame(rows | {"url": [7, 8]}).to_parquet(folder / "input" / "page_visit.parquet")
    pd.DataFrame(rows | {"query": [codes, codes]}).to_parquet(
        folder / "input" / "search_query.parquet"
    )
    properties = {"sku": [10], "category": [5], "price": [42], "name": [codes]}
    pd.DataFrame(properties).to_parquet(folder / "product_properties.parquet")
    return folder / "input"


@pytest.mark.parametrize("codes", ["[  7 12\n 255]", [7, 12, 255]], ids=["text", "list"])
def test_the_challenge_input_becomes_one_stream_that_can_be_prepared(
    tmp_path: Path, codes: object
) -> None:
    convert("recsys2025", shop(tmp_path / "data", codes), tmp_path / "log.parquet", clock=7)
    log = pd.read_parquet(tmp_path / "log.parquet")
    buy = log[log["event"] == "product_buy:5"].iloc[0]
    assert (buy["item"], buy["sku"], buy["price"], buy["behavior"]) == (
        "10",
        "10",
        "42",
        "product_buy:5",
    )
    assert (
        buy[["code_00", "code_01", "code_02"]].tolist() == ["7", "12", "255"]
        and "code_03" not in log
    )
    visit = log[log["url"] == "8"].iloc[0]
    assert (visit["event"], visit["behavior"], visit["item"]) == ("page_visit", "page_visit:8", "8")
    assert visit[["category", "code_00"]].isna().all()
    assert log.loc[log["event"] == "search_query", "code_02"].tolist() == ["255", "255"]
    assert (log["event"] == "add_to_cart:unknown").sum() == 1  # sku 11 has no properties
    assert (log["event"] == TICK).sum() == 2 + 1
    schema = read_schema(tmp_path / "log.schema.yaml")
    assert schema.extra == ("item", "price", "gap")
    store = prepare(tmp_path / "log.parquet", tmp_path / "prepared", schema, split="time:1,0,0")
    assert (store.manifest.users, store.manifest.events) == (2, 13)
    ends = store.offsets[1:] - 1
    assert set(store.vocabulary["event"].decode(store.columns["event"][ends])) == {TICK}
