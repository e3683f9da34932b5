"""The input of a challenge directory as one DuckDB relation of all event types.

It needs product_properties.parquet and, in input/, relevant_clients.npy and any of the event files
(see datasets/challenge_files.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field

from behavegpt.config import PathText, Settings
from behavegpt.data.database import connect, literal, reading
from behavegpt.datasets.challenge_files import (
    EVENTS,
    ITEMS,
    PROPERTY_COLUMNS,
    ChallengeDirectory,
    EventName,
    check_products,
    read_columns,
    read_whole_numbers,
    stored_name,
)
from behavegpt.errors import DataError
from behavegpt.io import temporary_folder

PRODUCT: tuple[EventName, ...] = tuple(event for event in EVENTS if ITEMS[event] == "sku")


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
    """The history in `path` and the clients (U,) int64, ascending, whose vectors are asked for.

    `until` (epoch seconds) leaves out the events from that moment on.
    """

    path: Path
    clients: np.ndarray
    memory: int = 2 * 2**30
    threads: int | None = None
    until: int | None = None

    @property
    def files(self) -> dict[EventName, Path]:
        """The event types that are there."""
        paths = {event: ChallengeDirectory(self.path).input(event) for event in EVENTS}
        return {event: path for event, path in paths.items() if path.is_file()}

    @property
    def properties(self) -> Path:
        """Category, price and name of each product."""
        return ChallengeDirectory(self.path).properties

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the clients, of every file that is read, and of `until`."""
        digest = hashlib.sha256(np.ascontiguousarray(self.clients).data)
        # names and contents: a file that moves to another name is another input
        for path in (*self.files.values(), self.properties):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        if self.until is not None:
            digest.update(f"until {self.until}".encode())
        return digest.hexdigest()

    @cached_property
    def last(self) -> int:
        """The moment of the last event of all, epoch seconds."""
        with temporary_folder() as work, self.connect(work) as con:
            found = con.execute("SELECT epoch(max(moment))::BIGINT FROM events").fetchall()[0][0]
        if found is None:
            raise DataError(f"{self.path}/input: its files hold no events.")
        return int(found)

    @contextmanager
    def connect(self, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with the views

        events      client BIGINT, moment TIMESTAMP, event UTINYINT (index into EVENTS),
                    sku BIGINT, url BIGINT, query SMALLINT[]
        properties  sku BIGINT, category BIGINT, price BIGINT, name SMALLINT[]
        clients     client BIGINT, row UINTEGER: position in `self.clients`

        Errors of DuckDB become a DataError that names the broken file.
        """
        files = [*self.files.values(), self.properties]
        with reading(str(self.path), files), connect(spill, self.memory, self.threads) as con:
            # a sorted result must arrive in its order
            con.execute("SET preserve_insertion_order = true")
            # views, not tables: DuckDB reads of each file only what a query asks for
            selects = " UNION ALL ".join(_select(event, path) for event, path in self.files.items())

            # in microseconds
            end = None if self.until is None else f"make_timestamp({self.until * 10**6})"
            before = f" WHERE moment < {end}" if end else ""
            con.execute(f"CREATE VIEW events AS SELECT * FROM ({selects}){before}")
            name = codes_sql(_column(self.properties, "name"))
            con.execute(
                "CREATE VIEW properties AS SELECT sku::BIGINT AS sku, category::BIGINT AS category,"
                f" price::BIGINT AS price, {name} AS name FROM"
                f" read_parquet({literal(self.properties)})"
            )

            rows = np.arange(len(self.clients), dtype=np.uint32)
            register(con, "clients", client=self.clients, row=rows)
            yield con


def open_events(settings: DataSettings) -> EventTables:
    """Check a directory and choose its clients. Raises DataError naming the file and what is wrong
    with it."""
    path = Path(settings.path)
    # no clients yet: the tables are opened to read the ones with events
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

    # every column is looked up now, so a missing one is named before any work starts
    for event, file in tables.files.items():
        for column in ("client_id", "timestamp", ITEMS[event]):
            _column(file, column)

    for column in PROPERTY_COLUMNS:
        _column(tables.properties, column)

    with temporary_folder() as work, connect(work) as con:
        check_products(con, tables.properties)

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


def ask_everybody(
    con: duckdb.DuckDBPyConnection, events: Sequence[EventName] = EVENTS
) -> np.ndarray:
    """Make the view `clients` hold all with such an event; returns them, ascending (U,) int64."""
    query = f"SELECT DISTINCT client FROM events WHERE event IN ({among(events)}) ORDER BY client"
    clients = columns(con, query)["client"]
    register(con, "clients", client=clients, row=np.arange(len(clients), dtype=np.uint32))
    return clients


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
    # a column for each kind of item; an event has one of them, the others are null
    columns = {"sku": "NULL::BIGINT", "url": "NULL::BIGINT", "query": "NULL::SMALLINT[]"}
    stored = _column(path, ITEMS[event])
    columns[ITEMS[event]] = codes_sql(stored) if event == "search_query" else f"{stored[0]}::BIGINT"
    chosen = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())

    return (
        f"SELECT client_id::BIGINT AS client, timestamp::TIMESTAMP AS moment, "
        f"{EVENTS.index(event)}::UTINYINT AS event, {chosen} FROM read_parquet({literal(path)}) "
        "WHERE client_id IS NOT NULL AND timestamp IS NOT NULL"  # the split refuses such rows
    )


def _column(path: Path, name: str) -> tuple[str, pa.DataType]:
    """Name and type of a column; codes may have their later name. Raises DataError when it is
    missing."""
    schema = read_columns(path)
    name = stored_name(schema, name)
    if name not in schema.names:
        raise DataError(f"{path}: column {name!r} is missing; it has {', '.join(schema.names)}.")
    return name, schema.field(name).type


def _chosen(tables: EventTables, clients: str) -> np.ndarray:
    """The clients by name or file, ascending, each once (U,) int64."""
    if clients == "all":
        # UNION without ALL: each client once
        selects = " UNION ".join(
            f"SELECT client_id FROM read_parquet({literal(file)})" for file in tables.files.values()
        )
        with (
            reading(str(tables.path), list(tables.files.values())),
            temporary_folder() as work,
            connect(work) as con,
        ):
            return np.sort(columns(con, selects)["client_id"].astype(np.int64))

    relevant = tables.path / "input" / "relevant_clients.npy"
    return np.unique(read_whole_numbers(relevant if clients == "relevant" else Path(clients)))
