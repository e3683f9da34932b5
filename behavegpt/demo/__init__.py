"""The demo's log: purchases of a British gift shop, Online Retail (UCI, CC BY 4.0); see README.md
in this folder."""

from __future__ import annotations

import csv
from pathlib import Path

from behavegpt.data.schema import EventSchema

DEMO_SCHEMA = EventSchema(
    user="user_id",
    time="timestamp",
    event="event",
    location="location",
    behavior="family",
    order="line",
    tz="Europe/London",
)


def online_retail() -> Path:
    """The parquet file of the demo: columns user_id, timestamp, location, event, family, line; see
    `DEMO_SCHEMA`."""
    return Path(__file__).parent / "online_retail.parquet"


def product_names() -> dict[str, str]:
    """Stock code -> the shop's description of the product."""
    with (Path(__file__).parent / "product_families.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        return {row["product"]: row["description"] for row in csv.DictReader(file)}
