"""Logs of baskets that several tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from behavegpt.data.schema import EventSchema
from behavegpt.demo.make_online_retail import events, families, purchases

SCHEMA = EventSchema(
    user="user_id",
    time="timestamp",
    event="event",
    location="location",
    behavior="family",
    group="invoice",
    tz="Europe/London",
)


def retail_log(shared_data: Callable[[str], Path], every: int = 15) -> pa.Table:
    """Purchases of Online Retail with family and invoice, of every `every`-th customer."""
    source = pq.read_table(shared_data("online_retail.parquet"))
    path = source.filter(pc.equal(pc.bit_wise_and(source["user_id"], every), 0))
    return _with_families(path)


def _with_families(table: pa.Table) -> pa.Table:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.parquet"
        pq.write_table(table, file)
        lines = purchases(file)
    log = events(lines, families(lines)).drop_columns(["line"])
    return log.append_column("invoice", lines["invoice"])


# two users; invoices 1 and 2 of `a` interleave, 3 begins in one day and ends in the next, and what
# has no invoice is a set where it shares the moment
SMALL = pa.table(
    {
        "user_id": ["a"] * 9 + ["b"] * 4,
        "timestamp": [
            *("2024-01-01 10:00", "2024-01-01 10:01", "2024-01-01 10:01", "2024-01-01 10:02"),
            *("2024-01-02 23:59", "2024-01-03 00:01"),
            *("2024-01-05 09:00", "2024-01-05 09:00", "2024-01-05 09:30"),
            *("2024-01-01 08:00", "2024-01-01 08:00", "2024-01-04 08:00", "2024-01-05 08:00"),
        ],
        "event": ["x", "y", "z", "x", "y", "y", "x", "z", "x", "x", "y", "z", "x"],
        "location": ["here"] * 13,
        "family": ["x", "y", "z", "x", "y", "y", "x", "z", "x", "x", "y", "z", "x"],
        "invoice": ["1", "2", "1", "2", "3", "3", None, None, None, "1", "1", "2", "3"],
    }
)
