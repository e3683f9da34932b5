"""Vectors of other clients, or of later events, with what a run of the pipeline has fitted."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from behavegpt.config import closest, read_settings
from behavegpt.console import say
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import workspace
from behavegpt.paths import local_path
from behavegpt.profiles.assembly import ENSEMBLE
from behavegpt.profiles.building import MEMBER, MEMBERS, Report
from behavegpt.profiles.ensemble import row_order, write_ensemble
from behavegpt.profiles.events import DataSettings, EventTables, open_events
from behavegpt.profiles.fitted import load_fitted
from behavegpt.profiles.members import Context, Step
from behavegpt.profiles.settings import KINDS, ProfileSettings
from behavegpt.profiles.statistics import DAY
from behavegpt.user_embeddings import UserEmbeddings


def embed_new(
    run_folder: str | Path,
    data: DataSettings,
    out: str | Path,
    ensemble: str = "all",
    at: str | None = None,
) -> Report:
    """Embed the clients of another directory with what a run has fitted, and write their entry into
    `out`.

    Ages and windows count back from the midnight at which the day `at` (ISO) begins; by default
    from the end of the fitted history, or from the day after the directory's last event where that
    is later. Raises ConfigError for a day that does not lie behind all events.
    """
    run_folder, out = local_path(run_folder), local_path(out)
    settings = read_settings(ProfileSettings, run_folder / "profile.yaml")
    folder = run_folder / "ensembles" / ensemble
    if not (folder / ENSEMBLE).is_file():
        raise ConfigError(
            f"{folder} holds no ensemble; {closest(ensemble, list(settings.ensembles))}"
        )

    report: Report = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    read = TypeAdapter(tuple[Step, ...]).validate_python
    steps = {name: read(plain) for name, plain in report["steps"].items()}
    after = read(report.get("after", ()))  # absent from ensembles of earlier versions
    out.mkdir(parents=True, exist_ok=True)

    with workspace(out / "embed") as cache:
        tables = open_events(data)
        moment = _reference(tables, at, report.get("end"))
        if moment is None:
            moment = report.get("at")  # of members whose own history ends before the input does
        context = Context(tables, cache, settings.seed, settings.device, moment)
        embeddings = {}
        members = run_folder / report.get("folder", MEMBERS)
        for name, key in report["hashes"].items():
            embeddings[name] = _embedded(context, members / name, key, folder)
            say(f"{name}: {len(embeddings[name].vectors):,} clients")

        order = row_order(context.clients, settings.row_seed)
        return write_ensemble(load_fitted(steps, after, folder), embeddings, order, out)


def _embedded(context: Context, member: Path, key: str, ensemble: Path) -> UserEmbeddings:
    """The vectors by what a member has fitted. Raises DataError where the ensemble (its folder)
    was made of another fit of it."""
    built: Report = json.loads((member / MEMBER).read_text(encoding="utf-8"))

    # vectors of a member that was fitted again would not fit the ensemble's steps
    if built["hash"] != key:
        raise DataError(
            f"{member} was built again after {ensemble}; run the profile, which renews the "
            "ensemble."
        )

    kind = KINDS[built["settings"]["kind"]]
    block = kind.settings.model_validate(built["settings"])

    # always through `embed`, also for clients of the first run: one path for all
    return kind.embed(context, block, member / "state")


def _reference(tables: EventTables, at: str | None, fitted_end: int | None) -> int | None:
    """The moment (epoch seconds) from which ages count; None: where the fitted history ends."""
    last = tables.last
    if at is not None:
        try:
            moment = int(pd.Timestamp(date.fromisoformat(at)).timestamp())
        except ValueError:
            raise ConfigError(f"--at {at}: not a day such as 2026-01-31.") from None
        if moment <= last:
            raise ConfigError(
                f"--at {at}: {tables.path} has events up to {_day(last)}, and a vector may not "
                "know what comes after its day; name a later one, or leave those events out."
            )
        return moment

    if fitted_end is None:  # an ensemble of an earlier version does not say where its events end
        say("built by an earlier version: ages count from the end of its own events; run it again")
        return None
    if last <= fitted_end:
        return None

    moment = (last // DAY + 1) * DAY
    say(
        f"ages count back from {_day(moment)}: the events reach beyond {_day(fitted_end)}, where "
        "those that were fitted end"
    )
    return moment


def _day(moment: int) -> str:
    return f"{pd.Timestamp(moment, unit='s'):%Y-%m-%d}"
