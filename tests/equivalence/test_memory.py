"""Runs with memory that must agree: cut over ranks and micro-batches, stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import random_store
from tests.runs import quick_folder, save_store, shared_runs, tiny_settings


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        save_store(random_store(users=60, longest=40, behaviors=9), folder / "data")
        yield folder


def run(place: Path, name: str, *, world: int = 1, resume: bool = False, **train: Any) -> dict[str, torch.Tensor]:
    """Weights of the last step."""
    settings = tiny_settings(place / "data", place / name, **{"steps": 9, "select": "last"} | train)
    settings["model"] |= {"memory": True, "dropout": 0.0}
    result = shared_runs().run(settings, world=world, resume=resume)
    assert result.status == 0, result.output
    return load_file(place / name / "model" / "model.safetensors")


def test_ranks_and_pieces_change_nothing(place: Path) -> None:
    whole = run(place, "whole", micro_batches=1)
    for name, cut in {"pieces": {"micro_batches": 4}, "ranks": {"micro_batches": 1, "world": 2}}.items():
        for tensor, values in run(place, name, **cut).items():
            assert torch.allclose(values, whole[tensor], rtol=1e-4, atol=2e-5), (name, tensor)


def test_a_resumed_run_is_one_that_never_stopped(place: Path) -> None:
    """Dropout and the next step's batch, made ahead, begin anew."""
    whole = run(place, "never stopped")
    run(place, "stopped", steps=6, schedule="constant")
    settings = {"schedule": "constant"}
    straight = run(place, "straight", **settings)
    resumed = run(place, "stopped", resume=True, **settings)
    assert all(torch.equal(values, straight[name]) for name, values in resumed.items())
    assert whole.keys() == resumed.keys()
