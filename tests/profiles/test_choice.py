"""`after: auto`: what is compared with what, on which labels, and what a tie decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from behavegpt.errors import ConfigError, DataError
from behavegpt.profiles import choice
from behavegpt.profiles.choice import ChoiceSettings, choose
from behavegpt.profiles.ensemble import EnsembleSettings
from behavegpt.profiles.members import Context
from behavegpt.profiles.pipeline import run
from behavegpt.profiles.settings import ProfileSettings
from tests.profiles.makers import make_input

CHURN = {"tasks": ("churn",), "seeds": 2}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of 300 clients, half of whom buy in the training window."""
    path = make_input(tmp_path_factory.mktemp("labelled") / "data", clients=300)
    clients = np.sort(np.load(path / "input" / "relevant_clients.npy"))
    (path / "target").mkdir()
    np.save(path / "target" / "active_clients.npy", clients)
    for window, some in (("train", clients[::2]), ("validation", clients[1::2])):
        write_window(path, window, some)
    return path


def write_window(path: Path, window: str, clients: np.ndarray) -> None:
    table = pd.DataFrame({"client_id": clients, "sku": 1, "category": 1, "price": 1})
    table.assign(timestamp=pd.Timestamp("2023-02-10")).to_parquet(
        path / "target" / f"{window}_target.parquet", index=False
    )


def test_the_best_candidate_of_the_training_window_is_chosen(
    labelled: Path,
    tmp_path: Path,
    context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = context(labelled)
    rng = np.random.default_rng(0)
    bought = np.isin(ours.clients, ours.clients[::2])  # in the training window alone
    columns = rng.normal(size=(300, 8)).astype(np.float32)
    columns[:, 0] += 3 * bought
    columns += 200  # what every column has in common drowns what they differ in
    steps: dict[str, Any] = {"plain": (), "center": ("center",), "again": ("center",)}
    settings = ChoiceSettings(candidates=steps, **CHURN)
    chosen = choose(ours, settings, columns, ours.clients)

    lines = {line["candidate"]: line for line in chosen.facts["table"]}
    assert (chosen.steps, chosen.facts["chosen"]) == (("center",), "center")  # a tie: the first
    assert lines["center"]["churn"] > 0.85 > lines["plain"]["churn"]
    assert lines["plain"]["behind"] > lines["plain"]["error_behind"] > 0 < lines["plain"]["error"]
    assert lines["again"] == lines["center"] | {"candidate": "again"}
    assert "after: center (network 1,024 wide, 2 seeds, 300 clients" in capsys.readouterr().err

    # the validation window plays no part
    other = shutil.copytree(labelled, tmp_path / "other")
    write_window(other, "validation", ours.clients[:3])
    theirs = replace(context(other), cache=tmp_path / "fresh")
    alone = settings.model_copy(update={"candidates": {"center": ("center",)}})
    again = choose(theirs, alone, columns, ours.clients)
    assert again.facts["table"] == [lines["center"] | {"behind": 0.0, "error_behind": 0.0}]

    # what was measured is kept, for as long as the labels are the same
    monkeypatch.setattr(choice, "held_out_score", None)
    assert choose(ours, settings, columns, ours.clients) == chosen
    write_window(other, "train", ours.clients[:90])
    with pytest.raises(TypeError):
        choose(replace(theirs, cache=ours.cache), settings, columns, ours.clients)


def test_an_ensemble_tells_what_it_chose(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no network: the narrower vectors are the better ones
    monkeypatch.setattr(choice, "held_out_score", lambda vectors, *_: 1 / vectors.shape[1])
    data = shutil.copytree(labelled, tmp_path / "data")
    tree: dict[str, Any] = {
        "data": {"path": str(data)},
        "out": str(tmp_path / "run"),
        "members": {"stats": {"kind": "handcrafted", "families": ["prices"]}},
        "ensembles": {
            "all": {
                "after": "auto",
                "choose": CHURN | {"candidates": {"wide": ["center"], "small": [{"pca": 2}]}},
            }
        },
    }
    settings = ProfileSettings.model_validate(tree)
    run(settings)
    report = json.loads((tmp_path / "run" / "ensembles" / "all" / "ensemble.json").read_text())
    assert report["after"] == [{"pca": 2, "whiten": False}]
    assert (report["choice"]["chosen"], report["dimensions"]) == ("small", 2)
    assert [line["candidate"] for line in report["choice"]["table"]] == ["wide", "small"]
    assert run(settings)["ensembles"]["all"]["status"] == "kept"
    # other labels may choose otherwise
    write_window(data, "train", np.load(data / "target" / "active_clients.npy")[1::2])
    assert run(settings)["ensembles"]["all"]["status"] == "built"


@pytest.mark.parametrize(
    ("settings", "width", "told"),
    [
        ({"tasks": ("chrun",)}, 3, "'chrun' is not a task"),
        ({"candidates": {"plain": ()}}, 3000, "no candidate makes 3000 columns 2048 or less"),
    ],
)
def test_what_cannot_be_compared(
    labelled: Path,
    context: Callable[..., Context],
    settings: dict[str, Any],
    width: int,
    told: str,
) -> None:
    ours = context(labelled)
    columns = np.zeros((len(ours.clients), width), np.float32)
    with pytest.raises(ConfigError, match=told):
        choose(ours, ChoiceSettings(**settings), columns, ours.clients)


def test_without_targets_there_is_no_choice(small: Path, context: Callable[..., Context]) -> None:
    ours = context(small)
    with pytest.raises(DataError, match=r"train_target.parquet: missing, and `after: auto`"):
        choose(ours, ChoiceSettings(**CHURN), np.zeros((30, 3), np.float32), ours.clients)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"choose": {"seeds": 3}}, "choose is for `after: auto`"),
        ({"after": "auto", "choose": {"width": 192}}, "1024"),
        ({"after": "automatic"}, "auto"),
    ],
)
def test_settings_of_the_choice(block: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EnsembleSettings.model_validate(block)
