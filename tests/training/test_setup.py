"""What a run is set up with: rows of a step, kernels, compilation, and the tracker."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType

from behavegpt.data.store import EventStore
from behavegpt.errors import ConfigError, DataError, MissingExtraError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.training import setup
from behavegpt.training.settings import TrainSettings
from tests.helpers import random_store


def with_events(events: int) -> EventStore:
    """A store that says it has so many training events."""
    store = random_store(users=6)
    split = store.manifest.split | {"events": [events, 5, 5]}
    return replace(store, manifest=store.manifest.model_copy(update={"split": split}))


def config_of(store: EventStore, **shape: Any) -> BehaveGPTConfig:
    return BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        **{"embedding_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2} | shape,
    )


@pytest.mark.parametrize(
    "events,asked,max_length,rows",
    [
        (10, None, 16, 16),  # 1,024 positions in rows of 64
        (32 * 2048, None, 16, 32),  # a 32nd
        (10**7, None, 16, 128),  # 8,192
        (10**7, None, 90, 64),  # in rows of 128
        (10, 65, 16, 2),
        (10, 128, 16, 2),
        (10, 129, 16, 3),
    ],
)
def test_a_step_has_a_32nd_of_the_events_within_bounds(
    events: int, asked: int | None, max_length: int, rows: int
) -> None:
    store = with_events(events)
    train = TrainSettings(batch_events=asked, seed=3)
    config = config_of(store, max_length=max_length, next_heads=["gap"])
    found = setup.training_batches(store, config, train)
    assert (found.rows_per_step, found.seed, found.max_length) == (rows, 3, max_length)
    assert found.fields.inputs == config.columns and found.fields.next == ("gap",)


def test_nothing_to_learn_is_refused() -> None:
    store = with_events(0)
    with pytest.raises(DataError, match="no training events"):
        setup.training_batches(store, config_of(store), TrainSettings())
    store = with_events(5)
    store.columns["behavior"][:] = 1
    with pytest.raises(DataError, match="nothing to learn from"):
        setup.training_batches(store, config_of(store), TrainSettings())


@pytest.mark.parametrize(
    "device,triton,capability,expected",
    [
        ("cuda", True, 8, True),
        ("cuda", True, 9, True),
        ("cuda", True, 7, False),
        ("cuda", False, 9, False),
        ("cpu", True, 9, False),
    ],
)
def test_blocks_are_compiled_where_that_is_faster(
    device: str, triton: bool, capability: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton or None)
    assert setup.can_compile(torch.device(device)) == expected


KERNELS: dict[str, tuple[dict[str, Any], str, str, bool, bool]] = {
    # settings, attention, precision -> compiled, recomputed
    "as it is": ({}, "auto", "fp32", False, False),
    "half": ({}, "auto", "bf16", False, False),
    "on a GPU": ({"compile": None}, "auto", "gpu", True, False),
    "not even there": ({"compile": False}, "auto", "gpu", False, False),
    "compiled on a CPU": ({"compile": True}, "auto", "cpu", True, False),
    "asked for": ({"compile": True}, "eager", "fp32", True, False),
    "less memory": ({"activation_checkpointing": True}, "sdpa", "fp32", False, True),
}


@pytest.mark.parametrize("case", KERNELS)
def test_kernels_are_those_asked_for_or_the_best(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, attention, precision, compiled, recomputed = KERNELS[case]
    model = BehaveGPTForBehaviorPrediction(config_of(random_store(users=6), max_length=8))
    asked: list[Any] = []

    def choose(device: torch.device, half: bool, window: int) -> str:
        asked.append((half, window))
        return "by_history" if precision == "cpu" else "flex_attention"

    monkeypatch.setattr(setup, "choose_backend", choose)
    monkeypatch.setattr(setup, "can_compile", lambda device: precision == "gpu")
    done: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: done.append(module))
    train = TrainSettings(**settings)
    setup.choose_kernels(model, attention, train, torch.device("cpu"), precision)
    best = {"auto": "sdpa" if precision == "cpu" else "flex_attention"}.get(attention, attention)
    assert asked == [(precision == "bf16", 8)]
    assert model.config._attn_implementation == best
    assert done == (list(model.model.blocks) if compiled else [])
    blocks = [block.gradient_checkpointing for block in model.model.blocks]
    assert blocks == [recomputed] * 2


def test_a_model_without_blocks_is_compiled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: done.append(module))
    shape = {"num_hidden_layers": 0, "history_head": True}
    model = BehaveGPTForBehaviorPrediction(config_of(random_store(users=6), **shape))
    setup.compile_blocks(model)
    assert done == [model]


def test_the_bar_tells_the_loss_and_the_last_known_rate() -> None:
    shown: list[tuple[int, str]] = []
    report = setup.reporter(lambda step, text: shown.append((step, text)))
    report(1, {"cross_entropy": 1.25})
    report(2, {"cross_entropy": 1.0, "events_per_second": 12345.6})
    report(3, {"cross_entropy": 0.5})
    assert shown == [
        (1, "loss 1.250 · "),
        (2, "loss 1.000 · 12,346 events/s"),
        (3, "loss 0.500 · 12,346 events/s"),
    ]


class Ranks(SimpleNamespace):
    """An Accelerator that notes how it was made."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options=options, trackers=[], num_processes=1, is_main_process=True)
        self.distributed_type, self.device = DistributedType.NO, torch.device("cpu")

    def init_trackers(self, name: str, config: dict[str, Any]) -> None:
        self.trackers.append((name, config["steps"]))


def test_the_precision_is_the_projects_and_the_tracker_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "Accelerator", Ranks)
    monkeypatch.setattr(setup, "_need_wandb", lambda: None)
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        plain: Any = setup.make_accelerator(TrainSettings())
        assert plain.options == {"cpu": not gpu, "mixed_precision": "no", "log_with": None}
        assert plain.trackers == []
    tracked: Any = setup.make_accelerator(TrainSettings(wandb="project", steps=9))
    assert tracked.options["log_with"] == "wandb" and tracked.trackers == [("project", 9)]
    monkeypatch.setattr(setup, "STRATEGIES", (DistributedType.FSDP,))
    with pytest.raises(ConfigError, match="not supported; launch with"):
        setup.make_accelerator(TrainSettings())


@pytest.mark.parametrize(
    "key,mode,netrc,offline",
    [
        ("", None, False, True),
        ("a key", None, False, False),
        ("", "online", False, False),
        ("", None, True, False),
    ],
)
def test_without_a_key_the_tracker_works_offline(
    key: str,
    mode: str | None,
    netrc: bool,
    offline: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="wandb"):
        setup._need_wandb()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", mode or "")
    if mode is None:
        monkeypatch.delenv("WANDB_MODE")
    if netrc:
        (tmp_path / "netrc").touch()
    setup._need_wandb()
    assert os.environ.get("WANDB_MODE") == ("offline" if offline else mode)
    assert ("logging offline" in capsys.readouterr().err) == offline


def test_ranks_leave_when_the_host_of_their_store_has_heard_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three ranks, one after the other, and the host last."""
    told: list[str] = []
    left = {"count": 0}

    def add(name: str, more: int) -> int:
        left["count"] += more
        return left["count"]

    store = SimpleNamespace(
        set=lambda name, value: told.append("host is out"),
        add=add,
        wait=lambda names: told.append("waited"),
    )
    monkeypatch.setattr(setup.dist.distributed_c10d, "_get_default_store", lambda: store)

    def sleep(seconds: float) -> None:
        assert left["count"] < 2, "all are out"
        left["count"] += 1

    monkeypatch.setattr(setup.time, "sleep", sleep)
    for world, main, expected, count in (
        (1, True, [], 0),
        (3, False, ["waited"], 1),
        (3, True, ["host is out"], 2),
    ):
        told.clear()
        ranks: Any = SimpleNamespace(
            num_processes=world,
            is_main_process=main,
            wait_for_everyone=lambda: told.append("barrier"),
            end_training=lambda: told.append("ended"),
        )
        setup.leave(ranks)
        assert told == ["barrier", *expected, "ended"] and left["count"] == count
