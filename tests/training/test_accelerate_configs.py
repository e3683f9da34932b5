"""The shipped accelerate profiles are ones that accelerate reads, and say to FSDP what sharding.py
understands."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from behavegpt.errors import ConfigError
from behavegpt.training.sharding import sharding_asked
from tests.conftest import ROOT

PROFILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def launched(profile: Path) -> argparse.Namespace:
    """What `accelerate launch` makes of a profile."""
    arguments = launch_command_parser().parse_args(["--config_file", str(profile), "train.py"])
    found: argparse.Namespace = _validate_launch_command(arguments)[0]
    return found


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_accelerate_reads_a_profile(profile: Path) -> None:
    config = load_config_from_file(str(profile))
    assert config.mixed_precision == "no"
    assert (
        "accelerate launch"
        in profile.read_text().splitlines()[0] + profile.read_text().splitlines()[1]
    )


def test_fsdp2_reaches_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = prepare_multi_gpu_env(launched(ROOT / "configs" / "accelerate" / "fsdp2.yaml"))
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD"):
        monkeypatch.setenv(name, environment[name])
    assert sharding_asked()
    assert environment["FSDP_RESHARD_AFTER_FORWARD"].lower() == "true"
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match=r"fsdp2\.yaml"):
        sharding_asked()


def test_without_a_profile_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not sharding_asked()
