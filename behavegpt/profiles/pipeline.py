"""From one YAML file to members and ensembles.

    data: {path: DIR}                     # a challenge directory after the split
    out: runs/profile
    members:
      stats:        {kind: handcrafted}
      ials_visits:  {kind: ials, item: url, weights: {page_visit: 1}}
    ensembles:
      all: {}
      zero: {impute: zero}

OUT/profile.yaml               the resolved settings
OUT/members/NAME/              the member's vectors as an entry, float32, for the clients that have
                               data
OUT/members/NAME/state/        what it fitted
OUT/members/NAME/member.json   hash, time, memory
OUT/ensembles/NAME/            entry for all clients that are asked for, float16; fitted state,
                               ensemble.json
OUT/alone/NAME/                the same for one member, to score it alone
OUT/cache/                     sequence stores, shared by members, and what an interrupted member
                               resumes from; may be deleted

A member runs again only when its hash changes: settings that shape its vectors (weights it starts
from by their own hash), data, seed, version of this package. A member that fails, or lacks its
library, does not lose the others' work.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt import __version__
from behavegpt.config import closest, dump_settings
from behavegpt.console import say
from behavegpt.errors import (
    BehaveGPTError,
    ConfigError,
    DataError,
    MissingExtraError,
    environment_fault,
    is_interruption,
)
from behavegpt.io import scratch, write_json, write_text
from behavegpt.locks import lock
from behavegpt.outputs import check_output
from behavegpt.profiles.cache import digest, peak_memory, reset_peak
from behavegpt.profiles.ensemble import (
    EnsembleSettings,
    fit_ensemble,
    row_order,
    rows_of,
    save_fitted,
    write_ensemble,
)
from behavegpt.profiles.events import open_events
from behavegpt.profiles.members import Context, MemberSettings, Step
from behavegpt.profiles.settings import KINDS, ProfileSettings
from behavegpt.user_embeddings import UserEmbeddings

Report = dict[str, Any]  # as it is written to JSON
MEMBER, ENSEMBLE = "member.json", "ensemble.json"


def run(settings: ProfileSettings, only: Sequence[str] = ()) -> Report:
    """Build the members (or those named in `only`, without ensembles) and the ensembles; results
    that are up to date are kept.

    Returns {"ok": no member failed, "members": {name: report}, "ensembles": {name: report}}.
    """
    for name in only:
        if name not in settings.members:
            raise ConfigError(f"{name!r} is not a member. {closest(name, list(settings.members))}")

    # checked before anything is built: a typing error in an ensemble would show after hours
    chosen = {
        name: block.chosen(list(settings.members)) for name, block in settings.ensembles.items()
    }
    out = Path(settings.out)
    check_output(out, "into")
    out.mkdir(parents=True, exist_ok=True)

    # two runs in one folder would build the same members and overwrite each other
    with lock(out, out / ".lock"):
        return _run(settings, only, chosen)


def _run(settings: ProfileSettings, only: Sequence[str], chosen: dict[str, list[str]]) -> Report:
    out = Path(settings.out)
    context = Context(open_events(settings.data), out / "cache", settings.seed, settings.device)

    # also when a run fails later: the folder then says what was asked for
    write_text(out / "profile.yaml", dump_settings(settings))
    members = {name: _attempt(name, settings, context) for name in only or settings.members}
    available = [name for name, report in members.items() if report["status"] in ("built", "kept")]

    ensembles: Report = {}
    for name, wanted in {} if only else chosen.items():
        present = [member for member in wanted if member in available]
        if present:
            folder, block = out / "ensembles" / name, settings.ensembles[name]
            ensembles[name] = _ensemble(folder, block, present, settings, members, context)
            ensembles[name]["lacking"] = [member for member in wanted if member not in present]

    # each member as an ensemble of its own, so that it can be scored without the others
    for name in available:
        _ensemble(out / "alone" / name, EnsembleSettings(), [name], settings, members, context)

    failed = [name for name, report in members.items() if report["status"] == "failed"]
    return {"ok": not failed, "out": str(out), "members": members, "ensembles": ensembles}


def _attempt(name: str, settings: ProfileSettings, context: Context) -> Report:
    """Build a member or keep what is there; a failure is told and does not stop the others."""
    block = settings.members[name]
    folder = Path(settings.out) / "members" / name

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


def _ensemble(
    folder: Path,
    block: EnsembleSettings,
    names: Sequence[str],
    settings: ProfileSettings,
    built: Report,
    context: Context,
) -> Report:
    """Fit and write an ensemble of members, or keep the one that is there."""
    steps = {member: _steps(settings, block, member) for member in names}
    plain = {member: _plain(post) for member, post in steps.items()}
    hashes = {member: built[member]["hash"] for member in names}
    after = _plain(block.after)
    key = digest(plain, after, hashes, block.impute, settings.row_seed, __version__)

    if (folder / ENSEMBLE).is_file():
        report: Report = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        if report["hash"] == key:
            return report | {"status": "kept"}

    # gone first: an interrupted run leaves no ensemble.json beside another one's arrays
    (folder / ENSEMBLE).unlink(missing_ok=True)
    embeddings = {
        member: UserEmbeddings.load(Path(settings.out) / "members" / member) for member in names
    }
    order = row_order(context.clients, settings.row_seed)
    fitted = fit_ensemble(
        {member: (steps[member], embeddings[member]) for member in names},
        block.impute,
        block.after,
        order,
    )
    report = write_ensemble(fitted, embeddings, order, folder)
    save_fitted(fitted, folder)
    report |= {
        "row_seed": settings.row_seed,
        "end": context.tables.last,
        "impute": block.impute,
        "steps": plain,
        "after": after,
        "hashes": hashes,
        "hash": key,
    }

    # last: it is what says that the folder is complete
    write_json(folder / ENSEMBLE, report)
    return report | {"status": "built"}


def _steps(settings: ProfileSettings, block: EnsembleSettings, member: str) -> tuple[Step, ...]:
    """The steps of a member: the ensemble's, if it has some for all, else its own."""
    return settings.members[member].post if block.post is None else block.post


def _plain(steps: Sequence[Step]) -> list[Any]:
    """The steps as JSON, for the hash and for `embed_new`."""
    return [step if isinstance(step, str) else step.model_dump() for step in steps]
