"""What may be wrong with the ids and the vectors of an entry, each with its place and remedy.

Shapes: N clients of the entry, D dimensions of their vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from behavegpt.arrays import blocks, open_array
from behavegpt.errors import DataError
from behavegpt.user_embeddings import CLIENT_IDS, EMBEDDINGS, ENTRY, MISSING, check_entry

MAX_DIMENSIONS = 2048
MANY_ZEROS = 0.01  # share of all-zero vectors above which it is worth a warning
# the bits of a float16
_EXPONENT, _FRACTION, _SIGNLESS = np.uint16(0x7C00), np.uint16(0x03FF), np.uint16(0x7FFF)


@dataclass
class Findings:
    """What is wrong (an entry with problems is refused) and what is only worth a look."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    zero_vectors: int = 0


def check_ids(ids: np.ndarray, findings: Findings) -> np.ndarray | None:
    """The ids (N,) as int64 if they can be compared at all."""
    if ids.ndim != 1:
        findings.problems.append(
            f"{CLIENT_IDS} is {ids.ndim}-dimensional (shape {ids.shape}), should be "
            "one-dimensional; save ids.ravel()."
        )
        return None
    if ids.dtype != np.int64:
        findings.problems.append(
            f"{CLIENT_IDS} holds {_name(ids.dtype)}, should be int64; save ids.astype('int64') "
            "after looking whether they survive it."
        )

    # floats or text: nothing can be looked up by them
    if ids.dtype.kind not in "iu":
        return None

    ids = np.array(ids).astype(np.int64)
    if not len(ids):
        findings.problems.append(f"{CLIENT_IDS} is empty; write one id for each relevant client.")
    _, first, inverse, count = np.unique(
        ids, return_index=True, return_inverse=True, return_counts=True
    )

    again = np.flatnonzero(first[inverse] != np.arange(len(ids)))  # (n,)
    if len(again):
        place = int(again[0])
        findings.problems.append(
            f"{CLIENT_IDS}: {int((count > 1).sum()):,} clients occur more than once; the first "
            f"repetition is index {place} (client {ids[place]}, also at index "
            f"{first[inverse[place]]}); keep one row for each client."
        )

    return ids


def check_clients(ids: np.ndarray, relevant: np.ndarray, subset: bool, findings: Findings) -> None:
    unknown = np.flatnonzero(~np.isin(ids, relevant))  # (n,)
    if len(unknown):
        place = int(unknown[0])
        findings.problems.append(
            f"{CLIENT_IDS}: {len(unknown):,} clients are not among the relevant clients; the "
            f"first is index {place} (client {ids[place]}); leave out their rows, in both files."
        )

    absent = np.flatnonzero(~np.isin(relevant, ids))  # (n,)
    if len(absent) and not subset:
        findings.problems.append(
            f"{CLIENT_IDS}: {len(absent):,} of {len(relevant):,} relevant clients are missing; "
            f"the first is client {relevant[absent[0]]} (index {absent[0]} of "
            "relevant_clients.npy); add a row for each, also for clients without events (for a "
            "local test on a part of the clients: --subset)."
        )
    elif len(absent):
        findings.warnings.append(
            f"{len(absent):,} of {len(relevant):,} relevant clients are missing (allowed by "
            "--subset); scores of other sets of clients are not comparable, and the official check "
            "refuses the entry."
        )


def check_shape(vectors: np.ndarray, findings: Findings) -> np.ndarray | None:
    """The vectors if they are a matrix."""
    if vectors.ndim != 2:
        kind = "a structured array" if vectors.dtype.names else f"{vectors.ndim}-dimensional"
        findings.problems.append(
            f"{EMBEDDINGS} is {kind} (shape {vectors.shape}), should be a matrix (clients, "
            "dimensions)."
        )
        return None

    rows, width = vectors.shape
    if not rows:
        findings.problems.append(f"{EMBEDDINGS} has no rows; write one for each relevant client.")
    if not width:
        findings.problems.append(
            f"{EMBEDDINGS} has 0 dimensions; write vectors of 1 to {MAX_DIMENSIONS}."
        )
    if width > MAX_DIMENSIONS:
        findings.problems.append(
            f"{EMBEDDINGS} has {width:,} dimensions, {MAX_DIMENSIONS} is the most; leave out or "
            "project the rest."
        )

    if vectors.dtype == np.uint16:
        findings.problems.append(
            f"{EMBEDDINGS} holds uint16: probably float16 numbers whose bits were stored as "
            "integers; save vectors.view('float16')."
        )
    elif vectors.dtype != np.float16:
        findings.problems.append(
            f"{EMBEDDINGS} holds {_name(vectors.dtype)}, should be float16; save "
            "vectors.astype('float16') (values beyond 65,504 become infinite: scale them first)."
        )

    return vectors


def check_values(vectors: np.ndarray, ids: np.ndarray | None, findings: Findings) -> None:
    """NaN, infinity and vectors without information, on the bits of float16 (N, D)."""
    places: dict[str, list[tuple[int, int]]] = {"NaN": [], "infinite": []}
    count = dict.fromkeys(places, 0)
    zero, alike = np.ones(len(vectors), bool), True  # (N,)

    # on the bits: numpy converts every float16 before it compares
    first = np.empty((1, vectors.shape[1]), np.uint16)
    for rows, columns, block in blocks(vectors):
        bits = block.view(np.uint16)  # (rows, columns)
        zero[rows] &= ~(bits & _SIGNLESS).any(axis=1)
        # blocks come row by row, columns within them
        if rows.start == 0:
            first[:, columns] = bits[:1]
        # all rows like the first one, as bits
        alike = alike and bool((bits == first[:, columns]).all())

        # NaN and infinity have all bits of the exponent set, NaN some of the fraction
        odd = (bits & _EXPONENT) == _EXPONENT  # (rows, columns)
        if odd.any():
            nan = odd & ((bits & _FRACTION) != 0)
            for name, mask in (("NaN", nan), ("infinite", odd & ~nan)):
                count[name] += int(mask.sum())
                if mask.any():
                    row, column = divmod(int(mask.argmax()), mask.shape[1])
                    places[name].append((rows.start + row, columns.start + column))

    remedies = {
        "NaN": "find where they come from and fill them",
        "infinite": "scale the vectors below 65,504",
    }

    for name in filter(places.get, places):
        row, column = min(places[name])
        findings.problems.append(
            f"{EMBEDDINGS}: {count[name]:,} values are {name}; the first is row "
            f"{row}{_client(ids, row)}, column {column}; {remedies[name]}."
        )

    _check_information(zero, alike, ids, findings)


def _check_information(
    zero: np.ndarray, alike: bool, ids: np.ndarray | None, findings: Findings
) -> None:
    findings.zero_vectors = int(zero.sum())
    if (alike or zero.all()) and len(zero) > 1:
        what = "zero" if zero.all() else "the same"
        findings.problems.append(
            f"{EMBEDDINGS}: all {len(zero):,} vectors are {what}, so they tell nothing; export "
            "them again."
        )
    elif zero.mean() > MANY_ZEROS:
        first = int(np.flatnonzero(zero)[0])
        findings.warnings.append(
            f"{EMBEDDINGS}: {zero.sum():,} of {len(zero):,} vectors are all zero, the first is "
            f"row {first}{_client(ids, first)}; if these are clients without events, a mean "
            "vector scores better than zeros."
        )


def check_pairing(entry: Path, ids: np.ndarray, vectors: np.ndarray, findings: Findings) -> None:
    """Compare with entry.json, written by the exporter; without it a change of order on one side
    goes unnoticed."""
    path = entry / ENTRY
    if path.is_dir():
        findings.problems.append(
            f"{path} is a folder, where the exporter writes a file; remove it."
        )
        return

    if not path.is_file():
        findings.warnings.append(
            f"no {ENTRY} beside the arrays, so it cannot be checked whether rows are in the order "
            "of their ids."
        )
        return

    try:
        # rows that the exporter filled, for clients without events
        missing = (
            np.array(open_array(entry / MISSING), bool) if (entry / MISSING).exists() else None
        )
        check_entry(entry, ids, vectors, missing)
    except DataError as error:
        findings.problems.append(str(error))


def _client(ids: np.ndarray | None, row: int) -> str:
    return "" if ids is None or row >= len(ids) else f" (client {ids[row]})"


def _name(dtype: np.dtype) -> str:
    """A type for people; says when only the byte order is wrong."""
    return (
        str(dtype)
        if dtype.isnative
        else f"{dtype.newbyteorder('=')} in foreign byte order ({dtype})"
    )
