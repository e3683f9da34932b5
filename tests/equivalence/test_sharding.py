"""FSDP2 on gloo: weights cut over two ranks train as one rank does, and go on with another number
of ranks."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from behavegpt.errors import CheckpointError
from behavegpt.training.checkpoint import SHARDS, load_checkpoint, load_latest
from behavegpt.training.journal import read_journal
from tests.equivalence.test_training import rows_by_step, settings_for, train_losses
from tests.helpers import random_store
from tests.runs import quick_folder, save_store, shared_runs

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
SHAPE = {"num_hidden_layers": 2, "history_head": True, "next_heads": ["event", "gap"]}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        save_store(random_store(users=100, longest=16, behaviors=9), folder / "data")
        yield folder


def settings(place: Path, out: Path, micro: int = 1, **train: Any) -> dict[str, Any]:
    found = settings_for(place, out, "dro", micro, **train)
    found["model"] |= SHAPE
    return found


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[int, Path]:
    """The same run on one rank and, cut, on two."""
    outputs = {}
    for world in (1, 2):
        outputs[world] = place / f"whole-{world}"
        environment = FSDP2 if world > 1 else {}
        result = shared_runs().run(
            settings(place, outputs[world], micro=world), world=world, environment=environment
        )
        assert result.status == 0, result.output
    return outputs


def test_two_cut_ranks_train_as_one(runs: dict[int, Path]) -> None:
    one, two = (train_losses(runs[world]) for world in (1, 2))
    assert np.abs(one - two)[0] <= 1e-6 and np.abs(one - two).max() <= 1e-5
    norms = [
        [r["grad_norm"] for r in read_journal(runs[w] / "log.jsonl") if r["kind"] == "train"]
        for w in (1, 2)
    ]
    assert abs(norms[1][0] / norms[0][0] - 1) <= 1e-6
    valid = [
        [r for r in read_journal(runs[w] / "log.jsonl") if r["kind"] == "valid"][-1] for w in (1, 2)
    ]
    assert abs(valid[0]["cross_entropy"] - valid[1]["cross_entropy"]) <= 1e-5
    first, second = (load_file(runs[world] / "model" / "model.safetensors") for world in (1, 2))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-4), name


def test_the_first_update_is_the_same_to_the_last_bits(place: Path) -> None:
    """Moments after one step are the gradient: each parameter's, to 1e-6 of its size."""
    held = {}
    for world, environment in ((1, {}), (2, FSDP2)):
        out = place / f"one-step-{world}"
        result = shared_runs().run(
            settings(place, out, steps=1, valid_every=1), world=world, environment=environment
        )
        assert result.status == 0, result.output
        held[world] = load_checkpoint(out / "ckpt" / "step_00000001")
    assert (
        held[1].optimizer.keys() == held[2].optimizer.keys()
        and held[1].model.keys() == held[2].model.keys()
    )
    for name, one in held[1].optimizer.items():
        difference = (one - held[2].optimizer[name]).norm()
        assert difference <= 1e-6 * max(1.0, float(one.norm())), name


def test_a_cut_checkpoint_has_a_file_of_each_rank_and_is_checked(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    latest = load_latest(runs[2] / "ckpt")
    assert latest is not None
    names = sorted(path.name for path in (latest.path / SHARDS).iterdir())
    assert len(names) == 2 and not (latest.path / "model.safetensors").exists()
    manifest = json.loads((latest.path / "MANIFEST.json").read_text())
    assert sorted(manifest["files"]) == sorted(
        [*(f"{SHARDS}/{name}" for name in names), "loss.safetensors", "trainer.json"]
    )
    damaged = latest.path / SHARDS / names[0]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    copy = tmp_path / latest.path.name
    shutil.copytree(latest.path, copy)
    (copy / SHARDS / names[0]).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=names[0]):
        load_checkpoint(copy)
    (copy / SHARDS / names[0]).unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(copy)


def test_resume_with_another_number_of_ranks(runs: dict[int, Path], place: Path) -> None:
    """Cut on 2 -> 1 rank -> cut on 2 -> 2 ranks of DDP -> 1, each ended by a signal: the rows and
    losses of one run."""
    whole = place / "uncut"
    assert shared_runs().run(settings(place, whole), record=f"{whole}.record").status == 0
    out = place / "recut"
    legs = [(2, FSDP2), (1, {}), (2, FSDP2), (2, {}), (1, {})]
    for part, (world, environment) in enumerate(legs):
        last = part == len(legs) - 1
        order = {} if last else {"signal": [signal.SIGTERM, 2 * part + 3, world - 1]}
        result = shared_runs().run(
            settings(place, out),
            resume=part > 0,
            world=world,
            environment=environment,
            record=f"{out}.record",
            **order,
        )
        assert set(result.statuses) == {0 if last else 143}, result.output
    assert rows_by_step(out) == rows_by_step(whole)
    assert np.abs(train_losses(out) - train_losses(whole)).max() <= 1e-5


@pytest.mark.slow
def test_a_cut_run_that_stops_equals_one_that_does_not(place: Path) -> None:
    """On the same ranks: bit for bit, dropout and all."""
    losses = []
    for name, stops in (("straight", False), ("stopped", True)):
        tree = settings(place, place / name, micro=2)
        tree["model"]["dropout"] = 0.3
        if stops:
            order = {"signal": [signal.SIGTERM, 7, 0]}
            result = shared_runs().run(tree, world=2, environment=FSDP2, **order)
            assert set(result.statuses) == {143}, result.output
        result = shared_runs().run(tree, world=2, environment=FSDP2, resume=stops)
        assert result.status == 0, result.output
        losses.append(
            (
                train_losses(place / name).tolist(),
                load_file(place / name / "model" / "model.safetensors"),
            )
        )
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(losses[0][1][name], losses[1][1][name]) for name in losses[0][1])


@pytest.mark.slow
def test_a_full_disk_is_told_by_a_cut_run(place: Path) -> None:
    out = place / "full"
    result = shared_runs().run(settings(place, out), world=2, environment=FSDP2, file_limit=8000)
    assert 2 in result.statuses and "could not be written" in result.output, result.output
    assert not list((out / "ckpt").glob("step_*"))


def test_the_first_version_of_fsdp_is_refused(place: Path) -> None:
    result = shared_runs().run(
        settings(place, place / "old"), environment=FSDP2 | {"FSDP_VERSION": "1"}
    )
    assert result.status == 2 and "fsdp2.yaml" in result.output
