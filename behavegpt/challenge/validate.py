"""Would the organizers take this entry (client_ids.npy + embeddings.npy)?

Arrays are memory-mapped and looked at in blocks: the peak stays far below the size of the files.
Nothing is unpickled, and nothing is allocated on a header's word. Beyond the organizers' checks:
repeated and unknown ids by name, vectors without any information, and `entry.json`, which tells
whether rows still belong to their ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.arrays import open_array
from behavegpt.challenge.entry_checks import (
    Findings,
    check_clients,
    check_ids,
    check_pairing,
    check_shape,
    check_values,
)
from behavegpt.datasets.challenge_files import ChallengeDirectory
from behavegpt.errors import DataError
from behavegpt.paths import local_path
from behavegpt.user_embeddings import CLIENT_IDS, EMBEDDINGS


def validate(
    entry: str | Path, directory: ChallengeDirectory | None = None, subset: bool = False
) -> dict[str, Any]:
    """Check an entry, against the relevant clients of `directory` if given; `subset` lets some of
    them be absent.

    Returns {"ok", "entry", "clients", "dimensions", "zero_vectors", "problems", "warnings"}.
    """
    entry, findings = local_path(entry), Findings()
    # by their headers: no value is read yet
    ids, vectors = _open(entry / CLIENT_IDS, findings), _open(entry / EMBEDDINGS, findings)

    if _swapped(ids, vectors, findings):
        ids = vectors = None

    # then the other checks of shape would say the same in other words
    transposed = ids is not None and vectors is not None and _transposed(ids, vectors, findings)

    # each check runs only on what the ones before left comparable
    if ids is not None:
        ids = check_ids(ids, findings)
    if ids is not None and directory is not None:
        check_clients(ids, directory.relevant_clients, subset, findings)

    if vectors is not None:
        vectors = None if transposed else check_shape(vectors, findings)

    if ids is not None and vectors is not None and not _same_length(ids, vectors, findings):
        ids = None

    if vectors is not None and vectors.dtype == np.float16 and vectors.size:
        check_values(vectors, ids, findings)

    # checksums of an entry are of its numbers: of another type there is nothing to compare
    is_float = vectors is not None and vectors.dtype.kind == "f" and vectors.itemsize <= 8
    if ids is not None and vectors is not None and is_float:
        check_pairing(entry, ids, vectors, findings)

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
        # collected, not raised: one answer tells all that is wrong
        findings.problems.append(str(error))
        return None


def _swapped(ids: np.ndarray | None, vectors: np.ndarray | None, findings: Findings) -> bool:
    """Whether each file holds what belongs into the other."""
    if ids is None or vectors is None or ids.ndim != 2 or vectors.ndim != 1:
        return False

    findings.problems.append(
        f"{CLIENT_IDS} holds a matrix {ids.shape} and {EMBEDDINGS} a row of {len(vectors):,} "
        "numbers: the two files are swapped; rename them."
    )
    return True


def _transposed(ids: np.ndarray, vectors: np.ndarray, findings: Findings) -> bool:
    """Whether the vectors stand in columns instead of rows."""
    # a square matrix fits both ways, and is taken as it stands
    shapes_fit = ids.ndim == 1 and vectors.ndim == 2
    if not shapes_fit or len(vectors) == len(ids) or vectors.shape[1] != len(ids):
        return False

    findings.problems.append(
        f"{EMBEDDINGS} is {vectors.shape[0]:,} x {vectors.shape[1]:,} for {len(ids):,} clients: "
        "the vectors stand in its columns; save vectors.T."
    )
    return True


def _same_length(ids: np.ndarray, vectors: np.ndarray, findings: Findings) -> bool:
    """Whether each client has a vector."""
    if len(ids) == len(vectors):
        return True

    findings.problems.append(
        f"{CLIENT_IDS} has {len(ids):,} clients but {EMBEDDINGS} has {len(vectors):,} rows; "
        "row i must be the vector of client i: write both in one go."
    )
    return False
