"""Rows appended in batches and read back by bucket of users, on disk if they are many; .npy files
written in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from behavegpt.data.digest import start_column

PIECE = 1 << 17  # rows whose columns stay in the processor's cache while they are worked on


class SpilledBuckets:
    """Rows by bucket: batches in memory; above a limit they are moved, as one run, to a raw file
    per column."""

    sorted = False  # see encode.Buckets

    def __init__(self, folder: Path, bucket_of_user: np.ndarray, limit: int) -> None:
        """`bucket_of_user` (codes,) unsigned, ascending; `limit` in bytes."""
        # must be new: what another run had spilled would be read as ours
        folder.mkdir()
        self.bucket_of_user = bucket_of_user

        self.buckets = int(bucket_of_user.max(initial=0)) + 1
        self.held = 0  # bytes in memory

        self._folder, self._limit = folder, limit
        self._dtypes: dict[str, np.dtype] = {}
        # Batches in memory and runs on disk, each with the first row of each bucket (buckets + 1,).
        self._batches: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._runs: list[np.ndarray] = []

    def append(self, columns: dict[str, np.ndarray]) -> None:
        """Add a batch; `user` holds codes, every array has the same length."""
        index: np.ndarray | slice = slice(None)
        counts = np.array([len(columns["user"])])
        if self.buckets > 1:
            bucket = self.bucket_of_user[columns["user"]]  # (n,)
            # stable: rows of a user stay in the order they came
            index = np.argsort(bucket, kind="stable")
            counts = np.bincount(bucket, minlength=self.buckets)  # (buckets,)

        batch = {name: column[index] for name, column in columns.items()}
        self._batches.append((np.concatenate([[0], np.cumsum(counts)]), batch))
        self._dtypes = {name: column.dtype for name, column in batch.items()}
        self.held += sum(column.nbytes for column in batch.values())

        # all batches go at once: one run of few long stretches instead of many short ones
        if self.held > self._limit:
            self._write_run()

    def read(self, bucket: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns (N,) of the rows of a bucket, in the order they came."""
        columns = {}
        for name in names:
            written = [self._read(name, *run[bucket : bucket + 2]) for run in self._runs]
            columns[name] = np.concatenate([*written, *self._held(name, bucket)])
        return columns

    def scan(self, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
        """Columns (N,) of all rows in pieces, in no order; no copies of what is in memory."""
        rows = int(self._runs[-1][-1]) if self._runs else 0

        # the runs lie one after the other in each file: pieces need not end with them
        for start in range(0, rows, PIECE):
            yield {name: self._read(name, start, min(rows, start + PIECE)) for name in names}

        for starts, batch in self._batches:
            for start in range(0, int(starts[-1]), PIECE):
                yield {name: batch[name][start : start + PIECE] for name in names}

    def _held(self, name: str, bucket: int) -> list[np.ndarray]:
        """The rows of a bucket that are in memory, and an empty array of the column's type."""
        pieces = [
            batch[name][slice(*starts[bucket : bucket + 2])] for starts, batch in self._batches
        ]
        # the empty array: concatenating nothing has no type
        return [np.zeros(0, self._dtypes.get(name, np.int64)), *pieces]

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        dtype = self._dtypes[name]
        return np.fromfile(self._folder / name, dtype, stop - start, offset=start * dtype.itemsize)

    def _write_run(self) -> None:
        """Move the batches in memory to the files, bucket by bucket: later reads are few and
        long."""
        for name in self._dtypes:
            with (self._folder / name).open("ab") as file:
                for bucket in range(self.buckets):
                    for piece in self._held(name, bucket):
                        file.write(piece.data)

        # where each bucket of the run begins, counted in rows of the file
        first = int(self._runs[-1][-1]) if self._runs else 0
        self._runs.append(first + np.sum([starts for starts, _ in self._batches], axis=0))
        self._batches, self.held = [], 0


class ColumnWriter:
    """A one-dimensional .npy file of known length, written in pieces and hashed on the way."""

    def __init__(self, path: Path, dtype: np.dtype, length: int) -> None:
        self.dtype = np.dtype(dtype)
        self._digest = start_column(self.dtype, length)
        self._file = path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (length,),
        }
        # version 1.0, which all readers of .npy know; the header is as long for any number of rows
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, values: np.ndarray) -> None:
        """Append values (N,)."""
        data = np.ascontiguousarray(values, self.dtype).data
        self._digest.update(data)
        self._file.write(data)

    def close(self) -> str:
        """Flush to disk; the SHA-256 of type, length and values."""
        self._file.flush()
        # the folder is renamed into place: its files must be on disk before
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()


def smallest_dtype(values: int) -> np.dtype:
    """The smallest unsigned type that holds ids 0 .. values - 1."""
    return np.dtype(np.min_scalar_type(max(values - 1, 0)))
