"""The settings of a profile: data, members and ensembles, and the kinds of members there are."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from behavegpt.config import PathText, Settings
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
from behavegpt.profiles.ensemble import EnsembleSettings
from behavegpt.profiles.events import DataSettings
from behavegpt.profiles.future import contrastive, tower
from behavegpt.profiles.future import member as future
from behavegpt.profiles.members import Kind, MemberSettings

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
            # a slash or dots would leave the run folder, and name parts of the state file
            if not name.isidentifier():
                raise ValueError(f"{name!r} becomes a folder; write it with letters, digits and _")
        return blocks
