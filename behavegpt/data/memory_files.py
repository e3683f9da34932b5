"""The counts of a model with memory as a file beside its weights: FOLDER/memory.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from behavegpt.data.given import GIVEN
from behavegpt.data.memory_counts import Counts
from behavegpt.data.memory_tables import Tables
from behavegpt.errors import CheckpointError

FILE = "memory.safetensors"
# types in memory; files hold whole numbers in the smallest type that has room for them
_TYPES = {
    "locations": np.int64, "key": np.int64, "row": np.int32, "start": np.int64,
    "follower": np.int32, "counts": np.float32, "total": np.float32,
}  # fmt: skip


def save_counts(counts: Counts, folder: Path) -> None:
    """Write FOLDER/memory.safetensors."""
    numbers = {
        "shares": counts.shares,
        "edges": counts.edges,
        "slot_minutes": np.array([counts.slot_minutes]),
    }
    # absent where nothing is: files of models without it stay as they were
    if counts.given:
        numbers["given"] = np.array([name in counts.given for name in GIVEN])

    arrays = _narrowed(counts.tables) | numbers
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        folder / FILE,
    )


def load_counts(folder: Path) -> Counts:
    """What `save_counts` wrote. Raises CheckpointError when it is missing or damaged."""
    try:
        stored = load_file(folder / FILE)
        shares, edges = stored.pop("shares"), stored.pop("edges")
        slot_minutes = int(stored.pop("slot_minutes")[0])
        flags = stored.pop("given", np.zeros(len(GIVEN), bool))  # absent: nothing is given
        given = tuple(name for name, is_given in zip(GIVEN, flags, strict=True) if is_given)
        return Counts(_widened(stored), shares, edges, slot_minutes, given)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / FILE}: the counts of a model with memory are missing or damaged "
            f"({error}); restore the folder as it was written."
        ) from None


def _narrowed(tables: Tables) -> dict[str, np.ndarray]:
    """The tables as they are written: about half the size."""
    arrays: dict[str, np.ndarray] = tables._asdict()
    return arrays | {name: _narrow(arrays[name]) for name in _TYPES}


def _widened(stored: Mapping[str, np.ndarray]) -> Tables:
    """Tables of the arrays that `_narrowed` gave, or that earlier versions wrote. Raises TypeError
    where some are missing."""
    return Tables(
        **{name: array.astype(_TYPES.get(name, array.dtype)) for name, array in stored.items()}
    )


def _narrow(array: np.ndarray) -> np.ndarray:
    """The array in the smallest of some types that holds its values exactly; as it is if none
    does."""
    for kind in (np.uint8, np.uint16, np.int32):
        limits = np.iinfo(kind)
        if not array.size or (array.min() >= limits.min and array.max() <= limits.max):
            small = array.astype(kind)
            return small if np.array_equal(small, array) else array
    return array
