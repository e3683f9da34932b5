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
OUT/before/NAME/               the member fitted on the events before a cut, for `stack`
OUT/cache/                     sequence stores, shared by members, and what an interrupted member
                               resumes from; may be deleted

A member runs again only when its hash changes: settings that shape its vectors (weights it starts
from by their own hash), data, seed, version of this package. A member that fails, or lacks its
library, does not lose the others' work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from behavegpt.config import closest, dump_settings
from behavegpt.errors import ConfigError
from behavegpt.io import write_text
from behavegpt.locks import lock
from behavegpt.outputs import check_output
from behavegpt.profiles.assembly import assemble
from behavegpt.profiles.building import MEMBERS, Report, attempt
from behavegpt.profiles.ensemble import EnsembleSettings
from behavegpt.profiles.events import open_events
from behavegpt.profiles.members import Context
from behavegpt.profiles.settings import ProfileSettings


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
    chosen_members = only or settings.members
    members = {name: attempt(name, settings, context, out / MEMBERS) for name in chosen_members}
    available = [name for name, report in members.items() if report["status"] in ("built", "kept")]

    ensembles: Report = {}
    for name, wanted in {} if only else chosen.items():
        present = [member for member in wanted if member in available]
        if present:
            folder, block = out / "ensembles" / name, settings.ensembles[name]
            ensembles[name] = assemble(folder, block, present, settings, members, context)
            ensembles[name]["lacking"] = [member for member in wanted if member not in present]

    # each member as an ensemble of its own, so that it can be scored without the others
    for name in available:
        assemble(out / "alone" / name, EnsembleSettings(), [name], settings, members, context)

    failed = [name for name, report in members.items() if report["status"] == "failed"]
    return {"ok": not failed, "out": str(out), "members": members, "ensembles": ensembles}
