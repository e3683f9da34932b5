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
data OUT/members/NAME/state/        what it fitted       OUT/members/NAME/member.json   hash, time,
memory OUT/ensembles/NAME/            entry for all clients that are asked for, float16; fitted
state, ensemble.json OUT/alone/NAME/                the same for one member, to score it alone
OUT/cache/                     sequence stores, shared by members, and what a member that was
stopped goes on from; may be deleted

A member runs again only when its hash changes: settings that shape its vectors (weights it starts
from by their own hash), data, seed, version of this package. A member that fails,
or lacks its library, does not lose the others' work.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, field_validator

from behavegpt import __version__
from behavegpt.config import PathText, Settings, closest, dump_settings, read_settings
from behavegpt.console import say
from behavegpt.errors import (
    BehaveGPTError,
    ConfigError,
    DataError,
    MissingExtraError,
    environment_fault,
    is_interruption,
)
from behavegpt.io import check_output, lock, scratch, workspace, write_json, write_text
from behavegpt.paths import local_path
from behavegpt.profiles import (
    behavegpt_member,
    factorization,
    gru_autoencoder,
    handcrafted,
    ials,
    next_event,
    precomputed,
    text,
)
from behavegpt.profiles.cache import digest, peak_memory, reset_peak
from behavegpt.profiles.ensemble import (
    EnsembleSettings,
    fit_ensemble,
    load_fitted,
    rows_of,
    save_fitted,
    write_ensemble,
)
from behavegpt.profiles.events import DataSettings, open_events
from behavegpt.profiles.future import contrastive, tower
from behavegpt.profiles.future import member as future
from behavegpt.profiles.members import Context, Kind, MemberSettings, Step
from behavegpt.user_embeddings import UserEmbeddings

# What YAML calls each kind of member; see members.py for what a kind is.
KINDS: dict[str, Kind] = {
    "behavegpt": Kind(
        behavegpt_member.BehaviorSettings, behavegpt_member.fit, behavegpt_member.embed
    ),
    "entry": Kind(precomputed.EntrySettings, precomputed.fit, precomputed.embed),
    "factorization": Kind(
        factorization.FactorizationSettings, factorization.fit, factorization.embed
    ),
    "gru_autoencoder": Kind(
        gru_autoencoder.GruSettings, gru_autoencoder.fit, gru_autoencoder.embed
    ),
    "handcrafted": Kind(handcrafted.HandcraftedSettings, handcrafted.fit, handcrafted.embed),
    "ials": Kind(ials.IalsSettings, ials.fit, ials.embed),
    "contrastive": Kind(contrastive.ContrastiveSettings, contrastive.fit, tower.embed_tower),
    "future": Kind(future.FutureSettings, future.fit, tower.embed_tower),
    "next_event": Kind(next_event.NextEventSettings, next_event.fit, next_event.embed),
    "text": Kind(text.TextSettings, text.fit, text.embed),
}

if TYPE_CHECKING:
    AnyMember = MemberSettings
else:  # a member's YAML block is checked as the settings of its `kind`
    AnyMember = Annotated[
        reduce(or_, (kind.settings for kind in KINDS.values())), Field(discriminator="kind")
    ]

Facts = dict[str, Any]
MEMBER, ENSEMBLE = "member.json", "ensemble.json"


class ProfileSettings(Settings):
    """A profile: data, members and ensembles."""

    data: DataSettings
    out: PathText = Field(description="run folder")
    seed: int = 0
    device: str = Field(
        "auto", description="for members that train a network: auto, cpu, cuda, cuda:1, ..."
    )
    row_seed: int = Field(
        0,
        description="order of the rows of every entry (the challenge's evaluator does not shuffle)",
    )
    members: dict[str, AnyMember] = Field(min_length=1)
    ensembles: dict[str, EnsembleSettings] = {"all": EnsembleSettings()}

    @field_validator("members", "ensembles")
    @classmethod
    def _file_names(cls, blocks: dict[str, Any]) -> dict[str, Any]:
        for name in blocks:
            if not name.isidentifier():
                raise ValueError(f"{name!r} becomes a folder; write it with letters, digits and _")
        return blocks


def run(settings: ProfileSettings, only: Sequence[str] = ()) -> Facts:
    """Build the members (or those named in `only`, without ensembles) and the ensembles; what is
    there is kept.

    Returns {"ok": no member failed, "members": {name: facts}, "ensembles": {name: facts}}.
    """
    for name in only:
        if name not in settings.members:
            raise ConfigError(f"{name!r} is no member. {closest(name, list(settings.members))}")
    chosen = {
        name: block.chosen(list(settings.members)) for name, block in settings.ensembles.items()
    }
    out = Path(settings.out)
    check_output(out, "into")
    out.mkdir(parents=True, exist_ok=True)
    with lock(out, out / ".lock"):
        return _run(settings, only, chosen)


def _run(settings: ProfileSettings, only: Sequence[str], chosen: dict[str, list[str]]) -> Facts:
    out = Path(settings.out)
    context = Context(open_events(settings.data), out / "cache", settings.seed, settings.device)
    write_text(out / "profile.yaml", dump_settings(settings))
    members = {name: _attempt(name, settings, context) for name in only or settings.members}
    there = [name for name, facts in members.items() if facts["status"] in ("built", "kept")]
    ensembles: Facts = {}
    for name, wanted in {} if only else chosen.items():
        present = [member for member in wanted if member in there]
        if present:
            folder, block = out / "ensembles" / name, settings.ensembles[name]
            ensembles[name] = _ensemble(folder, block, present, settings, members, context)
            ensembles[name]["lacking"] = [member for member in wanted if member not in present]
    for name in there:
        _ensemble(out / "alone" / name, EnsembleSettings(), [name], settings, members, context)
    failed = [name for name, facts in members.items() if facts["status"] == "failed"]
    return {"ok": not failed, "out": str(out), "members": members, "ensembles": ensembles}


def embed_new(
    run_folder: str | Path, data: DataSettings, out: str | Path, ensemble: str = "all"
) -> Facts:
    """Embed the clients of another directory with what a run has fitted, and write their entry into
    `out`."""
    run_folder, out = local_path(run_folder), local_path(out)
    settings = read_settings(ProfileSettings, run_folder / "profile.yaml")
    folder = run_folder / "ensembles" / ensemble
    if not (folder / ENSEMBLE).is_file():
        raise ConfigError(
            f"{folder} holds no ensemble; {closest(ensemble, list(settings.ensembles))}"
        )
    facts: Facts = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    steps = {
        name: TypeAdapter(tuple[Step, ...]).validate_python(plain)
        for name, plain in facts["steps"].items()
    }
    out.mkdir(parents=True, exist_ok=True)
    with workspace(out / "embed") as cache:
        context = Context(open_events(data), cache, settings.seed, settings.device)
        embeddings = {}
        for name, key in facts["hashes"].items():
            member = run_folder / "members" / name
            made: Facts = json.loads((member / MEMBER).read_text(encoding="utf-8"))
            if made["hash"] != key:
                raise DataError(
                    f"{member} was built again after {folder}; run the profile, which renews the "
                    "ensemble."
                )
            kind = KINDS[made["settings"]["kind"]]
            block = kind.settings.model_validate(made["settings"])
            embeddings[name] = kind.embed(context, block, member / "state")
            say(f"{name}: {len(embeddings[name].vectors):,} clients")
        order = row_order(context.clients, settings.row_seed)
        return write_ensemble(load_fitted(steps, folder), embeddings, order, out)


def row_order(clients: np.ndarray, seed: int) -> np.ndarray:
    """The clients (U,) in an order that depends on the seed and on who they are, not on their
    order."""
    return np.sort(clients)[np.random.default_rng(seed).permutation(len(clients))]


def _attempt(name: str, settings: ProfileSettings, context: Context) -> Facts:
    """Build a member or keep what is there; a failure is told and does not stop the others."""
    block = settings.members[name]
    folder = Path(settings.out) / "members" / name
    try:
        seed = context.seed if block.seed is None else block.seed
        key = digest(block.shaping(), seed, settings.row_seed, context.tables.digest, __version__)
        if (folder / MEMBER).is_file():
            facts: Facts = json.loads((folder / MEMBER).read_text(encoding="utf-8"))
            if facts["hash"] == key:
                return facts | {"status": "kept"}
        facts = _build(block, replace(context, seed=seed), folder, settings.row_seed)
        facts |= {"hash": key, "settings": block.model_dump(mode="json")}
    except MissingExtraError as error:
        say(f"{name} is off: {error}")
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
    write_json(folder / MEMBER, facts)
    say(
        f"{name}: {facts['clients']:,} clients x {facts['dimensions']} in "
        f"{facts['fit_s'] + facts['embed_s']:.1f} s"
    )
    return facts | {"status": "built"}


def _build(block: MemberSettings, context: Context, folder: Path, row_seed: int) -> Facts:
    """Fit and embed beside `folder` and put the result in its place; returns time, memory and
    sizes."""
    kind = KINDS[block.kind]
    with scratch(folder) as temporary:
        (temporary / "state").mkdir()
        reset_peak()
        started = time.perf_counter()
        kind.fit(context, block, temporary / "state")
        fitted = time.perf_counter()
        embeddings = kind.embed(context, block, temporary / "state")
        ended = time.perf_counter()
        chosen = _chosen_rows(block, embeddings, row_order(context.clients, row_seed))
        UserEmbeddings(embeddings.client_ids[chosen], embeddings.vectors[chosen]).save(
            temporary, "float32"
        )
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
    built: Facts,
    context: Context,
) -> Facts:
    """Fit and write an ensemble of members, or keep the one that is there."""
    steps = {member: _steps(settings, block, member) for member in names}
    plain = {
        member: [step if isinstance(step, str) else step.model_dump() for step in s]
        for member, s in steps.items()
    }
    hashes = {member: built[member]["hash"] for member in names}
    key = digest(plain, hashes, block.impute, settings.row_seed, __version__)
    if (folder / ENSEMBLE).is_file():
        facts: Facts = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        if facts["hash"] == key:
            return facts | {"status": "kept"}
    (folder / ENSEMBLE).unlink(missing_ok=True)
    embeddings = {
        member: UserEmbeddings.load(Path(settings.out) / "members" / member) for member in names
    }
    fitted = fit_ensemble(
        {member: (steps[member], embeddings[member]) for member in names}, block.impute
    )
    facts = write_ensemble(
        fitted, embeddings, row_order(context.clients, settings.row_seed), folder
    )
    save_fitted(fitted, folder)
    facts |= {
        "row_seed": settings.row_seed,
        "impute": block.impute,
        "steps": plain,
        "hashes": hashes,
        "hash": key,
    }
    write_json(folder / ENSEMBLE, facts)
    return facts | {"status": "built"}


def _steps(settings: ProfileSettings, block: EnsembleSettings, member: str) -> tuple[Step, ...]:
    """The steps of a member: the ensemble's, if it has some for all, else its own."""
    return settings.members[member].post if block.post is None else block.post
