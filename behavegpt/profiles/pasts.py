"""Vectors of the clients as they were at an earlier moment, by what a member has fitted."""

from __future__ import annotations

import json
from pathlib import Path

from behavegpt.console import say
from behavegpt.errors import ConfigError
from behavegpt.io import scratch
from behavegpt.profiles.building import MEMBER, Report
from behavegpt.profiles.cache import digest
from behavegpt.profiles.members import Context
from behavegpt.profiles.settings import KINDS, ProfileSettings
from behavegpt.user_embeddings import UserEmbeddings


def vectors_at(context: Context, settings: ProfileSettings, member: Path) -> UserEmbeddings:
    """float32 vectors of the context's clients with data, from the events of its tables, aged at
    `context.at`; `member` is the folder of a built member. Kept in the cache.

    Raises ConfigError for vectors that were made elsewhere: those know no other moment.
    """
    built: Report = json.loads((member / MEMBER).read_text(encoding="utf-8"))
    kind = KINDS[built["settings"]["kind"]]
    block = kind.settings.model_validate(built["settings"])
    if block.kind == "entry":
        raise ConfigError(
            f"stack: {member.name} comes from elsewhere and has no vectors of an earlier moment; "
            f"leave it out by `without: [{member.name}]`."
        )

    key = digest(built["hash"], context.tables.digest, context.at)
    folder = context.cache / "vectors" / key[:20]
    if (folder / "entry.json").is_file():
        return UserEmbeddings.load(folder)

    seed = settings.seed if block.seed is None else block.seed
    own = Context(context.tables, context.cache, seed, context.device, context.at)
    found = kind.embed(own, block, member / "state")
    say(f"{member.name}: {len(found.vectors):,} clients at a cut")
    if not len(found.vectors):  # nobody had data yet: an empty file cannot be mapped
        return found
    with scratch(folder) as temporary:
        found.save(temporary, "float32")
    return UserEmbeddings.load(folder)
