"""One ensemble from members that are built: fitted and written where its hash has changed, else
kept.

FOLDER/                  the entry of all clients that are asked for, float16
FOLDER/state.safetensors everything fitted, see behavegpt.profiles.fitted
FOLDER/ensemble.json     hash, members, steps, and how the projection and the steps were chosen
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from behavegpt import __version__
from behavegpt.console import say
from behavegpt.datasets.challenge_files import ChallengeDirectory
from behavegpt.errors import DataError
from behavegpt.io import write_json
from behavegpt.profiles.building import MEMBERS, Report, attempt
from behavegpt.profiles.cache import digest
from behavegpt.profiles.choice import ChoiceSettings, choose
from behavegpt.profiles.ensemble import (
    EnsembleSettings,
    Joined,
    fit_ensemble,
    row_order,
    write_ensemble,
)
from behavegpt.profiles.fitted import Fitted, FittedMember, save_fitted
from behavegpt.profiles.members import Context, Step
from behavegpt.profiles.pasts import vectors_at
from behavegpt.profiles.settings import ProfileSettings
from behavegpt.profiles.stack import StackSettings, Window, fit_stack, open_window
from behavegpt.profiles.transforms import State
from behavegpt.user_embeddings import UserEmbeddings

ENSEMBLE = "ensemble.json"
BEFORE = "before"  # folder of the members that were fitted before a cut


class _Source(NamedTuple):
    """The members that an ensemble is made of."""

    folder: Path  # holds a folder of each
    hashes: dict[str, str]
    window: Window | None = None  # where the input is cut for the projection
    refitted: bool = False  # the members were fitted on what precedes the cuts


def assemble(
    folder: Path,
    block: EnsembleSettings,
    names: Sequence[str],
    settings: ProfileSettings,
    built: Report,
    context: Context,
) -> Report:
    """Fit and write an ensemble of the members `names`, or keep the one that is there."""
    source = _source(block.stack, names, settings, built, context)
    steps = {member: _steps(settings, block, member) for member in names}
    facts = _shaping(block, steps, settings, context) | {"hashes": source.hashes}
    key = digest(facts, __version__)

    if (folder / ENSEMBLE).is_file():
        report: Report = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        if report["hash"] == key:
            return report | {"status": "kept"}

    # gone first: an interrupted run leaves no ensemble.json beside another one's arrays
    (folder / ENSEMBLE).unlink(missing_ok=True)
    embeddings = _vectors(source, names, settings, context)
    order = row_order(context.clients, settings.row_seed)
    members = {member: (steps[member], embeddings[member]) for member in names}
    fitted, learned = _fitted(block, source, members, settings, context)

    report = write_ensemble(fitted, embeddings, order, folder)
    save_fitted(fitted, folder)
    report |= facts | learned | {"end": context.tables.last, "hash": key}
    report |= {"after": _plain(fitted.after.steps), "folder": source.folder.name}
    if source.refitted and source.window:
        report["at"] = source.window.now  # the members' own history ends earlier

    # last: it is what says that the folder is complete
    write_json(folder / ENSEMBLE, report)
    return report | {"status": "built"}


def _shaping(
    block: EnsembleSettings,
    steps: dict[str, tuple[Step, ...]],
    settings: ProfileSettings,
    context: Context,
) -> Report:
    """What shapes the ensemble beside its members, for its hash and its facts."""
    chooses = block.after == "auto"
    facts = {
        "row_seed": settings.row_seed,
        "impute": block.impute,
        "steps": {member: _plain(post) for member, post in steps.items()},
        "after": "auto" if block.after == "auto" else _plain(block.after),
    }
    if chooses:
        compared = block.choose or ChoiceSettings()
        facts |= {"choose": compared.model_dump(mode="json"), "labels": _labels(context)}
    if block.stack:
        facts["stack"] = block.stack.model_dump(mode="json")
    return facts | ({"seed": context.seed} if block.stack or chooses else {})


def _fitted(
    block: EnsembleSettings,
    source: _Source,
    members: dict[str, tuple[tuple[Step, ...], UserEmbeddings]],
    settings: ProfileSettings,
    context: Context,
) -> tuple[Fitted, Report]:
    """All that is fitted, and what there is to tell of what was learned or chosen."""
    order = row_order(context.clients, settings.row_seed)
    learned: Report = {}

    def stack(fitted: dict[str, FittedMember]) -> State:
        assert block.stack is not None
        assert source.window is not None
        joined = _at_cuts(source, source.window, fitted, settings, context)
        state, learned["stacking"] = fit_stack(context, block.stack, source.window, joined)
        return state

    def chosen_steps(joined: Joined) -> tuple[Step, ...]:
        chosen = choose(context, block.choose or ChoiceSettings(), joined, order)
        learned["choice"] = chosen.facts
        return chosen.steps

    steps = chosen_steps if block.after == "auto" else block.after
    found = fit_ensemble(members, block.impute, steps, order, stack if block.stack else None)
    return found, learned


def _source(
    stack: StackSettings | None,
    names: Sequence[str],
    settings: ProfileSettings,
    built: Report,
    context: Context,
) -> _Source:
    """The members as they are, or fitted again on the events before the cuts of `stack`."""
    out = Path(settings.out)
    hashes = {member: built[member]["hash"] for member in names}
    if stack is None:
        return _Source(out / MEMBERS, hashes)

    window = open_window(context, stack)
    if stack.fitted == "whole":
        return _Source(out / MEMBERS, hashes, window)

    first = int(window.cuts.moment.min())
    earlier = replace(context, tables=replace(context.tables, until=first))
    for name in names:
        say(f"{name}: on the events before the cuts of `stack`")
        report = attempt(name, settings, earlier, out / BEFORE)
        if report["status"] not in ("built", "kept"):
            raise DataError(
                f"stack: {name} could not be fitted on the events before the cuts "
                f"({report['reason']}); leave it out by `without`, or use fitted: whole."
            )
        hashes[name] = report["hash"]
    return _Source(out / BEFORE, hashes, window, True)


def _vectors(
    source: _Source, names: Sequence[str], settings: ProfileSettings, context: Context
) -> dict[str, UserEmbeddings]:
    """The vectors of the whole histories."""
    if not source.refitted:
        return {name: UserEmbeddings.load(source.folder / name) for name in names}

    assert source.window is not None
    now = replace(context, at=source.window.now)
    return {name: vectors_at(now, settings, source.folder / name) for name in names}


def _at_cuts(
    source: _Source,
    window: Window,
    fitted: dict[str, FittedMember],
    settings: ProfileSettings,
    context: Context,
) -> list[Joined]:
    """The members' columns of the window's clients, from what precedes each cut."""
    joined = []
    for moment in window.cuts.moment.tolist():
        past = replace(context, tables=replace(context.tables, until=moment), at=moment)
        vectors = {name: vectors_at(past, settings, source.folder / name) for name in fitted}
        joined.append(Joined(fitted, vectors, window.store.clients))
    return joined


def _labels(context: Context) -> str:
    """Hash of the window by which `after: auto` chooses; empty where there is none."""
    path = ChallengeDirectory(context.tables.path).target("train")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _steps(settings: ProfileSettings, block: EnsembleSettings, member: str) -> tuple[Step, ...]:
    """The steps of a member: the ensemble's, if it has some for all, else its own."""
    return settings.members[member].post if block.post is None else block.post


def _plain(steps: Sequence[Step]) -> list[Any]:
    """The steps as JSON, for the hash and for `embed_new`."""
    return [step if isinstance(step, str) else step.model_dump() for step in steps]
