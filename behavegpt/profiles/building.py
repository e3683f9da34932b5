"""One member from its settings: built where its hash has changed, else kept.

FOLDER/                the member's vectors as an entry, float32, for the clients that have data
FOLDER/state/          what it fitted
FOLDER/member.json     hash, settings, time, memory
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt import __version__
from behavegpt.console import say
from behavegpt.errors import (
    BehaveGPTError,
    DataError,
    MissingExtraError,
    environment_fault,
    is_interruption,
)
from behavegpt.io import scratch, write_json
from behavegpt.profiles.cache import digest, peak_memory, reset_peak
from behavegpt.profiles.ensemble import row_order, rows_of
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.profiles.settings import KINDS, ProfileSettings
from behavegpt.user_embeddings import UserEmbeddings

Report = dict[str, Any]  # as it is written to JSON
MEMBER = "member.json"
MEMBERS = "members"  # folder of those fitted on the whole input


def attempt(name: str, settings: ProfileSettings, context: Context, parent: Path) -> Report:
    """Build a member into PARENT/NAME or keep what is there; a failure is told and does not stop
    the others."""
    block = settings.members[name]
    folder = parent / name

    try:
        seed = context.seed if block.seed is None else block.seed
        # whatever could change a vector; what only changes speed is not in `shaping`
        key = digest(block.shaping(), seed, settings.row_seed, context.tables.digest, __version__)
        if (folder / MEMBER).is_file():
            report: Report = json.loads((folder / MEMBER).read_text(encoding="utf-8"))
            if report["hash"] == key:
                return report | {"status": "kept"}
        report = _build(block, replace(context, seed=seed), folder, settings.row_seed)
        report |= {"hash": key, "settings": block.model_dump(mode="json")}
    except MissingExtraError as error:
        say(f"skipping {name}: {error}")
        return {"kind": block.kind, "status": "off", "reason": str(error)}
    except Exception as error:
        if is_interruption(error):
            raise KeyboardInterrupt from error  # no failure of this member: nothing goes on
        if isinstance(error, BehaveGPTError):
            say(f"{name} failed: {error}")
            return {"kind": block.kind, "status": "failed", "reason": str(error)}

        fault = environment_fault(error)  # else our bug: told in full, and the others go on
        say(f"{name} failed: {fault or traceback.format_exc()}")
        return {
            "kind": block.kind,
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}",
        }

    write_json(folder / MEMBER, report)

    say(
        f"{name}: {report['clients']:,} clients x {report['dimensions']} in "
        f"{report['fit_s'] + report['embed_s']:.1f} s"
    )
    return report | {"status": "built"}


def _build(block: MemberSettings, context: Context, folder: Path, row_seed: int) -> Report:
    """Fit and embed beside `folder` and put the result in its place; returns time, memory and
    sizes."""
    kind = KINDS[block.kind]
    with scratch(folder) as temporary:
        (temporary / "state").mkdir()
        reset_peak()
        started = time.perf_counter()
        kind.fit(context, block, temporary / "state")
        fitted = time.perf_counter()

        # not what `fit` could have kept: the vectors are those that a new client would get
        embeddings = kind.embed(context, block, temporary / "state")
        ended = time.perf_counter()

        chosen = _chosen_rows(block, embeddings, row_order(context.clients, row_seed))
        UserEmbeddings(embeddings.client_ids[chosen], embeddings.vectors[chosen]).save(
            temporary, "float32"
        )

    # the member is in its place, so there is nothing to resume
    shutil.rmtree(context.work(block), ignore_errors=True)
    return {
        "kind": block.kind,
        "clients": len(chosen),
        "dimensions": embeddings.vectors.shape[1],
        "fit_s": round(fitted - started, 2),
        "embed_s": round(ended - fitted, 2),
        "peak_bytes": peak_memory(),
    }


def _chosen_rows(
    block: MemberSettings, embeddings: UserEmbeddings, order: np.ndarray
) -> np.ndarray:
    """Indices (M,) that bring the vectors into the order of the clients (U,)."""
    rows = rows_of(order, embeddings.client_ids)
    if not len(rows):
        raise DataError("no client that is asked for has data for it; check its events and fields.")
    if (rows < 0).any() or len(np.unique(rows)) < len(rows):
        raise ValueError(
            f"kind {block.kind!r} gave vectors of clients that were not asked for, or two of one "
            "client"
        )

    return np.argsort(rows)
