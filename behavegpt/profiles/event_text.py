"""Events as text: one line for each event, the newest of each client, in an Arrow file sorted by
client.

layout lines   event type: add to cart; timestamp: 2022-08-01 10:33; item: 12; category: 3;
               price: 40; name: 12 200 7;
layout table   2022-08-01 10:33 | 12 200 7                 under the header timestamp | query

What an event does not have is left out of its line, or an empty cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa

from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.profiles.events import among, columns

_KINDS = ", ".join(f"'{event.replace('_', ' ')}'" for event in EVENTS)
PARTS = {  # field -> its name in the text, SQL of its value
    "event": ("event type", f"list_value({_KINDS})[e.event + 1]"),
    "time": ("timestamp", "strftime(e.moment, '%Y-%m-%d %H:%M')"),
    "sku": ("item", "e.sku::VARCHAR"),
    "url": ("url", "e.url::VARCHAR"),
    "category": ("category", "p.category::VARCHAR"),
    "price": ("price", "p.price::VARCHAR"),
    "name": ("name", "array_to_string(p.name, ' ')"),
    "query": ("query", "array_to_string(e.query, ' ')"),
}
Layout = Literal["lines", "table"]
BATCH = 2**16  # lines fetched at a time


def write_lines(
    con: duckdb.DuckDBPyConnection,
    fields: Sequence[str],
    events: Sequence[EventName],
    layout: Layout,
    last: int,
    repeats: bool,
    path: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Write the last `last` lines of each client of the view `clients`, the newest first; without
    `repeats`, of events that are alike but for their time the newest alone.

    Returns the clients with an event (U,) int64 and offsets (U + 1,) of their lines. Equal times
    are sorted by event type and text, so the order of rows in a file never matters.
    """
    # events that differ in nothing but the time have the same timeless text
    timeless = _line([field for field in fields if field != "time"], layout)
    written = f"""
        SELECT w.row, e.event, e.moment, {_line(fields, layout)} AS line, {timeless} AS timeless
        FROM events e JOIN clients w ON w.client = e.client LEFT JOIN properties p ON p.sku = e.sku
        WHERE e.event IN ({among(events)})"""
    latest = "SELECT row, event, max(moment) AS moment, arg_max(line, moment) AS line"
    lines = written if repeats else f"{latest} FROM ({written}) GROUP BY row, event, timeless"

    newest = "moment DESC, event DESC, line DESC"
    query = f"""
        SELECT row, line FROM ({lines})
        QUALIFY row_number() OVER (PARTITION BY row ORDER BY {newest}) <= {last}
        ORDER BY row, {newest}"""

    counts = np.zeros(int(columns(con, "SELECT count(*) AS n FROM clients")["n"][0]), np.int64)

    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, pa.schema([("line", pa.string())])) as writer,
    ):
        for batch in con.sql(query).to_arrow_reader(BATCH):
            counts += np.bincount(batch.column("row").to_numpy(), minlength=len(counts))
            writer.write_batch(pa.record_batch([batch.column("line")], names=["line"]))

    clients = columns(con, "SELECT client FROM clients ORDER BY row")["client"]
    present = counts > 0
    return clients[present], np.concatenate([[0], np.cumsum(counts[present])])


def open_lines(path: Path) -> pa.ChunkedArray:
    """The lines of all clients, mapped from disk."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("line")


def header(fields: Sequence[str], layout: Layout) -> str | None:
    """The first line of a table."""
    return " | ".join(PARTS[field][0] for field in fields) if layout == "table" else None


def _line(fields: Sequence[str], layout: Layout) -> str:
    """SQL of one event as text."""
    parts = [PARTS[field] for field in fields]
    if layout == "table":
        return "concat_ws(' | ', {})".format(
            ", ".join(f"coalesce({value}, '')" for _, value in parts)
        )

    return "concat_ws(' ', {})".format(
        ", ".join(f"'{name}: ' || {value} || ';'" for name, value in parts)
    )
