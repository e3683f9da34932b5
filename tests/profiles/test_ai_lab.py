"""The whole system from its one file, small enough for a test: every member, the ensembles, an
entry, new clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from behavegpt.challenge.validate import validate
from behavegpt.config import read_settings
from behavegpt.profiles.events import DataSettings
from behavegpt.profiles.new_clients import embed_new
from behavegpt.profiles.pipeline import run
from behavegpt.profiles.settings import ProfileSettings
from behavegpt.user_embeddings import UserEmbeddings
from tests.conftest import ROOT
from tests.profiles.makers import renamed_clients, without_ties

TINY = {
    "gru_autoencoder": ["hidden=8", "training.steps=2", "training.batch=16"],
    "next_event": [
        "shape.embedding_size=8",
        "shape.layers=1",
        "training.steps=2",
        "training.batch=16",
    ],
    "future": [
        "shape.embedding_size=4",
        "dimensions=8",
        "cut.moments=2",
        "training.steps=2",
        "training.batch=16",
    ],
    "contrastive": [
        "shape.embedding_size=4",
        "dimensions=8",
        "cut.moments=2",
        "training.steps=2",
        "training.batch=16",
    ],
    "behavegpt": [
        "model.embedding_size=4",
        "train.steps=2",
        "train.batch_events=256",
        "min_count=1",
    ],
    "factorization": ["factors=4", "training.steps=2"],
    "ials": ["factors=4"],
    "text": ["model=no/such-model"],
    "handcrafted": [],
}
OFF = {"smollm_all", "smollm_searches"}


@pytest.mark.slow
def test_every_member_of_the_file_runs(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("implicit", reason="needs the extra `profiles`")
    # the order of simultaneous events depends on the client, so other clients would differ in it
    apart = without_ties(small, tmp_path / "apart")
    config = ROOT / "configs" / "profiles" / "ai_lab.yaml"
    plain = read_settings(ProfileSettings, config, [f"data.path={apart}", f"out={tmp_path}"])
    assert {block.kind for block in plain.members.values()} == set(TINY)
    tiny = [
        f"members.{name}.{change}"
        for name, block in plain.members.items()
        for change in TINY[block.kind]
    ]
    settings = read_settings(
        ProfileSettings, config, [f"data.path={apart}", f"out={tmp_path / 'run'}", *tiny]
    )
    facts = run(settings)
    statuses = {name: member["status"] for name, member in facts["members"].items()}
    assert facts["ok"], facts
    assert {name for name, status in statuses.items() if status == "off"} == OFF
    assert {status for name, status in statuses.items() if name not in OFF} == {"built"}
    assert facts["ensembles"]["all"]["lacking"] == sorted(OFF)
    for line in capsys.readouterr().err.splitlines():
        assert "failed" not in line
    entry = tmp_path / "run" / "ensembles" / "all"
    assert not validate(entry)["problems"]
    again = run(settings)
    assert {member["status"] for name, member in again["members"].items() if name not in OFF} == {
        "kept"
    }
    # clients of another directory who did the same get the same vector, up to rounding
    fitted = UserEmbeddings.load(entry)
    other = renamed_clients(apart, tmp_path / "new", np.sort(fitted.client_ids)[::4])
    embed_new(tmp_path / "run", DataSettings(path=str(other)), tmp_path / "entry")
    new = UserEmbeddings.load(tmp_path / "entry")
    rows = [fitted.client_ids.tolist().index(client - 10**6) for client in new.client_ids]
    difference = np.abs(
        new.vectors.astype(np.float32) - np.asarray(fitted.vectors, np.float32)[rows]
    )
    assert difference.max() < 2e-3  # float16
