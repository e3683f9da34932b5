"""Vectors that something else has made, as a member: BehaveGPT's export, a baseline, another team's
entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from behavegpt.config import PathText
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.user_embeddings import UserEmbeddings, pairing


class EntrySettings(MemberSettings):
    """A folder with client_ids.npy and embeddings.npy."""

    kind: Literal["entry"] = "entry"
    path: PathText = Field(
        description="the folder; clients that were `missing` there are absent here too"
    )

    def shaping(self) -> dict[str, Any]:
        """The vectors themselves, wherever they lie."""
        entry = UserEmbeddings.load(self.path)
        return {"kind": self.kind, "pairing": pairing(entry.client_ids, entry.vectors)}


def fit(context: Context, settings: EntrySettings, folder: Path) -> None:
    """Nothing to fit."""


def embed(context: Context, settings: EntrySettings, folder: Path) -> UserEmbeddings:
    """(U, D) float32 of the asked clients that the folder has."""
    entry = UserEmbeddings.load(settings.path)

    there = np.isin(entry.client_ids, context.clients)
    if entry.missing is not None:
        there &= ~entry.missing
    return UserEmbeddings(entry.client_ids[there], entry.vectors[there].astype(np.float32))
