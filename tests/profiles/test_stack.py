"""The learned projection: what it reads and is trained on, and what new clients get."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from behavegpt.errors import ConfigError
from behavegpt.profiles.events import DataSettings, open_events
from behavegpt.profiles.future.tasks import targets
from behavegpt.profiles.future.windows import DAY, CutSettings
from behavegpt.profiles.members import Context
from behavegpt.profiles.new_clients import embed_new
from behavegpt.profiles.pipeline import run
from behavegpt.profiles.settings import KINDS, ProfileSettings
from behavegpt.profiles.stack import Projection, StackSettings, fit_stack, open_window, project
from behavegpt.profiles.task import TrainingSettings
from behavegpt.user_embeddings import UserEmbeddings
from tests.profiles.makers import read_events, renamed_clients, without_ties

CUT = {"horizon": 10, "moments": 2, "step": 5}
STACK = {"columns": 5, "cut": CUT, "training": {"epochs": 2, "batch": 8}}
MEMBERS: dict[str, dict[str, Any]] = {
    "stats": {"kind": "handcrafted"},
    "future": {
        "kind": "future",
        "fields": ["event", "category"],
        "predict": {"category": 3},
        "cut": CUT,
        "shape": {"embedding_size": 4, "layers": 1, "heads": 2},
        "dimensions": 4,
        "training": {"steps": 2, "batch": 16},
    },
}
BEHAVEGPT: dict[str, dict[str, Any]] = {
    "behavegpt": {
        "kind": "behavegpt",
        "model": {"embedding_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2},
        "train": {"steps": 2, "batch_events": 256},
        "min_count": 1,
    },
}


def profile(data: Path, out: Path, stack: dict[str, Any], **changes: Any) -> ProfileSettings:
    ensembles = {"stacked": {"stack": STACK | stack, "after": ["center"]}}
    tree = {"data": {"path": str(data)}, "out": str(out), "members": MEMBERS, **changes}
    return ProfileSettings.model_validate(tree | {"ensembles": ensembles})


def cut_off(path: Path, copy: Path, moment: int) -> Path:
    """A copy of the directory without the events from a moment on."""
    shutil.copytree(path, copy)
    for file in (copy / "input").glob("*.parquet"):
        table = pd.read_parquet(file)
        table[table["timestamp"] < pd.Timestamp(moment, unit="s")].to_parquet(file, index=False)
    return copy


@pytest.mark.parametrize("fitted", ["whole", "before"])
def test_a_stacked_ensemble_and_its_new_clients(small: Path, tmp_path: Path, fitted: str) -> None:
    apart = without_ties(small, tmp_path / "apart")
    settings = profile(apart, tmp_path / "run", {"fitted": fitted})
    facts = run(settings)["ensembles"]["stacked"]
    assert (facts["dimensions"], facts["status"]) == (5, "built")
    assert facts["stacking"]["tasks"] == ["events", "category", "sku", "price"]
    assert run(settings)["ensembles"]["stacked"]["status"] == "kept"

    entry = UserEmbeddings.load(tmp_path / "run" / "ensembles" / "stacked")
    assert np.abs(entry.vectors.astype(np.float64).mean(axis=0)).max() < 1e-3  # `after`
    other = renamed_clients(apart, tmp_path / "new", np.sort(entry.client_ids)[::4])
    embed_new(tmp_path / "run", DataSettings(path=str(other)), tmp_path / "entry", "stacked")
    new = UserEmbeddings.load(tmp_path / "entry")
    rows = [entry.client_ids.tolist().index(client - 10**6) for client in new.client_ids]
    difference = np.asarray(new.vectors, np.float32) - np.asarray(entry.vectors, np.float32)[rows]
    assert np.abs(difference).max() < 2e-3  # float16

    if fitted == "before":
        return
    # the same seed gives the same bytes, another one others
    for name, seed in (("again", 0), ("other", 1)):
        run(profile(apart, tmp_path / name, {"fitted": fitted}, seed=seed))
    made = [
        (tmp_path / name / "ensembles" / "stacked" / "embeddings.npy").read_bytes()
        for name in ("run", "again", "other")
    ]
    assert made[0] == made[1] != made[2]


def test_the_layer_reads_nothing_from_behind_a_cut(small: Path, tmp_path: Path) -> None:
    """The vectors at a cut are those of a directory that ends there."""
    apart = without_ties(small, tmp_path / "apart")
    run(profile(apart, tmp_path / "run", {}, members=MEMBERS | BEHAVEGPT))
    cache = tmp_path / "run" / "cache" / "vectors"
    kept = [UserEmbeddings.load(folder) for folder in cache.iterdir()]
    assert len(kept) == 3 * 2  # of three members at two cuts

    last = int(read_events(apart)["timestamp"].max().timestamp())
    moment = (last // DAY + 1) * DAY - 10 * DAY
    short = open_events(DataSettings(path=str(cut_off(apart, tmp_path / "short", moment))))
    context = Context(short, tmp_path / "cache", at=moment)
    for name, plain in (MEMBERS | BEHAVEGPT).items():
        kind = KINDS[plain["kind"]]
        block = kind.settings.model_validate(plain)
        found = kind.embed(context, block, tmp_path / "run" / "members" / name / "state")
        same = [
            of.vectors.shape == found.vectors.shape
            and np.array_equal(of.client_ids, found.client_ids)
            and bool(np.abs(of.vectors - found.vectors).max() < 1e-5)
            for of in kept
        ]
        assert sum(same) == 1, name


def test_members_before_the_cuts_are_fitted_on_what_precedes_them(
    small: Path, tmp_path: Path
) -> None:
    run(profile(small, tmp_path / "run", {"fitted": "before"}))
    last = int(read_events(small)["timestamp"].max().timestamp())
    short = cut_off(small, tmp_path / "short", (last // DAY + 1) * DAY - 15 * DAY)
    run(profile(short, tmp_path / "short_run", {}), only=["stats", "future"])
    for name in ("stats", "future"):
        paths = [tmp_path / "run" / "before" / name, tmp_path / "short_run" / "members" / name]
        ours, theirs = (UserEmbeddings.load(path) for path in paths)
        assert np.array_equal(ours.client_ids, theirs.client_ids)
        assert np.abs(ours.vectors - theirs.vectors).max() < 1e-6


def test_the_layer_learns_what_its_columns_tell(
    small: Path, context: Callable[..., Context]
) -> None:
    settings = StackSettings(
        columns=32,
        predict={"category": 4},
        cut=CutSettings(**CUT),
        training=TrainingSettings(epochs=60, batch=8, lr=1e-2, held_out=0.2, patience=60),
        dropout=0.0,
    )
    ours = context(small)
    window = open_window(ours, settings)
    rows = np.arange(len(window.store.clients))
    known, noise = [], []
    rng = np.random.default_rng(0)
    for index in range(len(window.cuts.moment)):
        of = window.cuts.at(np.full(len(rows), index), rows)
        labels = np.hstack(list(targets(window.store, of, settings).values()))
        known.append(labels.astype(np.float64) * 3 + 7)
        noise.append(rng.normal(size=labels.shape))

    losses = {}
    for name, columns in (("known", known), ("noise", noise)):
        state, report = fit_stack(ours, settings, window, columns)
        losses[name] = report["best"]
        assert report["examples"] == window.cuts.usable.sum()
    # both tasks begin at 1, and held-out clients are judged
    assert losses["known"] < 0.6
    assert losses["noise"] > 1.5

    # numpy gives what torch does
    projection = Projection({name: state[name] for name in ("mean", "deviation")}, settings)
    projection.load_state_dict({name: torch.from_numpy(of) for name, of in state.items()})
    theirs = projection.eval()(torch.from_numpy(noise[0])).detach().numpy()
    assert np.abs(project(state, noise[0]) - theirs).max() < 1e-5


def test_vectors_from_elsewhere_cannot_be_stacked(small: Path, tmp_path: Path) -> None:
    run(profile(small, tmp_path / "run", {}), only=["stats"])
    entry = {"kind": "entry", "path": str(tmp_path / "run" / "members" / "stats")}
    members = {"stats": MEMBERS["stats"], "theirs": entry}
    with pytest.raises(ConfigError, match=r"theirs comes from elsewhere .*without: \[theirs\]"):
        run(profile(small, tmp_path / "other", {}, members=members))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"predict": {"query": 3}}, "query: 3"), ({"columns": 4096}, "2048"), ({"width": 3}, "width")],
)
def test_settings_of_the_layer(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        StackSettings.model_validate(changes)
