"""UserEmbeddings: where every producer of user vectors ends, and the folder it is kept in.

FOLDER/client_ids.npy   (U,) int64        } the entry format of the RecSys Challenge 2025
FOLDER/embeddings.npy   (U, D) float16    }
FOLDER/missing.npy      (U,) bool: users without events, whose vectors a rule filled (only if there
are any) FOLDER/entry.json       shape, dtype, and checksums that tell whether the rows still belong
to their ids
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.errors import DataError
from behavegpt.io import read_json, replacing, write_json
from behavegpt.paths import local_path
from behavegpt.tabular import Tabular

CLIENT_IDS, EMBEDDINGS, MISSING, ENTRY = (
    "client_ids.npy",
    "embeddings.npy",
    "missing.npy",
    "entry.json",
)
BLOCK = 2**23  # bytes looked at in one go
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_HEADERS[3, 0] = _HEADERS[2, 0]  # differs in non-ASCII field names alone
_KINDS = {
    b"": "it is empty",
    b"PK": "it is an .npz archive",
    b"\x80": "it is a pickle, which is never opened",
}


@dataclass(frozen=True, repr=False)
class UserEmbeddings(Tabular):
    """One vector for each user, in the order of `users`."""

    users: pa.StringArray | np.ndarray  # (U,) labels, or the int64 ids of an entry
    vectors: np.ndarray  # (U, D) float32 or float16, possibly memory-mapped
    missing: np.ndarray | None = None  # (U,) bool: users without events

    def __post_init__(self) -> None:
        if len(self.users) != len(self.vectors):
            raise ValueError(f"{len(self.users)} users but {len(self.vectors)} vectors")
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
            found = cls(ids, vectors, missing)
        except (TypeError, ValueError) as error:
            raise DataError(f"{folder}: {error}; see `behavegpt challenge validate`.") from None
        if (folder / ENTRY).exists():
            check_entry(folder, ids, vectors, missing)
        return found

    def save(self, folder: str | Path, dtype: str = "float16") -> Path:
        """Write the folder, each file in one rename. Raises DataError for values that `dtype`
        cannot hold."""
        folder, ids = local_path(folder), self.client_ids
        with np.errstate(over="ignore"):
            vectors = self.vectors.astype(dtype)
        wide = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wide):
            raise DataError(
                f"{folder}: row {wide[0]} holds values beyond {dtype}; scale the vectors first."
            )
        folder.mkdir(parents=True, exist_ok=True)
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
            f"{folder / EMBEDDINGS}: not what was written into it: rows are missing, or another "
            "program wrote there too; run the export again."
        )
    write_json(folder / ENTRY, _entry(ids, vectors, missing))
    return folder


def _entry(ids: np.ndarray, vectors: np.ndarray, missing: np.ndarray | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "users": vectors.shape[0],
        "dimensions": vectors.shape[1],
        "dtype": str(vectors.dtype),
    }
    facts |= {
        "missing": 0 if missing is None else int(np.count_nonzero(missing)),
        "pairing": pairing(ids, vectors),
    }
    return facts | (
        {}
        if missing is None
        else {"missing_pairing": pairing(ids, missing.view(np.uint8)[:, None])}
    )


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
    told, found = read_json(path, DataError, remedy), _entry(ids, vectors, missing)
    if "missing_pairing" not in told:  # of an earlier version
        found.pop("missing_pairing", None)
    wrong = next((name for name in {**told, **found} if told.get(name) != found.get(name)), None)
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
    row_sums = np.zeros(len(ids), np.uint64)
    bits = np.dtype(f"u{vectors.dtype.itemsize}")
    weights = _mix(np.arange(1, vectors.shape[1] + 1, dtype=np.uint64))
    for rows, columns, block in blocks(vectors):
        row_sums[rows] += (
            np.ascontiguousarray(block).view(bits).astype(np.uint64) @ weights[columns]
        )
    return int(_mix(_mix(np.asarray(ids).astype(np.uint64)) ^ row_sums).sum(dtype=np.uint64))


def blocks(array: np.ndarray, size: int = BLOCK) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows, columns, part) of a matrix (U, D) along its order in memory, at most about `size`
    bytes each.

    Parts of a memory map are mapped one at a time, so that what was looked at does not stay in
    memory.
    """
    by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
    table = array.T if by_columns else array
    lines, width = table.shape
    step = max(1, size // max(1, width * table.itemsize))
    mapped = _is_whole_map(array)
    everything = slice(0, width)
    for start in range(0, lines, step):
        taken = slice(start, min(start + step, lines))
        part = _part(array, taken, width) if mapped else table[taken]
        yield (everything, taken, part.T) if by_columns else (taken, everything, part)


def open_array(path: str | Path) -> np.ndarray:
    """Map a .npy file for reading. Raises DataError for anything that is not exactly one array of
    plain values.

    The size of the file is compared with its header first, so that nothing is allocated on a
    header's word.
    """
    path = local_path(path)
    try:
        return _open(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions."
        ) from None


def _is_torch(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _refuse_absent(path: Path) -> None:
    found = (
        "is missing"
        if not path.exists()
        else "is a folder"
        if path.is_dir()
        else "is no regular file"
    )
    doubled = path.with_name(path.name + path.suffix)
    if doubled.is_file():  # numpy.save appends .npy to names that do not end so
        raise DataError(f"{path} is missing, {doubled.name} lies beside it; rename it.")
    raise DataError(f"{path} {found}; write the array there with numpy.save.")


def _refuse_other_kind(path: Path, start: bytes) -> None:
    kind = next(
        (what for magic, what in _KINDS.items() if start[: max(1, len(magic))] == magic), ""
    )
    if start[:2] == b"PK" and _is_torch(path):
        kind = (
            "it is a file of torch.save, a pickle, which is never opened; save tensor.numpy() "
            "instead"
        )
    raise DataError(
        f"{path} is no .npy file: {kind or 'it does not begin like one'}; write it with numpy.save."
    )


def _open(path: Path) -> np.ndarray:
    if not path.is_file():
        _refuse_absent(path)
    with path.open("rb") as file:
        start = file.read(6)
        if start != b"\x93NUMPY":
            _refuse_other_kind(path, start)
        file.seek(0)
        try:
            shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
            if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"shape {shape}")
            if 0 in shape:
                np.empty(shape, dtype)  # a shape that numpy refuses is refused here
        # numpy reads headers with Python's own parser, which raises what it likes
        except Exception as error:
            raise DataError(
                f"{path}: its header cannot be read ({error}); write it with numpy.save."
            ) from None
        offset = file.tell()
    if dtype.hasobject:
        raise DataError(
            f"{path} holds Python objects (a pickle), which are never opened; save plain numbers."
        )
    wanted, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
    if wanted != held:
        fault = "it was cut off" if held < wanted else "something was appended"
        raise DataError(
            f"{path}: the header promises {wanted:,} bytes for shape {shape}, the file holds "
            f"{held:,}: {fault}; write it again."
        )
    if not wanted:
        return np.empty(shape, dtype)
    if not shape:
        return np.fromfile(path, dtype, offset=offset).reshape(shape)
    return np.memmap(
        path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
    )


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace a .npy file in one rename; its dtype holds no objects."""
    array = np.ascontiguousarray(array)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        # np.save says nothing when the disk is full
        file.write(array.reshape(-1).view(np.uint8).data)


def _is_whole_map(array: np.ndarray) -> bool:
    """A memory map of a whole file, in the order of the file (a view of a part has the same class
    and offset)."""
    if not isinstance(array, np.memmap) or array.filename is None or array.mode == "c":
        return False
    in_order = array.flags.c_contiguous or array.flags.f_contiguous
    return in_order and array.offset + array.nbytes == os.stat(array.filename).st_size


def _part(array: np.ndarray, lines: slice, width: int) -> np.ndarray:
    """Lines of a memory-mapped matrix through a mapping of their own."""
    assert isinstance(array, np.memmap)
    offset = array.offset + lines.start * width * array.itemsize
    shape = (lines.stop - lines.start, width)
    return np.memmap(str(array.filename), array.dtype, mode="r", offset=offset, shape=shape)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: uint64 in, well spread uint64 out."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
