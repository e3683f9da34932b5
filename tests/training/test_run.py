"""A run folder: who may enter it, what the run is told, and what it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from behavegpt.data.store import EventStore
from behavegpt.errors import BehaveGPTError, CheckpointError
from behavegpt.model import BehaveGPTConfig
from behavegpt.training import record
from behavegpt.training import run as run_module
from behavegpt.training.checkpoint import Snapshot, save_checkpoint
from behavegpt.training.record import fingerprint_of, record_of, tell_changes
from behavegpt.training.run import RunFolder, open_run
from behavegpt.training.settings import DataSettings, RunSettings, TrainSettings
from tests.helpers import random_store

WEIGHTS = {"w": torch.zeros(2)}


def settings_for(folder: Path, **train: Any) -> RunSettings:
    return RunSettings(
        out=str(folder), data=DataSettings(path="nowhere"), train=TrainSettings(**train)
    )


def checkpoint(folder: Path, step: int, fingerprint: dict[str, Any]) -> Path:
    trainer = {"progress": {}, "fingerprint": fingerprint}
    return save_checkpoint(folder / "ckpt", Snapshot(step, WEIGHTS, {}, {}, trainer))


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


# ---- entering


def test_an_open_run_has_its_folder_its_seed_and_nobody_else(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "runs" / "one", seed=41)
    with open_run(settings, "a run") as run:
        assert torch.initial_seed() == 41
        assert (run.path, run.name, run.resume) == (tmp_path / "runs" / "one", "a run", False)
        assert run.path.is_dir() and not torch.are_deterministic_algorithms_enabled()
        with pytest.raises(BehaveGPTError, match="wait for that run"), open_run(settings, "two"):
            pass
    with open_run(settings, "after it", resume=True) as run:
        assert run.resume


def test_deterministic_kernels_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "of the user")
    with open_run(settings_for(tmp_path, deterministic=True), "a run"):
        assert asked == [True]
        assert run_module.os.environ["CUBLAS_WORKSPACE_CONFIG"] == "of the user"


def test_a_folder_with_checkpoints_is_entered_to_go_on_alone(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3, {})
    with (
        pytest.raises(CheckpointError, match="--resume"),
        open_run(settings_for(tmp_path), "a run"),
    ):
        pass
    with open_run(settings_for(tmp_path), "a run", resume=True) as run:
        assert run.path == tmp_path


def test_where_a_run_goes_on(tmp_path: Path, accelerator: Accelerator) -> None:
    settings, mine = settings_for(tmp_path), {"seed": 1}
    fresh = RunFolder(accelerator, settings)
    again = RunFolder(accelerator, settings, resume=True)
    assert again.latest(mine) is None, "the run never reached its first checkpoint"
    first = checkpoint(tmp_path, 3, mine)
    assert fresh.latest(mine) is None
    found = again.latest(mine)
    assert found is not None and found.step == 3
    with pytest.raises(CheckpointError, match="another run"):
        again.latest({"seed": 2})
    (first / "trainer.json").write_text("{")
    with pytest.raises(CheckpointError, match="no valid checkpoint found"):
        again.latest(mine)


# ---- what it leaves


def begun(run: RunFolder, store: EventStore, resumed: bool = False) -> dict[str, Any]:
    run.begin(store, {"steps": 7}, resumed)
    return dict(run.record)


def test_run_json_tells_command_machine_data_and_result(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, settings = random_store(users=5), settings_for(tmp_path, seed=3, lr=0.5)
    run = RunFolder(accelerator, settings)
    record = begun(run, store)
    assert json.loads((tmp_path / "run.json").read_text()) == record
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["lr"] == 0.5
    assert record["steps"] == 7 and record["seed"] == 3 and record["processes"] == 1
    assert record["config"]["train"]["lr"] == 0.5 and record["finished"] is None
    assert record["data"]["events"] == store.offsets[-1] and record["data"]["users"] == 5
    assert set(record["versions"]) > {"behavegpt", "python", "torch", "numpy"}
    assert record["device"].startswith("CPU")

    run.record["started"] = "2020-01-01T00:00:00+00:00"
    saved: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run_module, "save_model", lambda *what: saved.append(what))
    model, tokenizer, beside = object(), object(), lambda model, folder: None
    run.save(model, tokenizer, beside)  # type: ignore[arg-type]
    assert saved == [(model, tokenizer, tmp_path / "model", beside)]
    ended = json.loads((tmp_path / "run.json").read_text())
    assert ended["steps"] == 7 and ended["finished"] > "2020" and ended["seconds"] > 5 * 31e6
    assert (tmp_path / "log.jsonl") == run.journal.path


def test_other_ranks_and_runs_without_a_folder_write_nothing(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "save_model", lambda *what: pytest.fail("rank 0 alone saves"))
    other: Any = SimpleNamespace(is_main_process=False, num_processes=2)
    store = random_store(users=5)
    for run in (RunFolder(other, settings_for(tmp_path)), RunFolder(accelerator)):
        assert begun(run, store) == {} and not list(tmp_path.iterdir())
    RunFolder(other, settings_for(tmp_path)).save(None, None)  # type: ignore[arg-type]
    without = RunFolder(accelerator)
    assert str(without.path) == str(without.journal.path) == "/dev/null"


def test_a_run_that_goes_on_tells_what_changed(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    store = random_store(users=5)
    begun(RunFolder(accelerator, settings_for(tmp_path, lr=0.5)), store)
    begun(RunFolder(accelerator, settings_for(tmp_path, lr=0.25)), store)
    assert "changed" not in capsys.readouterr().err, "a run that begins replaces what was there"
    begun(RunFolder(accelerator, settings_for(tmp_path, lr=0.125)), store, resumed=True)
    assert "resuming with changed settings: train.lr 0.25 -> 0.125" in capsys.readouterr().err
    begun(RunFolder(accelerator, settings_for(tmp_path, lr=0.125)), store, resumed=True)
    tell_changes(tmp_path / "nowhere", {"config": {}})
    assert "changed" not in capsys.readouterr().err


CHANGES: dict[str, Any] = {
    "seed": {"train": {"seed": 1}},
    "batch": {"train": {"batch_events": 128}},
    "loss": {"loss": {"name": "cross_entropy"}},
}


def test_a_checkpoint_belongs_to_data_model_loss_seed_and_batch(tmp_path: Path) -> None:
    store = random_store(users=5)
    shape = {"field_sizes": store.field_sizes(), "num_behaviors": store.behaviors.classes}
    plain = settings_for(tmp_path).model_dump()

    def fingerprint(store: EventStore = store, width: int = 4, **changed: Any) -> str:
        settings = RunSettings.model_validate(plain | changed)
        config = BehaveGPTConfig(**shape, embedding_size=width, num_attention_heads=2)
        return json.dumps(fingerprint_of(settings, store, config), sort_keys=True)

    others = [fingerprint(**change) for change in CHANGES.values()]
    others += [fingerprint(random_store(seed=1, users=5)), fingerprint(width=8)]
    assert len({fingerprint(), *others}) == 6
    assert fingerprint(train={"lr": 0.5, "steps": 9}, out="elsewhere") == fingerprint()


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    gpu: Any = SimpleNamespace(device=torch.device("cuda:1"), num_processes=4)
    record = record_of(settings_for(tmp_path), random_store(users=5), gpu)
    assert record["device"] == "a GPU, cuda:1" and record["processes"] == 4
    assert np.isscalar(record["data"]["behaviors"])


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("/opt/venv/bin/behavegpt", "behavegpt train x"),
        ("/opt/lib/behavegpt/__main__.py", "behavegpt train x"),
        ("train.py", "train.py train x"),
    ],
)
def test_the_command_is_recorded_as_one_would_type_it(
    program: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "x"])
    assert " ".join([record._program(), *sys.argv[1:]]) == told
