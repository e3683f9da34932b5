"""Columns on disk: rows appended in batches and read back by bucket of users; .npy files written piece by piece."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

import numpy as np


class Spill:
    """Rows in one raw file per column; each batch is stored by bucket, so that a bucket is read as slices."""

    def __init__(self, folder: Path, bucket_of_user: np.ndarray) -> None:
        """`bucket_of_user` (codes,) uint16, ascending."""
        folder.mkdir()
        self.bucket_of_user = bucket_of_user
        self.buckets = int(bucket_of_user.max(initial=0)) + 1
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._starts: list[np.ndarray] = []  # per batch (buckets + 1,): first row of each bucket in the files
        self._rows = 0

    def append(self, columns: dict[str, np.ndarray]) -> None:
        """Add a batch; `user` holds codes, every array has the same length."""
        index: np.ndarray | slice = slice(None)
        counts = np.array([len(columns["user"])])
        if self.buckets > 1:
            bucket = self.bucket_of_user[columns["user"]]
            index = np.argsort(bucket, kind="stable")
            counts = np.bincount(bucket, minlength=self.buckets)
        self._starts.append(self._rows + np.concatenate([[0], np.cumsum(counts)]))
        self._rows += int(counts.sum())
        for name, column in columns.items():
            if name not in self._files:
                self._files[name] = (self._folder / f"{name}.bin").open("wb")
                self._dtypes[name] = column.dtype
            self._files[name].write(np.ascontiguousarray(column[index]).data)

    def read(self, bucket: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns (N,) of the rows of a bucket, in the order they came."""
        return {name: self._read(bucket, name) for name in names}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _read(self, bucket: int, name: str) -> np.ndarray:
        if name not in self._files:
            return np.zeros(0, np.int64)
        self._files[name].flush()
        dtype = self._dtypes[name]
        ranges = [(int(starts[bucket]), int(starts[bucket + 1])) for starts in self._starts]
        pieces = [
            np.fromfile(self._folder / f"{name}.bin", dtype, stop - start, offset=start * dtype.itemsize)
            for start, stop in ranges
            if stop > start
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype)


class ColumnWriter:
    """A one-dimensional .npy file of known length, written in pieces and hashed on the way."""

    def __init__(self, path: Path, dtype: np.dtype, length: int) -> None:
        self.dtype = np.dtype(dtype)
        self._digest = hashlib.sha256(f"{self.dtype.str} {length} ".encode())
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, values: np.ndarray) -> None:
        """Append values (N,)."""
        data = np.ascontiguousarray(values, self.dtype).data
        self._digest.update(data)
        self._file.write(data)

    def close(self) -> str:
        """Flush to disk; the SHA-256 of type, length and values."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()


def smallest_dtype(values: int) -> np.dtype:
    """The smallest unsigned type that holds ids 0 .. values - 1."""
    return np.dtype(np.min_scalar_type(max(values - 1, 0)))
