"""A run says how many processes there are; asked for two and being one, it warns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from behavegpt.training.ranks import ranks_asked, tell_ranks
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.runs import save_store, shared_runs, tiny_settings


def launched(*options: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that `accelerate launch OPTIONS train.py` gives its process."""
    for name in ("MASTER_PORT", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    arguments: Any = _validate_launch_command(
        launch_command_parser().parse_args([*options, "train.py"])
    )[0]
    environment: dict[str, str] = prepare_simple_launcher_cmd_env(arguments)[1]
    return environment


@pytest.mark.parametrize(
    "options,more", [(["--num_processes", "2"], True), (["--num_processes", "1"], False)]
)
def test_what_accelerate_was_asked_for_is_read_from_what_it_sets(
    options: list[str], more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (ranks_asked(launched("--cpu", *options, monkeypatch=monkeypatch)) > 1) is more


CASES: list[tuple[dict[str, str], int, int]] = [
    ({}, 1, 1),
    ({"WORLD_SIZE": "4"}, 4, 4),
    ({"WORLD_SIZE": "4"}, 1, 4),
    ({"SLURM_NTASKS": "3"}, 1, 3),
    ({"SLURM_NTASKS": "2", "WORLD_SIZE": "16"}, 16, 16),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, 1, 2),
    ({"PMI_SIZE": "1", "SLURM_NTASKS": "1"}, 1, 1),
    ({"SLURM_NTASKS": "", "WORLD_SIZE": "many"}, 1, 1),
    ({"MASTER_PORT": "29500"}, 1, 1),
]


@pytest.mark.parametrize("environment,processes,asked", CASES)
def test_it_warns_when_there_are_fewer(
    environment: dict[str, str], processes: int, asked: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranks_asked(environment) == asked
    for main in (True, False):
        ranks = SimpleNamespace(
            num_processes=processes, is_main_process=main, device=torch.device("cpu")
        )
        tell_ranks(ranks, environment)
        said = capsys.readouterr().err
        assert (f"{processes} process" in said) is main
        assert ("warning" in said) is (main and asked > processes)
        assert ("torchrun --nproc_per_node" in said) is (main and asked > processes == 1)


def test_ranks_of_torchrun_are_counted_and_one_process_is_told_that_it_is_alone(
    tmp_path: Path,
) -> None:
    data = save_store(random_store(users=8), tmp_path / "data")
    two = shared_runs().run(tiny_settings(data, tmp_path / "two", steps=1), world=2)
    assert (
        two.status == 0
        and two.output.count("2 processes on cpu") == 1
        and "warning" not in two.output
    )
    alone = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "MASTER_ADDR": "127.0.0.1"}
    one = shared_runs().run(tiny_settings(data, tmp_path / "one", steps=1), environment=alone)
    assert one.status == 0 and "1 process on cpu" in one.output and "works alone" in one.output


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu_warns(tmp_path: Path) -> None:
    data = save_store(random_store(users=8), tmp_path / "data")
    (tmp_path / "c.yaml").write_text(
        "model: {embedding_size: 4, num_hidden_layers: 1, num_attention_heads: 2}\n"
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "train.py",
    ]
    overrides = [
        str(tmp_path / "c.yaml"),
        f"data.path={data}",
        f"out={tmp_path / 'run'}",
        "train.steps=1",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "works alone" in found.stderr and "1 process on cpu" in found.stderr
