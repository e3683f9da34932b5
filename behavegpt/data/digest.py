"""The content hash of a prepared folder: of what is in its columns, not of how files or pieces are
laid out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.schema import EventSchema

PIECE = 1 << 24  # bytes  # bytes that are hashed at a time


def content_hash(schema: EventSchema, vocabulary: dict[str, str], digests: dict[str, str]) -> str:
    """SHA-256 of schema, vocabulary hashes by field, and the digests of users and columns."""
    # How labels came about is no content, and a form of times only where there is one: older
    # folders keep their hash.
    silent = {"label_rules"} if schema.time_format else {"label_rules", "time_format"}

    parts = [schema.model_dump(mode="json", exclude=silent), vocabulary, digests]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class UsersDigest:
    """Digest of user labels: texts and lengths apart, so that no batch or separator matters."""

    def __init__(self) -> None:
        self._text, self._lengths = hashlib.sha256(), hashlib.sha256()

    def update(self, users: pa.Array) -> None:
        """Add user labels (n,), none null."""
        # Arrow's layout: [validity, offsets (n + 1,), bytes]; a slice shares the buffers of the
        # whole
        buffer = users.cast(pa.large_binary()).buffers()
        ends = np.frombuffer(buffer[1], np.int64)[users.offset : users.offset + len(users) + 1]

        # without any text there is no buffer of bytes
        self._text.update(
            memoryview(buffer[2])[ends[0] : ends[-1]] if buffer[2] is not None else b""
        )
        self._lengths.update(np.diff(ends).tobytes())

    def hexdigest(self) -> str:
        """The digest so far."""
        return hashlib.sha256(self._text.digest() + self._lengths.digest()).hexdigest()


def start_column(dtype: np.dtype, length: int) -> hashlib._Hash:
    """The digest of a column (length,) before its values."""
    return hashlib.sha256(f"{dtype.str} {length} ".encode())


def hash_folder(
    folder: Path, schema: EventSchema, vocabulary: dict[str, str], columns: list[str]
) -> str:
    """The content hash of what lies in a prepared folder."""
    digests = {name: _column(folder / "columns" / f"{name}.npy") for name in columns}

    users = UsersDigest()
    with pq.ParquetFile(folder / "users.parquet") as file:
        for batch in file.iter_batches(1 << 20, columns=["user"]):
            users.update(batch["user"].cast(pa.string()))

    return content_hash(schema, vocabulary, digests | {"users": users.hexdigest()})


def _column(path: Path) -> str:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    digest = start_column(values.dtype, len(values))

    # piece by piece: a column may be larger than the memory
    rows = PIECE // values.dtype.itemsize
    for start in range(0, len(values), rows):
        digest.update(np.ascontiguousarray(values[start : start + rows]).data)

    return digest.hexdigest()
