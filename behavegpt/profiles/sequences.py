"""The sequence store: chosen event types merged in time order, one flat column for each declared
field.

DIR/clients.npy     (U,) int64, ascending: clients with an event
DIR/offsets.npy     (U + 1,) int64: client u owns offsets[u]:offsets[u + 1] of every column
DIR/FIELD.npy       (E,) ids in the smallest dtype that holds the vocabulary
DIR/vocabularies.safetensors, DIR/store.json

See `fields` for what the ids mean.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from behavegpt import __version__
from behavegpt.arrays import open_array, write_array
from behavegpt.ingest.buckets import ColumnWriter, smallest_dtype
from behavegpt.io import scratch, write_json
from behavegpt.profiles.events import EventTables, ask_everybody, columns, register
from behavegpt.profiles.fields import (
    CODES,
    END,
    FIRST,
    MISSING,
    PAD,
    RARE,
    RAW,
    START,
    SequenceSettings,
    Vocabularies,
    source_sql,
    value_sql,
)

BATCH = 2**18  # rows fetched at a time
# odd and near 2^32 over the golden ratio: Knuth's multiplicative hash
MIX = 0x9E3779B1


@dataclass(frozen=True)
class SequenceStore:
    """Flat columns by field, each (E,) and memory-mapped; client u owns
    `offsets[u]:offsets[u + 1]`."""

    path: Path
    clients: np.ndarray  # (U,) int64
    offsets: np.ndarray  # (U + 1,) int64
    columns: Mapping[str, np.ndarray]
    vocabularies: Vocabularies

    @property
    def sizes(self) -> dict[str, int]:
        """Field -> number of ids."""
        return self.vocabularies.sizes

    @property
    def lengths(self) -> np.ndarray:
        """(U,) events of each client."""
        return np.diff(self.offsets)

    def stops_before(self, moment: int) -> np.ndarray:
        """(U,) for each client the index of its first event at or after `moment` (epoch seconds);
        needs field `time`.

        What is before it is a past, what comes from there on a future to learn from.
        """
        # (E + 1,) running count, so that a difference is the count within a client
        earlier = np.concatenate([[0], np.cumsum(np.asarray(self.columns["time"]) < moment)])
        return self.offsets[:-1] + earlier[self.offsets[1:]] - earlier[self.offsets[:-1]]

    def padded(self, rows: np.ndarray, longest: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """START, the newest events of clients `rows` (B,) and END as field -> ids (B, L) int64,
        padded at the right, and lengths (B,), at most `longest`.

        A pure function: the same rows give the same arrays, whatever was asked before.
        """
        stops = self.offsets[rows + 1]  # (B,)
        counts = np.minimum(stops - self.offsets[rows], longest - 2)  # (B,), room for START and END
        event = np.arange(counts.max(initial=0) + 2) - 1  # (L,), -1 stands for START
        inside = (event >= 0) & (event < counts[:, None])  # (B, L)

        # (B, L) into the flat columns
        index = np.where(inside, (stops - counts)[:, None] + event, 0)

        batch = {}
        for name, column in self.columns.items():
            ids = np.where(inside, column[index], PAD).astype(np.int64)
            ids[:, 0], ids[np.arange(len(rows)), counts + 1] = START, END
            batch[name] = ids

        return batch, counts + 2


def build_store(
    tables: EventTables, settings: SequenceSettings, vocabularies: Vocabularies, cache: Path
) -> SequenceStore:
    """Build the store in `cache` under the hash of what it is made from, or open the one that is
    there."""
    key = json.dumps(
        [__version__, tables.digest, settings.model_dump(mode="json"), vocabularies.digest]
    )

    folder = cache / "sequences" / hashlib.sha256(key.encode()).hexdigest()[:20]
    if not (folder / "store.json").is_file():
        with scratch(folder) as temporary:
            _write(tables, settings, vocabularies, temporary)

    return open_store(folder)


def open_store(folder: Path) -> SequenceStore:
    """Open a folder that `build_store` wrote."""
    metadata = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    arrays = {
        name: open_array(folder / f"{name}.npy")
        for name in ("clients", "offsets", *metadata["fields"])
    }

    # the small arrays are read, the columns stay mapped
    clients, offsets = np.array(arrays.pop("clients")), np.array(arrays.pop("offsets"))

    return SequenceStore(
        folder, clients, offsets, arrays, Vocabularies.load(folder / "vocabularies.safetensors")
    )


def _write(
    tables: EventTables, settings: SequenceSettings, vocabularies: Vocabularies, folder: Path
) -> None:
    """Stream the sorted, encoded events into columns, keeping the last `settings.last` of each
    client."""
    names = [spec.name for spec in settings.specs]
    with tables.connect(folder) as con:
        everybody = settings.clients == "all"
        # SQL joins the table `clients`, so its rows and `clients` must be the same people
        clients = ask_everybody(con, settings.events) if everybody else tables.clients
        counts = _counts(con, settings, len(clients))
        kept = np.minimum(counts, settings.last or counts.max(initial=0))  # (U,)
        stops = np.cumsum(counts)  # (U,) where each client ends in the sorted stream
        writers = {
            name: ColumnWriter(folder / f"{name}.npy", _dtype(name, vocabularies), int(kept.sum()))
            for name in names
        }

        done = 0
        for batch in _encoded(con, settings, vocabularies):
            rows = batch.pop("row")
            # the stream is sorted by client, so the position tells which events are a client's
            # newest
            position = done + np.arange(len(rows))
            newest = position >= (stops - kept)[rows]
            for name, ids in batch.items():
                writers[name].write(ids[newest])
            done += len(rows)

    digests = {name: writer.close() for name, writer in writers.items()}
    # a client without events of these types is left out
    present = kept > 0
    write_array(folder / "clients.npy", clients[present])
    write_array(folder / "offsets.npy", np.concatenate([[0], np.cumsum(kept[present])]))
    vocabularies.save(folder / "vocabularies.safetensors")
    shutil.rmtree(folder / "spill", ignore_errors=True)
    write_json(
        folder / "store.json", {"fields": names, "events": int(kept.sum()), "digests": digests}
    )


def _counts(con: duckdb.DuckDBPyConnection, settings: SequenceSettings, clients: int) -> np.ndarray:
    """(clients,) int64: events, or code tokens, of each client."""
    codes = next((CODES[spec.name] for spec in settings.specs if spec.name in CODES), None)
    # an event without codes still counts as one token, `missing`
    size = f"sum(greatest(coalesce(len({codes}), 0), 1))" if codes else "count(*)"
    names = [spec.name for spec in settings.specs if spec.name in CODES]
    query = f"""SELECT row, {size}::BIGINT AS n FROM {source_sql(settings, names)}
        JOIN clients w ON w.client = e.client GROUP BY row"""
    totals = columns(con, query)
    counts = np.zeros(clients, np.int64)
    counts[totals["row"]] = totals["n"]

    return counts


def _encoded(
    con: duckdb.DuckDBPyConnection, settings: SequenceSettings, vocabularies: Vocabularies
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `row` and ids by field, sorted by client and time.

    Events of equal times stand by event type and then in an order of chance that their ids decide:
    the order of rows in a file never matters, and no member learns a sorting (an invoice has dozens
    of lines of one time).
    """
    names = [spec.name for spec in settings.specs]
    codes = next((name for name in names if name in CODES), None)
    plain = [name for name in names if name != codes]
    values = [f"{value_sql(name, vocabularies.anchor)} AS v_{name}" for name in plain]
    ids, joins = (
        zip(*(_id_sql(con, name, vocabularies) for name in plain), strict=True)
        if plain
        else ((), ())
    )

    if codes:  # an event without codes is one token, `missing`
        listed = CODES[codes]
        values.append(
            f"CASE WHEN len({listed}) > 0 THEN {listed} ELSE [NULL::SMALLINT] END AS {codes}"
        )

    # code tokens keep the order of the text, only whole events need breaking ties
    ties = names if codes else [_chance_sql(plain), *names]
    query = f"""
        SELECT {", ".join(["row", *ids, *([codes] if codes else [])])}
        FROM (SELECT w.row, w.client, e.moment, e.event AS kind, {", ".join(values)}
              FROM {source_sql(settings, names)} JOIN clients w ON w.client = e.client) s
        {" ".join(joins)} ORDER BY {", ".join(["row", "moment", "kind", *ties])}"""

    for batch in con.sql(query).to_arrow_reader(BATCH):
        columns = {
            name: batch.column(name).to_numpy(zero_copy_only=False) for name in ("row", *plain)
        }
        if codes:
            tokens = batch.column(codes)
            # the event's other ids are repeated for each of its codes
            columns = {
                name: column.repeat(np.diff(tokens.offsets)) for name, column in columns.items()
            }
            columns[codes] = _code_ids(tokens.flatten(), vocabularies.values[codes])

        yield columns


def _chance_sql(names: Sequence[str]) -> str:
    """SQL of a number below 2^32 that a client and its ids decide, each times a power of an odd
    constant."""
    terms = [f"{name}::BIGINT * {pow(MIX, power, 2**32)}" for power, name in enumerate(names, 2)]
    return f"({' + '.join([f'(client % {2**31}) * {MIX}', *terms])}) % {2**32}"


def _code_ids(codes: pa.Array, values: np.ndarray) -> np.ndarray:
    """Ids (T,) of codes (T,), null where an event has none."""
    if not len(values):
        return np.where(codes.is_null().to_numpy(zero_copy_only=False), MISSING, RARE)
    # (V,) the codes ascending, for the search
    order = np.argsort(values)
    wanted = codes.fill_null(0).to_numpy()
    place = order[np.searchsorted(values[order], wanted).clip(max=len(values) - 1)]
    ids = np.where(values[place] == wanted, place + FIRST, RARE)
    return np.where(codes.is_null().to_numpy(zero_copy_only=False), MISSING, ids)


def _id_sql(
    con: duckdb.DuckDBPyConnection, name: str, vocabularies: Vocabularies
) -> tuple[str, str]:
    """SQL of a field's id from its value `v_NAME`, and the join that it needs."""
    if name in RAW:
        return f"v_{name}::UINTEGER AS {name}", ""

    values = vocabularies.values[name]
    # values 0, 1, 2, ... are their own position: arithmetic is cheaper than a join
    if np.array_equal(values, np.arange(len(values))):
        known, join = (
            f"CASE WHEN v_{name} BETWEEN 0 AND {len(values) - 1} THEN v_{name} + {FIRST} END",
            "",
        )
    else:
        register(
            con,
            f"ids_{name}",
            value=values,
            id=np.arange(FIRST, FIRST + len(values), dtype=np.uint32),
        )
        known, join = f"ids_{name}.id", f"LEFT JOIN ids_{name} ON ids_{name}.value = s.v_{name}"

    return (
        f"CASE WHEN v_{name} IS NULL THEN {MISSING} ELSE coalesce({known}, {RARE}) END::UINTEGER "
        f"AS {name}",
        join,
    )


def _dtype(name: str, vocabularies: Vocabularies) -> np.dtype:
    return np.dtype(np.uint32) if name in RAW else smallest_dtype(vocabularies.sizes[name])
