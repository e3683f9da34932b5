"""Runs with memory that must agree: cut over ranks and micro-batches, stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.equivalence.test_training import relative
from tests.helpers import random_store
from tests.runs import quick_folder, save_store, shared_runs, tiny_settings


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        save_store(random_store(users=60, longest=40, behaviors=9), folder / "data")
        yield folder


def run(place: Path, name: str, *, world: int = 1, resume: bool = False, **train: Any) -> Path:
    """The run's folder; what it recorded lies beside it."""
    out = place / name
    settings = tiny_settings(
        place / "data", out, **{"steps": 6, "select": "last", "clip": 1e9} | train
    )
    settings["model"] |= {"memory": True, "dropout": 0.0}
    settings["loss"] = {"name": "cross_entropy"}  # which depends on no share of the steps
    result = shared_runs().run(settings, world=world, resume=resume, record=f"{out}.record")
    assert result.status == 0, result.output
    return out


def test_ranks_and_pieces_change_nothing(place: Path) -> None:
    whole = load_file(f"{run(place, 'whole', micro_batches=1)}.record/gradients-0.safetensors")
    assert "head.memory.mixer.gate.weight" in whole
    for name, cut in {
        "pieces": {"micro_batches": 4},
        "ranks": {"micro_batches": 1, "world": 2},
    }.items():
        out = run(place, name, **cut)
        for rank in range(cut.get("world", 1)):
            found = load_file(f"{out}.record/gradients-{rank}.safetensors")
            assert relative(found, whole) <= 1e-5, (name, rank)


def test_a_resumed_run_is_one_that_never_stopped(place: Path) -> None:
    """The next step's batch, made ahead, begins anew."""
    settings = {"schedule": "constant", "warmup": 0.0}
    straight = run(place, "straight", **settings)
    run(place, "stopped", **settings | {"steps": 3})
    resumed = run(place, "stopped", resume=True, **settings)
    one, other = (load_file(out / "model" / "model.safetensors") for out in (straight, resumed))
    assert all(torch.equal(values, one[name]) for name, values in other.items())
