"""The demo's log: purchases of a British gift shop, Online Retail (UCI, CC BY 4.0); see README.md
in this folder."""

from __future__ import annotations

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
