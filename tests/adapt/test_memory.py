"""A base with memory adapted to other data: its mixer comes along, the counts are those of the new
data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behavegpt.data.memory_counts import count_store
from behavegpt.data.store import EventStore
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load
from behavegpt.training.evaluate import evaluate
from tests.runs import tiny_settings


@pytest.fixture(scope="module")
def base(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny_settings(place / "known", tmp_path_factory.mktemp("memory") / "base", steps=3)
    settings["model"] |= {"memory": True}
    return pretrain(PretrainSettings.model_validate(settings)) / "model"


@pytest.mark.parametrize("mode", ["full", "cross_domain", "new_behavior", "lora"])
def test_a_mode_keeps_the_mixer_and_counts_anew(
    mode: str, base: Path, settings_for: Callable[..., FinetuneSettings], new_store: EventStore
) -> None:
    run = finetune(settings_for(mode, steps=1, base=str(base), train={"lr": 1e-9}))
    for folder in [run / "model", *([run / "adapter"] if mode == "lora" else [])]:
        adapted, old = load(folder).model, load(base).model
        mixer, before = (m.head.memory.mixer.state_dict() for m in (adapted, old))
        assert all(torch.allclose(mixer[name], before[name], atol=1e-6) for name in mixer)
        assert np.array_equal(adapted.counts.edges, count_store(new_store).edges)
        assert len(adapted.head.memory.log_prior) == adapted.config.num_behaviors


@pytest.mark.parametrize("mode", ["full", "cross_domain", "new_behavior", "lora"])
def test_a_mode_keeps_what_is_given(
    mode: str,
    place: Path,
    base: Path,
    settings_for: Callable[..., FinetuneSettings],
    new_store: EventStore,
) -> None:
    folder = base.parent.parent / "timed"
    if not folder.exists():
        settings = tiny_settings(place / "known", folder, steps=3)
        settings["model"] |= {"given": ["time"]}
        pretrain(PretrainSettings.model_validate(settings))
    run = finetune(settings_for(mode, steps=1, base=str(folder / "model"), train={"lr": 1e-9}))
    for made in [run / "model", *([run / "adapter"] if mode == "lora" else [])]:
        predictor = load(made)
        before = load(folder).model.given.projection.weight
        assert predictor.given == ("time",) and before.abs().max() > 0
        assert torch.allclose(predictor.model.given.projection.weight, before, atol=1e-6)


def test_the_adapted_model_is_evaluated(
    base: Path, settings_for: Callable[..., FinetuneSettings], new_store: EventStore
) -> None:
    model: Any = load(finetune(settings_for("cross_domain", base=str(base)))).model
    metrics, loss = evaluate(model, new_store, 2)
    assert metrics.rows > 0 and np.isfinite(loss)
