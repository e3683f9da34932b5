"""Arrays as .npy files: opened with suspicion, written in one rename, read block by block.

A file may come from strangers (an entry of a challenge, a shared folder), so that nothing is
unpickled, and nothing allocated on a header's word.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from behavegpt.errors import DataError
from behavegpt.io import replacing
from behavegpt.paths import local_path

BLOCK = 2**23  # bytes looked at in one go
_MAGIC = b"\x93NUMPY"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_HEADERS[3, 0] = _HEADERS[2, 0]  # differs in non-ASCII field names alone
# how files of other kinds begin -> what they are
_KINDS = {
    b"": "it is empty",
    b"PK": "it is an .npz archive",
    b"\x80": "it is a pickle, which is never opened",
}


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


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace a .npy file in one rename; its dtype holds no objects."""
    array = np.ascontiguousarray(array)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        # np.save says nothing when the disk is full
        file.write(array.reshape(-1).view(np.uint8).data)


def blocks(array: np.ndarray, size: int = BLOCK) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows, columns, part) of a matrix (U, D) along its order in memory, at most about `size`
    bytes each.

    Parts of a memory map are mapped one at a time, so that what was looked at does not stay in
    memory.
    """
    # a matrix in column order is walked as its transpose, or each part would touch every page
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


def _open(path: Path) -> np.ndarray:
    """The array of a file, memory-mapped unless it is empty or a single value."""
    if not path.is_file():
        _refuse_absent(path)

    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
        if start != _MAGIC:
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

    # a header may promise any size; the file's own is what there is
    wanted, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
    if wanted != held:
        fault = "it was cut off" if held < wanted else "something was appended"
        raise DataError(
            f"{path}: the header promises {wanted:,} bytes for shape {shape}, the file holds "
            f"{held:,}: {fault}; write it again."
        )

    if not wanted:  # nothing can be mapped
        return np.empty(shape, dtype)
    if not shape:  # a memory map would have one dimension
        return np.fromfile(path, dtype, offset=offset).reshape(shape)
    return np.memmap(
        path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C"
    )


def _refuse_absent(path: Path) -> None:
    doubled = path.with_name(path.name + path.suffix)
    if doubled.is_file():  # numpy.save appends .npy to names that do not end so
        raise DataError(f"{path} is missing, but there is {doubled.name}; rename it.")

    kind = "is a folder" if path.is_dir() else "is not a regular file"
    fault = kind if path.exists() else "is missing"
    raise DataError(f"{path} {fault}; write the array there with numpy.save.")


def _refuse_other_kind(path: Path, start: bytes) -> None:
    """Say what a file is that does not begin like an array's."""
    kinds = (what for magic, what in _KINDS.items() if start[: max(1, len(magic))] == magic)
    kind = next(kinds, "")
    if start[:2] == b"PK" and _is_torch(path):
        kind = (
            "it is a file of torch.save, a pickle, which is never opened; save tensor.numpy() "
            "instead"
        )
    raise DataError(
        f"{path} is not a .npy file: {kind or 'it does not begin like one'}; write it "
        "with numpy.save."
    )


def _is_torch(path: Path) -> bool:
    """Whether a zip archive is one of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _is_whole_map(array: np.ndarray) -> bool:
    """A memory map of a whole file, in the order of the file (a view of a part has the same class
    and offset)."""
    if not isinstance(array, np.memmap) or array.filename is None or array.mode == "c":
        return False
    in_order = array.flags.c_contiguous or array.flags.f_contiguous
    return in_order and array.offset + array.nbytes == os.stat(array.filename).st_size


def _part(array: np.ndarray, lines: slice, width: int) -> np.ndarray:
    """Lines of a memory-mapped matrix through a mapping of their own, which is freed with them:
    reading a row of a large map keeps whole cached pages of it in memory."""
    assert isinstance(array, np.memmap)
    offset = array.offset + lines.start * width * array.itemsize
    shape = (lines.stop - lines.start, width)
    return np.memmap(str(array.filename), array.dtype, mode="r", offset=offset, shape=shape)
