"""Blocks of raw vectors -> one folder of UserEmbeddings: scaled, in the asked order, the absent
users filled.

Shapes: N vectors asked for, U users with events among them, n of a block, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.arrays import open_array, write_array
from behavegpt.errors import DataError
from behavegpt.io import write_json
from behavegpt.user_embeddings import CLIENT_IDS, EMBEDDINGS, MISSING, pairing_sum, seal

USERS = "users.parquet"  # labels by row, where they are no whole numbers
FACTS = "export.json"


@dataclass(frozen=True)
class Asked:
    """Which users' vectors go where."""

    labels: pa.Array  # (N,) in the order of the result
    row: np.ndarray  # (N,) index into `users`; -1: no events
    users: np.ndarray  # (U,) ascending indices of the store's users

    @property
    def missing(self) -> np.ndarray:
        """(N,) bool: asked for, but without events."""
        return self.row < 0


def assemble(
    blocks: Sequence[Path], asked: Asked, facts: dict[str, Any], empty: np.ndarray, folder: Path
) -> None:
    """Write the folder from blocks (n, D) float32 of `asked.users`; one block is held at a time.

    `facts["parts"]`: name -> dimensions from, to; `facts["settings"]`: scale, fill, dtype,
    block_users. `empty` (D,): the raw vector of a user without events.
    """
    folder.mkdir()
    settings, parts = facts["settings"], [slice(*bounds) for bounds in facts["parts"].values()]
    shape = (len(asked.labels), parts[-1].stop)
    ids = _write_ids(asked.labels, folder)
    rows_of = _Rows(folder / EMBEDDINGS, settings["dtype"], shape, ids, asked.labels)

    # two passes over the blocks: mean and deviation first, then each block scaled and put into
    # place
    scale = _scaling(blocks, parts, settings["scale"])

    # (U,) row of the result of each user with events
    place = np.empty(len(asked.users), np.int64)
    place[asked.row[~asked.missing]] = np.flatnonzero(~asked.missing)

    first, total = 0, np.zeros(shape[1])
    for path in blocks:
        vectors = scale(np.asarray(open_array(path)))
        total += vectors.sum(0, dtype=np.float64)
        rows_of.write(place[first : first + len(vectors)], vectors)
        first += len(vectors)

    if asked.missing.any():
        # the mean of the scaled vectors is that of the users with events
        fills = {
            "zeros": np.zeros(shape[1]),
            "mean": total / max(first, 1),
            "empty-history": scale(empty[None])[0],
        }

        filling = fills[settings["fill"]].astype(np.float32)
        absent = np.flatnonzero(asked.missing)
        # in parts: the users without events may be many
        for start in range(0, len(absent), settings["block_users"]):
            rows = absent[start : start + settings["block_users"]]
            rows_of.write(rows, np.broadcast_to(filling, (len(rows), shape[1])))
        write_array(folder / MISSING, asked.missing)

    write_json(folder / FACTS, facts)
    # the checksum of what was written, against another program that writes into the folder
    seal(folder, rows_of.written())


def _of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, D) divided by their lengths; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return scaled


def _scaling(
    blocks: Sequence[Path], parts: Sequence[slice], rule: str
) -> Callable[[np.ndarray], np.ndarray]:
    """The rule as a function of raw vectors (n, D) float32."""
    if rule == "none":
        return lambda vectors: vectors
    if rule == "unit":
        # each part by itself: a wide one would else decide the length of all
        return lambda vectors: np.hstack([_of_unit_length(vectors[:, part]) for part in parts])

    # sums in float64 in the order of the blocks, which are the same however many processes made
    # them
    count, total, square = 0, np.zeros(parts[-1].stop), np.zeros(parts[-1].stop)
    for path in blocks:
        vectors = np.asarray(open_array(path), np.float64)
        count += len(vectors)
        total += vectors.sum(0)
        square += (vectors**2).sum(0)

    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0))
    # a dimension that is constant but for rounding would become noise of size 1: it becomes 0
    is_constant = deviation <= 1e-6 * np.maximum(1, np.abs(mean))
    factor = np.where(is_constant, 0, 1 / np.maximum(deviation, 1e-30))
    return lambda vectors: ((vectors - mean) * factor).astype(np.float32)


class _Rows:
    """The rows of embeddings.npy, with a sum of what was written, by which the file is checked in
    the end."""

    def __init__(
        self, path: Path, dtype: str, shape: tuple[int, int], ids: np.ndarray, labels: pa.Array
    ) -> None:
        self._path, self._ids, self._labels = path, ids, labels
        self._sum, self._done = 0, np.zeros(shape[0], bool)
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def write(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Put vectors (n, D) into rows (n,); mapped anew each time, so that no page stays in
        memory."""
        target = np.load(self._path, mmap_mode="r+", allow_pickle=False)
        with np.errstate(over="ignore"):
            values = vectors.astype(target.dtype)

        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise DataError(
                f"user {self._labels[int(rows[bad[0]])]}: the vector holds values beyond "
                f"{target.dtype}; take --scale standard or unit, or --dtype float32; if that does "
                "not help, the model is damaged."
            )

        target[rows] = values
        self._done[rows] = True
        self._sum += pairing_sum(self._ids[rows], values)

    def written(self) -> int:
        """`pairing_sum` of all rows. Raises AssertionError when one was left out."""
        assert self._done.all(), f"row {int(self._done.argmin())} was never written"
        return self._sum % 2**64


def _write_ids(labels: pa.Array, folder: Path) -> np.ndarray:
    """Write client_ids.npy (N,) and return it: int64 labels, or row numbers beside users.parquet
    for any others."""
    try:
        ids = labels.cast(pa.int64())
        # `007` and ` 7` are whole numbers for Arrow, but not the labels that were given
        whole = ids.cast(pa.string()).equals(labels)
    except pa.ArrowInvalid:
        whole = False
    if not whole:
        ids = pa.array(np.arange(len(labels)))
        pq.write_table(pa.table({"user": labels}), folder / USERS)
    numbers: np.ndarray = ids.to_numpy(zero_copy_only=False)
    write_array(folder / CLIENT_IDS, numbers)
    return numbers
