"""A small pretrained model and data of another domain that shares some of its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from behavegpt.data.store import open_store
from behavegpt.finetune import FinetuneSettings
from behavegpt.pretrain import PretrainSettings, pretrain
from tests.helpers import random_store
from tests.runs import save_store, tiny_settings


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`known` data and a `base` run on them; `new` data with all their labels and further ones."""
    folder = tmp_path_factory.mktemp("adapt")
    save_store(random_store(0), folder / "known")
    save_store(random_store(1, events=15, behaviors=7, locations=6), folder / "new")
    settings = tiny_settings(folder / "known", folder / "base", steps=4)
    settings["model"] |= {
        "history_head": True,
        "next_heads": ["event", "gap"],
        "position_encoding": "learned",
    }
    pretrain(PretrainSettings.model_validate(settings))
    return folder


@pytest.fixture
def settings_for(place: Path, tmp_path: Path) -> Callable[..., FinetuneSettings]:
    """Settings of a fine-tuning run of some steps on the new data; overrides by top-level name."""

    def make(mode: str, steps: int = 3, **changed: Any) -> FinetuneSettings:
        tiny = tiny_settings(
            place / "new", tmp_path / "run", steps=steps, **changed.pop("train", {})
        )
        tree = {name: tiny[name] for name in ("out", "data", "loss", "train")}
        return FinetuneSettings.model_validate(
            tree | {"base": str(place / "base/model"), "mode": mode} | changed
        )

    return make


@pytest.fixture(scope="session")
def new_store(place: Path) -> Any:
    return open_store(place / "new")
