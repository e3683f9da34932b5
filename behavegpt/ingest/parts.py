"""Events coded and sorted in several places, part by part, and put together as if one place had
done it.

DIR/c0.parquet, c1.parquet ...    labels of the user and the other fields in text order, and the
                                  events of each
DIR/c0.npy, c1.npy ..., time.npy  codes of the part's own labels (0 = null), and microseconds;
                                  sorted by user and time
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from behavegpt.arrays import write_array
from behavegpt.data.database import hash_labels, literal, one_row
from behavegpt.data.ties import sort_events
from behavegpt.ingest.buckets import PIECE, smallest_dtype
from behavegpt.ingest.dictionaries import shrink_codes
from behavegpt.ingest.plan import Plan


def save_part(
    con: duckdb.DuckDBPyConnection,
    table: pa.Table,
    fields: Sequence[str],
    tie_seed: int,
    folder: Path,
) -> None:
    """Code, sort and save all rows of some users: `time`, maybe `order_key`, and the labels of
    `fields` as c0, c1 ...

    The first field is the user.
    """
    folder.mkdir()

    # what sort_events reads beside the codes
    columns = {"time": table["time"].to_numpy()}
    if "order_key" in table.column_names:
        columns["order"] = table["order_key"].to_numpy()

    hashes = {}
    for i, field in enumerate(fields):
        labels, columns[field] = _coded(table[f"c{i}"])
        # rows of each label, without those of null
        events = np.bincount(columns[field], minlength=len(labels) + 1)[1:]  # (labels,)
        pq.write_table(pa.table({"label": labels, "events": events}), folder / f"c{i}.parquet")
        # code 0, null, has the hash 0 as in Plan.hashes
        hashes[field] = np.insert(hash_labels(con, labels), 0, 0)

    index = sort_events(columns, hashes, tie_seed)  # (N,)

    # no order column is kept: the part is sorted by it already
    write_array(folder / "time.npy", columns["time"][index])
    for i, field in enumerate(fields):
        codes = columns[field][index]
        write_array(folder / f"c{i}.npy", codes.astype(smallest_dtype(int(codes.max()) + 1)))


class Parts:
    """Events that workers have coded and sorted; part p holds the users after those of part p - 1.
    See encode.Buckets.

    Makes the plan's dictionaries of all labels from those of the parts.
    """

    sorted = True

    def __init__(self, plan: Plan, folders: list[Path]) -> None:
        self.buckets, self._folders = len(folders), folders
        self._codes: dict[str, list[np.ndarray]] = {}
        for i, field in enumerate(plan.columns):
            files = [folder / f"c{i}.parquet" for folder in folders]
            self._codes[field] = _join_dictionaries(plan.con, i, files)

        self._files = {field: f"c{i}" for i, field in enumerate(plan.columns)}

        # the first code after null, and the last: of a part all users come after those before
        ends = [codes[[1, -1]] for codes in self._codes["user"]]
        assert np.all(np.diff(np.ravel(ends).astype(np.int64)) >= 0), (
            "parts must hold ascending ranges of users"
        )

    def read(self, bucket: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns (N,) of a part, codes of all parts together."""
        return {name: self._column(bucket, name, slice(None)) for name in names}

    def scan(self, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
        """Columns (N,) of all rows in pieces."""
        for part in range(self.buckets):
            rows = len(self._open(part, "time"))
            for start in range(0, rows, PIECE):
                yield {
                    name: self._column(part, name, slice(start, start + PIECE)) for name in names
                }

    def _column(self, part: int, name: str, rows: slice) -> np.ndarray:
        # mapped: a piece is read, not the whole column
        values = np.asarray(self._open(part, self._files.get(name, name))[rows])
        return self._codes[name][part][values] if name in self._codes else values

    def _open(self, part: int, file: str) -> np.ndarray:
        column: np.ndarray = np.load(
            self._folders[part] / f"{file}.npy", mmap_mode="r", allow_pickle=False
        )
        return column


def _join_dictionaries(
    con: duckdb.DuckDBPyConnection, number: int, files: list[Path]
) -> list[np.ndarray]:
    """Make `dictionary_{number}` from the parts' labels; returns for each part its codes as codes
    of all parts."""
    name, empty = f"dictionary_{number}", "(SELECT ''::VARCHAR AS label, 0 AS events WHERE false)"
    table = f"read_parquet([{', '.join(literal(file) for file in files)}])" if files else empty
    con.execute(
        f"CREATE TABLE {name} AS SELECT label, (row_number() OVER (ORDER BY label))::UINTEGER AS "
        f"code, events FROM (SELECT label, sum(events)::BIGINT AS events FROM {table} GROUP BY "
        "label) ORDER BY code"
    )

    shrink_codes(con, number, one_row(con, f"SELECT count(*) FROM {name}")[0])

    codes_of_parts = []
    for file in files:
        # codes of a part are ranks of its labels: the k-th label's code of all parts is row k here
        query = (
            f"SELECT d.code FROM read_parquet({literal(file)}) p JOIN {name} d USING (label) "
            "ORDER BY d.code"
        )
        codes = con.sql(query).fetchnumpy()["code"]
        codes_of_parts.append(np.concatenate([np.zeros(1, codes.dtype), np.asarray(codes)]))

    return codes_of_parts


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Labels in text order and the codes 1... (N,) int64 of a column, 0 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)  # by bytes, as DuckDB orders text  # (labels,)

    # place in Arrow's dictionary -> rank of the label; the last place stands for null
    code = np.zeros(len(order) + 1, np.int64)  # (labels + 1,)
    code[order.to_numpy()] = np.arange(1, len(order) + 1)

    # (N,)
    places = pc.fill_null(encoded.indices, pa.scalar(len(order), encoded.indices.type)).to_numpy()

    return encoded.dictionary.take(order), code[places]
