"""Would the organizers take this entry (client_ids.npy + embeddings.npy)? Every problem, with its
place and remedy.

Arrays are memory-mapped and looked at in blocks: the peak stays far below the size of the files.
Nothing is unpickled, and nothing is allocated on a header's word. Beyond the organizers' checks:
repeated and unknown ids by name, vectors without any information, and `entry.json`, which tells
whether rows still belong to their ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.arrays import blocks, open_array
from behavegpt.datasets.challenge_files import ChallengeDirectory
from behavegpt.errors import DataError
from behavegpt.paths import local_path
from behavegpt.user_embeddings import CLIENT_IDS, EMBEDDINGS, ENTRY, MISSING, check_entry

MAX_DIMENSIONS = 2048
MANY_ZEROS = 0.01  # share of all-zero vectors above which it is worth a warning
_EXPONENT, _FRACTION, _SIGNLESS = np.uint16(0x7C00), np.uint16(0x03FF), np.uint16(0x7FFF)


@dataclass
class Findings:
    """What is wrong (an entry with problems is refused) and what is only worth a look."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    zero_vectors: int = 0


def validate(
    entry: str | Path, directory: ChallengeDirectory | None = None, subset: bool = False
) -> dict[str, Any]:
    """Check an entry, against the relevant clients of `directory` if given; `subset` lets some of
    them be absent.

    Returns {"ok", "entry", "clients", "dimensions", "zero_vectors", "problems", "warnings"}.
    """
    entry, findings = local_path(entry), Findings()
    ids, vectors = (_open(entry / name, findings) for name in (CLIENT_IDS, EMBEDDINGS))
    if _swapped(ids, vectors, findings):
        ids = vectors = None
    transposed = ids is not None and vectors is not None and _transposed(ids, vectors, findings)
    if ids is not None:
        ids = _check_ids(ids, findings)
    if ids is not None and directory is not None:
        _check_clients(ids, directory.relevant_clients, subset, findings)
    if vectors is not None:
        vectors = None if transposed else _check_shape(vectors, findings)
    if ids is not None and vectors is not None and len(ids) != len(vectors):
        findings.problems.append(
            f"{CLIENT_IDS} has {len(ids):,} clients but {EMBEDDINGS} has {len(vectors):,} rows; "
            "row i must be the vector of client i: write both in one go."
        )
        ids = None
    if vectors is not None and vectors.dtype == np.float16 and vectors.size:
        _check_values(vectors, ids, findings)
    if (
        ids is not None
        and vectors is not None
        and vectors.dtype.kind == "f"
        and vectors.itemsize <= 8
    ):
        _check_pairing(entry, ids, vectors, findings)
    return {
        "ok": not findings.problems,
        "entry": str(entry),
        "clients": None if ids is None else len(ids),
        "dimensions": None if vectors is None else vectors.shape[1],
        "zero_vectors": findings.zero_vectors,
        "problems": findings.problems,
        "warnings": findings.warnings,
    }


def _open(path: Path, findings: Findings) -> np.ndarray | None:
    try:
        return open_array(path)
    except DataError as error:
        findings.problems.append(str(error))
        return None


def _swapped(ids: np.ndarray | None, vectors: np.ndarray | None, findings: Findings) -> bool:
    """Whether each file holds what belongs into the other."""
    if ids is None or vectors is None or ids.ndim != 2 or vectors.ndim != 1:
        return False
    findings.problems.append(
        f"{CLIENT_IDS} holds a matrix {ids.shape} and {EMBEDDINGS} a row of {len(vectors):,} "
        "numbers: the two files "
        "are swapped; rename them."
    )
    return True


def _transposed(ids: np.ndarray, vectors: np.ndarray, findings: Findings) -> bool:
    """Whether the vectors stand in columns instead of rows."""
    if (
        ids.ndim != 1
        or vectors.ndim != 2
        or len(vectors) == len(ids)
        or vectors.shape[1] != len(ids)
    ):
        return False
    findings.problems.append(
        f"{EMBEDDINGS} is {vectors.shape[0]:,} x {vectors.shape[1]:,} for {len(ids):,} clients: "
        "the vectors stand in "
        "its columns; save vectors.T."
    )
    return True


def _check_ids(ids: np.ndarray, findings: Findings) -> np.ndarray | None:
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
            "after looking whether "
            "they survive it."
        )
    if ids.dtype.kind not in "iu":
        return None
    ids = np.array(ids).astype(np.int64)
    if not len(ids):
        findings.problems.append(f"{CLIENT_IDS} is empty; write one id for each relevant client.")
    _, first, inverse, count = np.unique(
        ids, return_index=True, return_inverse=True, return_counts=True
    )
    again = np.flatnonzero(first[inverse] != np.arange(len(ids)))
    if len(again):
        place = int(again[0])
        findings.problems.append(
            f"{CLIENT_IDS}: {int((count > 1).sum()):,} clients occur more than once; the first "
            "repetition is index "
            f"{place} (client {ids[place]}, also at index {first[inverse[place]]}); keep one row "
            "for each client."
        )
    return ids


def _check_clients(ids: np.ndarray, relevant: np.ndarray, subset: bool, findings: Findings) -> None:
    unknown = np.flatnonzero(~np.isin(ids, relevant))
    if len(unknown):
        place = int(unknown[0])
        findings.problems.append(
            f"{CLIENT_IDS}: {len(unknown):,} clients are not among the relevant clients; the "
            f"first is index {place} "
            f"(client {ids[place]}); leave out their rows, in both files."
        )
    absent = np.flatnonzero(~np.isin(relevant, ids))
    if len(absent) and not subset:
        findings.problems.append(
            f"{CLIENT_IDS}: {len(absent):,} of {len(relevant):,} relevant clients are missing; "
            "the first is client "
            f"{relevant[absent[0]]} (index {absent[0]} of relevant_clients.npy); add a row for "
            "each, also for clients "
            "without events (for a local test on a part of the clients: --subset)."
        )
    elif len(absent):
        findings.warnings.append(
            f"{len(absent):,} of {len(relevant):,} relevant clients are missing (allowed by "
            "--subset); scores of other "
            "sets of clients are not comparable, and the official check refuses the entry."
        )


def _check_shape(vectors: np.ndarray, findings: Findings) -> np.ndarray | None:
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
            "integers; save "
            "vectors.view('float16')."
        )
    elif vectors.dtype != np.float16:
        findings.problems.append(
            f"{EMBEDDINGS} holds {_name(vectors.dtype)}, should be float16; save "
            "vectors.astype('float16') (values "
            "beyond 65,504 become infinite: scale them first)."
        )
    return vectors


def _check_values(vectors: np.ndarray, ids: np.ndarray | None, findings: Findings) -> None:
    """NaN, infinity and vectors without information, on the bits of float16 (N, D)."""
    found: dict[str, list[tuple[int, int]]] = {"NaN": [], "infinite": []}
    count = dict.fromkeys(found, 0)
    zero, alike = np.ones(len(vectors), bool), True
    first = np.empty((1, vectors.shape[1]), np.uint16)
    for rows, columns, block in blocks(vectors):
        bits = block.view(np.uint16)
        zero[rows] &= ~(bits & _SIGNLESS).any(axis=1)
        if rows.start == 0:
            first[:, columns] = bits[:1]
        alike = alike and bool((bits == first[:, columns]).all())
        odd = (bits & _EXPONENT) == _EXPONENT
        if odd.any():
            nan = odd & ((bits & _FRACTION) != 0)
            for name, mask in (("NaN", nan), ("infinite", odd & ~nan)):
                count[name] += int(mask.sum())
                row, column = divmod(int(mask.argmax()), mask.shape[1])
                found[name] += [(rows.start + row, columns.start + column)] if mask.any() else []
    remedies = {
        "NaN": "find where they come from and fill them",
        "infinite": "scale the vectors below 65,504",
    }
    for name in (name for name, places in found.items() if places):
        row, column = min(found[name])
        findings.problems.append(
            f"{EMBEDDINGS}: {count[name]:,} values are {name}; the first is row "
            f"{row}{_client(ids, row)}, "
            f"column {column}; {remedies[name]}."
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
            f"row {first}"
            f"{_client(ids, first)}; if these are clients without events, a mean vector scores "
            "better than zeros."
        )


def _check_pairing(entry: Path, ids: np.ndarray, vectors: np.ndarray, findings: Findings) -> None:
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
