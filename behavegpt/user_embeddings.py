"""UserEmbeddings: where every producer of user vectors ends, and the folder it is kept in.

FOLDER/client_ids.npy   (U,) int64        } the entry format of the RecSys Challenge 2025
FOLDER/embeddings.npy   (U, D) float16    }
FOLDER/missing.npy      (U,) bool: users without events, whose vectors a rule filled; only if there
                        are any
FOLDER/entry.json       shape, dtype, and checksums that tell whether the rows still belong to their
                        ids
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.arrays import blocks, open_array, write_array
from behavegpt.errors import DataError
from behavegpt.io import read_json, write_json
from behavegpt.paths import local_path
from behavegpt.tabular import Tabular

CLIENT_IDS, EMBEDDINGS = "client_ids.npy", "embeddings.npy"
MISSING, ENTRY = "missing.npy", "entry.json"


@dataclass(frozen=True, repr=False)
class UserEmbeddings(Tabular):
    """One vector per user, in the order of `users`."""

    users: pa.StringArray | np.ndarray  # (U,) labels, or the int64 ids of an entry
    vectors: np.ndarray  # (U, D) float32 or float16, possibly memory-mapped
    missing: np.ndarray | None = None  # (U,) bool: users without events

    def __post_init__(self) -> None:
        if len(self.users) != len(self.vectors):
            raise ValueError(f"{len(self.users)} users but {len(self.vectors)} vectors")
        # block by block: the vectors may be larger than the memory
        if not all(np.isfinite(block).all() for _, _, block in blocks(self.vectors)):
            raise ValueError("a user vector holds NaN or infinity")

    @property
    def client_ids(self) -> np.ndarray:
        """The users as int64 (U,). Raises DataError when a label is no whole number."""
        if isinstance(self.users, np.ndarray):
            return self.users.astype(np.int64, copy=False)
        try:
            return self.users.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"client ids must be whole numbers ({error}); map the user labels to numbers."
            ) from None

    def to_table(self) -> pa.Table:
        """Columns user and vector, a list of D numbers."""
        values = pa.array(np.ascontiguousarray(self.vectors).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(values, self.vectors.shape[1])
        return pa.table({"user": pa.array(self.users), "vector": vectors})

    def __repr__(self) -> str:
        users, width = self.vectors.shape
        return f"UserEmbeddings({users:,} users x {width} {self.vectors.dtype})"

    @classmethod
    def load(cls, folder: str | Path) -> UserEmbeddings:
        """Open a folder; the vectors stay on disk (memory-mapped).

        Raises DataError naming the file, also when entry.json (others' entries need none) tells of
        a change.
        """
        folder = local_path(folder)
        ids, vectors = np.array(open_array(folder / CLIENT_IDS)), open_array(folder / EMBEDDINGS)
        missing = np.array(open_array(folder / MISSING)) if (folder / MISSING).exists() else None

        if ids.ndim != 1 or vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.itemsize > 8:
            raise DataError(
                f"{folder}: ids of shape {ids.shape} and {vectors.dtype} vectors of shape "
                f"{vectors.shape}; see `behavegpt challenge validate`."
            )
        if missing is not None and missing.dtype != bool:
            raise DataError(
                f"{folder / MISSING}: holds {missing.dtype}, not bool; export the entry again."
            )

        try:
            entry = cls(ids, vectors, missing)
        except (TypeError, ValueError) as error:
            raise DataError(f"{folder}: {error}; see `behavegpt challenge validate`.") from None
        if (folder / ENTRY).exists():
            check_entry(folder, ids, vectors, missing)
        return entry

    def save(self, folder: str | Path, dtype: str = "float16") -> Path:
        """Write the folder, each file in one rename. Raises DataError for values that `dtype`
        cannot hold."""
        folder, ids = local_path(folder), self.client_ids
        with np.errstate(over="ignore"):
            vectors = self.vectors.astype(dtype)

        # float16 ends at 65,504
        wide = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wide):
            raise DataError(
                f"{folder}: row {wide[0]} holds values beyond {dtype}; scale the vectors first."
            )

        folder.mkdir(parents=True, exist_ok=True)
        # first of all: the arrays of a crash on the way must not be vouched for by an old
        # entry.json
        for name in (ENTRY, MISSING):
            (folder / name).unlink(missing_ok=True)

        write_array(folder / CLIENT_IDS, ids)
        write_array(folder / EMBEDDINGS, vectors)
        if self.missing is not None and self.missing.any():
            write_array(folder / MISSING, self.missing)
        return seal(folder)


def seal(folder: Path, written: int | None = None) -> Path:
    """Write entry.json for the arrays of a folder, so that a later change on one side is noticed.

    `written`: `pairing_sum` of what the caller wrote. Raises DataError when the folder holds
    anything else.
    """
    ids, vectors = open_array(folder / CLIENT_IDS), open_array(folder / EMBEDDINGS)
    missing = open_array(folder / MISSING) if (folder / MISSING).exists() else None
    if written is not None and written != pairing_sum(ids, vectors):
        raise DataError(
            f"{folder / EMBEDDINGS}: not the array that was written: rows are missing, or "
            "another program wrote to it; run the export again."
        )
    write_json(folder / ENTRY, _entry(ids, vectors, missing))
    return folder


def _entry(ids: np.ndarray, vectors: np.ndarray, missing: np.ndarray | None) -> dict[str, Any]:
    """What entry.json says of these arrays."""
    facts: dict[str, Any] = {
        "users": vectors.shape[0],
        "dimensions": vectors.shape[1],
        "dtype": str(vectors.dtype),
        "missing": 0 if missing is None else int(np.count_nonzero(missing)),
        "pairing": pairing(ids, vectors),
    }
    if missing is not None:
        facts["missing_pairing"] = pairing(ids, missing.view(np.uint8)[:, None])
    return facts


def check_entry(
    folder: Path, ids: np.ndarray, vectors: np.ndarray, missing: np.ndarray | None
) -> None:
    """Raise DataError unless entry.json was written for ids (U,), vectors (U, D) and missing
    (U,)."""
    path, remedy = folder / ENTRY, "export the entry again, or remove it if the change was intended"
    if missing is not None and missing.shape != ids.shape:
        raise DataError(
            f"{folder / MISSING}: {missing.shape} values for {len(ids):,} ids; {remedy}."
        )

    # made of the arrays again: any change of theirs shows, whoever made it
    written, actual = read_json(path, DataError, remedy), _entry(ids, vectors, missing)
    if "missing_pairing" not in written:  # of an earlier version
        actual.pop("missing_pairing", None)
    names = {**written, **actual}
    wrong = next((name for name in names if written.get(name) != actual.get(name)), None)
    if wrong is not None:
        raise DataError(
            f"{path}: the arrays are not the ones it was written for ({wrong} differs): vectors "
            f"were changed, or rows are in another order than their ids; {remedy}."
        )


def pairing(ids: np.ndarray, vectors: np.ndarray) -> str:
    """A checksum of which vector (U, D) belongs to which id (U,): the same in any common order of
    both."""
    return f"{pairing_sum(ids, vectors):016x}"


def pairing_sum(ids: np.ndarray, vectors: np.ndarray) -> int:
    """The checksum as a number, which adds up, modulo 2^64, over disjoint sets of users.

    Sum over users, modulo 2^64, of a mix of the id and of a weighted sum of the bits of its row.
    """
    # the stored bits, not the numbers: -0.0 and 0.0 are different files
    bits = np.dtype(f"u{vectors.dtype.itemsize}")
    # a weight for each column: exchanged numbers of a row would else give the same sum
    weights = _mix(np.arange(1, vectors.shape[1] + 1, dtype=np.uint64))

    row_sums = np.zeros(len(ids), np.uint64)  # (U,)
    for rows, columns, block in blocks(vectors):
        words = np.ascontiguousarray(block).view(bits).astype(np.uint64)
        row_sums[rows] += words @ weights[columns]

    # the id is mixed in before the sum over users, which thus depends on the pairs alone
    return int(_mix(_mix(np.asarray(ids).astype(np.uint64)) ^ row_sums).sum(dtype=np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: uint64 in, well spread uint64 out."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
