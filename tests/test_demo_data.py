"""The shipped log: every product has a family, the attribution is there, and the script makes the
same files."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt import demo
from behavegpt.demo import make_online_retail
from behavegpt.demo.make_online_retail import NOT_PRODUCTS, OTHER, OVERRIDES, family, read_rules

FOLDER = Path(demo.__file__).parent


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    return pq.read_table(demo.online_retail()).to_pandas()


@pytest.fixture(scope="module")
def products() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "product_families.csv", dtype=str, keep_default_na=False)


def test_schema_names_the_columns(log: pd.DataFrame) -> None:
    schema = demo.DEMO_SCHEMA
    columns = {schema.user, schema.time, *schema.label_columns.values(), schema.order}
    assert (
        columns == set(log.columns)
        and schema.tz == "Europe/London"
        and not schema.behavior_is_event
    )
    assert log.notna().all().all()
    types = pq.read_schema(demo.online_retail())
    assert (
        pa.types.is_timestamp(types.field("timestamp").type)
        and types.field("timestamp").type.tz is None
    )
    assert demo.online_retail().stat().st_size < 1_200_000


def test_every_product_has_the_family_of_the_table(
    log: pd.DataFrame, products: pd.DataFrame
) -> None:
    assert products["product"].is_unique
    table = products.set_index("product")["family"]
    assert set(log["event"]) == set(table.index)
    assert (log["event"].map(table) == log["family"]).all()
    assert not log["event"].isin(NOT_PRODUCTS).any()


def test_families_are_about_forty_with_a_long_tail(log: pd.DataFrame) -> None:
    share = log["family"].value_counts(normalize=True)
    assert 38 <= len(share) <= 48 and share.index[0] == "bag"
    assert share.iloc[0] > 0.08 and share.iloc[-1] < 0.005 and share.iloc[:10].sum() > 0.4
    assert share.get(OTHER, 0) < 0.08
    known = {name for name, _ in read_rules(FOLDER / "family_rules.csv")} | {OTHER}
    assert set(share.index) <= known and set(OVERRIDES.values()) <= known


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("WHITE HANGING HEART T-LIGHT HOLDER", "light holder"),
        ("SET/6 PINK BUTTERFLY T-LIGHTS", "candle"),
        ("LUNCH BAG RED RETROSPOT", "bag"),
        ("SPACEBOY LUNCH BOX ", "lunch box"),
        ("CREAM HEART CARD HOLDER", "frame"),
        ("SPACEBOY BIRTHDAY CARD", "card"),
        ("PACK OF 72 RETROSPOT CAKE CASES", "bakeware"),
        ("REGENCY CAKESTAND 3 TIER", "cake stand"),
        ("SET OF 3 CAKE TINS PANTRY DESIGN ", "tin"),
        ("RED HARMONICA IN BOX ", "toy and game"),
        ("OFFICE MUG WARMER POLKADOT", "hot water bottle"),
        ("SAVE THE PLANET MUG", "mug"),
        ("GIN + TONIC DIET METAL SIGN", "sign"),
        ("POPPY'S PLAYHOUSE KITCHEN", "toy and game"),
        ("CHRISTMAS LIGHTS 10 REINDEER", "lamp"),
        ("SOMETHING ELSE ENTIRELY", OTHER),
    ],
)
def test_head_nouns(description: str, expected: str) -> None:
    assert family("?", description, read_rules(FOLDER / "family_rules.csv")) == expected


def test_attribution() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for part in (
        "Daqing Chen",
        "UCI Machine Learning Repository",
        "10.24432/C5BW33",
        "CC BY 4.0",
        "What was changed",
    ):
        assert part in text
    for code in NOT_PRODUCTS:
        assert f"`{code}`" in text
    log = pq.read_table(demo.online_retail(), columns=["user_id", "family"]).to_pandas()
    assert f"{len(log):,} purchases of {log['user_id'].nunique():,} customers" in text
    assert f"There are {log['family'].nunique()}" in text


def test_order_of_the_lines(log: pd.DataFrame) -> None:
    assert (log["line"] == range(len(log))).all()
    assert log[["user_id", "timestamp"]].equals(
        log[["user_id", "timestamp"]].sort_values(["user_id", "timestamp"])
    )
    # the minute alone does not order an invoice
    assert log.duplicated(["user_id", "timestamp"]).mean() > 0.9


def test_the_script_makes_these_files(
    tmp_path: Path, shared_data: Callable[[str], Path], log: pd.DataFrame, products: pd.DataFrame
) -> None:
    source = shared_data("online_retail.parquet")
    make_online_retail.main([str(source), "--out", str(tmp_path)])
    assert pq.read_table(tmp_path / "online_retail.parquet").to_pandas().equals(log)
    assert (tmp_path / "product_families.csv").read_bytes() == (
        FOLDER / "product_families.csv"
    ).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "online_retail.parquet",
        "product_families.csv",
    ]

    # the same with pandas: lines of an invoice keep the order of the source
    raw = pd.read_parquet(source)
    raw = raw[(raw["behavior"] == "buy") & ~raw["event"].isin(NOT_PRODUCTS)]
    raw = raw.sort_values(["user_id", "timestamp", "invoice"], kind="stable")
    for column in ("user_id", "location", "event"):
        assert (raw[column].to_numpy() == log[column].to_numpy()).all()
    with (FOLDER / "product_families.csv").open(encoding="utf-8", newline="") as file:
        described = {row["product"]: row["description"] for row in csv.DictReader(file)}
    assert (raw["event"].map(described) == raw["description"].str.strip()).all()
