"""The one place that reads a challenge directory: all event types as one DuckDB relation.

DIR/input/{product_buy,add_to_cart,remove_from_cart,page_visit,search_query}.parquet   the history
(any of them) DIR/input/relevant_clients.npy
whose vectors are asked for DIR/product_properties.parquet
sku, category, price, name
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from behavegpt.config import Settings
from behavegpt.data.database import connect, literal, reading
from behavegpt.errors import DataError
from behavegpt.io import temporary_folder
from behavegpt.paths import PathText
from behavegpt.user_embeddings import open_array

EventName = Literal["product_buy", "add_to_cart", "remove_from_cart", "page_visit", "search_query"]
EVENTS: tuple[EventName, ...] = (
    "product_buy",
    "add_to_cart",
    "remove_from_cart",
    "page_visit",
    "search_query",
)
PRODUCT: tuple[EventName, ...] = EVENTS[:3]
_ITEM = {"product_buy": "sku", "add_to_cart": "sku", "remove_from_cart": "sku", "page_visit": "url"}
_ITEM["search_query"] = "query"
_LATER_NAME = "embedding"  # what later releases call the codes `query` and `name`


class DataSettings(Settings):
    """Where the events are and whose vectors are asked for."""

    path: PathText = Field(description="challenge directory after `behavegpt challenge split`")
    clients: str = Field(
        "relevant", description="relevant, all (with an event), or a .npy file of int64 ids"
    )
    memory_gb: float = Field(2.0, gt=0, description="memory of the query engine; it spills beyond")
    threads: int | None = Field(
        None, ge=1, description="threads of the query engine; all cores by default"
    )


@dataclass(frozen=True)
class EventTables:
    """The history in `path` and the clients (U,) int64, ascending, whose vectors are asked for."""

    path: Path
    clients: np.ndarray
    memory: int = 2 * 2**30
    threads: int | None = None

    @property
    def files(self) -> dict[EventName, Path]:
        """The event types that are there."""
        paths = {event: self.path / "input" / f"{event}.parquet" for event in EVENTS}
        return {event: path for event, path in paths.items() if path.is_file()}

    @property
    def properties(self) -> Path:
        return self.path / "product_properties.parquet"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the clients and of every file that is read."""
        digest = hashlib.sha256(np.ascontiguousarray(self.clients).data)
        for path in (*self.files.values(), self.properties):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @contextmanager
    def connect(self, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with the views

        events      client BIGINT, moment TIMESTAMP, event UTINYINT (index into EVENTS), sku, url
        BIGINT,
                    query SMALLINT[]
        properties  sku, category, price BIGINT, name SMALLINT[]
        clients     client BIGINT, row UINTEGER: position in `self.clients`

        Errors of DuckDB become a DataError that names the broken file.
        """
        files = [*self.files.values(), self.properties]
        with reading(str(self.path), files), connect(spill, self.memory, self.threads) as con:
            # a sorted result must arrive in its order
            con.execute("SET preserve_insertion_order = true")
            selects = " UNION ALL ".join(_select(event, path) for event, path in self.files.items())
            con.execute(f"CREATE VIEW events AS {selects}")
            name = codes_sql(_column(self.properties, "name"))
            con.execute(
                "CREATE VIEW properties AS SELECT sku::BIGINT AS sku, category::BIGINT AS "
                "category, "
                f"price::BIGINT AS price, {name} AS name FROM "
                f"read_parquet({literal(self.properties)})"
            )
            register(
                con,
                "clients",
                client=self.clients,
                row=np.arange(len(self.clients), dtype=np.uint32),
            )
            yield con


def open_events(settings: DataSettings) -> EventTables:
    """Check a directory and choose its clients. Raises DataError naming the file and what is wrong
    with it."""
    path = Path(settings.path)
    tables = EventTables(
        path, np.zeros(0, np.int64), int(settings.memory_gb * 2**30), settings.threads
    )
    if not tables.files:
        raise DataError(
            f"{path}/input holds no event files; run `behavegpt challenge split {path}` first."
        )
    if not tables.properties.is_file():
        raise DataError(
            f"{tables.properties} is missing; it must have the columns sku, category, price and "
            "name."
        )
    for event, file in tables.files.items():
        for column in ("client_id", "timestamp", _ITEM[event]):
            _column(file, column)
    _check_properties(tables)
    clients = _chosen(tables, settings.clients)
    if not len(clients):
        raise DataError(
            f"{path}: no clients are asked for; check data.clients = {settings.clients!r}."
        )
    return EventTables(path, clients, tables.memory, tables.threads)


def columns(con: duckdb.DuckDBPyConnection, query: str) -> dict[str, np.ndarray]:
    """The result of a query that has no nulls, column by column (N,)."""
    return {name: np.asarray(column) for name, column in con.execute(query).fetchnumpy().items()}


def register(con: duckdb.DuckDBPyConnection, table: str, **columns: np.ndarray) -> None:
    """Make a table of arrays (N,)."""
    con.register("arrays", pa.table(columns))
    con.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM arrays")
    con.unregister("arrays")


def among(events: Sequence[EventName]) -> str:
    """SQL: the event types as numbers, for `event IN (...)`."""
    return ", ".join(str(EVENTS.index(event)) for event in events)


def codes_sql(column: tuple[str, pa.DataType]) -> str:
    """SQL: text "[ 1 22 ...]" or a list of numbers as SMALLINT[]; linear in the length of the
    text."""
    name, kind = column
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"CAST(regexp_extract_all({name}, '[0-9]+') AS SMALLINT[])"
    return f"CAST({name} AS SMALLINT[])"


def _select(event: EventName, path: Path) -> str:
    """SQL: the rows of one event file in the columns of the view `events`."""
    columns = {"sku": "NULL::BIGINT", "url": "NULL::BIGINT", "query": "NULL::SMALLINT[]"}
    found = _column(path, _ITEM[event])
    columns[_ITEM[event]] = codes_sql(found) if event == "search_query" else f"{found[0]}::BIGINT"
    chosen = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
    return (
        f"SELECT client_id::BIGINT AS client, timestamp::TIMESTAMP AS moment, "
        f"{EVENTS.index(event)}::UTINYINT AS event, {chosen} FROM read_parquet({literal(path)}) "
        "WHERE client_id IS NOT NULL AND timestamp IS NOT NULL"  # the split refuses such rows
    )


def _column(path: Path, name: str) -> tuple[str, pa.DataType]:
    """Name and type of a column; codes may have their later name. Raises DataError when it is
    missing."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no readable parquet file ({error}); write it again.") from None
    if name in ("query", "name") and name not in schema.names and _LATER_NAME in schema.names:
        name = _LATER_NAME
    if name not in schema.names:
        raise DataError(f"{path}: column {name!r} is missing; it has {', '.join(schema.names)}.")
    return name, schema.field(name).type


def _check_properties(tables: EventTables) -> None:
    """One line for each product: a second one would double its events."""
    file = tables.properties
    for name in ("sku", "category", "price", "name"):
        _column(file, name)
    query = (
        f"SELECT sku FROM read_parquet({literal(file)}) GROUP BY sku HAVING count(*) > 1 LIMIT 1"
    )
    with reading(str(file), [file]), temporary_folder() as work, connect(work) as con:
        twice = con.execute(query).fetchall()
    if twice:
        raise DataError(
            f"{file}: sku {twice[0][0]} has more than one line; keep one for each product."
        )


def _chosen(tables: EventTables, clients: str) -> np.ndarray:
    """The clients by name or file, ascending, each once (U,) int64."""
    if clients == "all":
        selects = " UNION ".join(
            f"SELECT client_id FROM read_parquet({literal(f)})" for f in tables.files.values()
        )
        with (
            reading(str(tables.path), list(tables.files.values())),
            temporary_folder() as work,
            connect(work) as con,
        ):
            return np.sort(columns(con, selects)["client_id"].astype(np.int64))
    path = (
        tables.path / "input" / "relevant_clients.npy" if clients == "relevant" else Path(clients)
    )
    ids = np.array(open_array(path))
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path}: holds {ids.dtype} of shape {ids.shape}; save a list of whole client ids."
        )
    return np.unique(ids.astype(np.int64))
