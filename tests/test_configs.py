"""Every shipped configuration loads, and mistakes in settings are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from behavegpt.config import dump_settings, read_settings
from behavegpt.errors import ConfigError
from behavegpt.pretrain import PretrainSettings
from tests.conftest import ROOT

REQUIRED = ["data.path=somewhere", "out=runs/x"]
CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "behavegpt" / "demo" / "demo.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_says_how_to_run_it(path):
    settings = read_settings(PretrainSettings, path, REQUIRED)
    head = path.read_text().split("\nmodel:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "behavegpt" in head or "accelerate launch" in head
    assert settings.out == "runs/x"


def test_the_resolved_settings_read_back_the_same(tmp_path):
    settings = read_settings(PretrainSettings, ROOT / "configs" / "small.yaml", [*REQUIRED, "train.lr=1e-5"])
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    assert read_settings(PretrainSettings, tmp_path / "config.yaml") == settings
    assert settings.train.lr == 1e-5


def test_base_files_are_merged_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("out: a\ntrain: {lr: 1, seed: 3}\ndata: {path: x}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntrain: {lr: 2e-3}\n")
    settings = read_settings(PretrainSettings, tmp_path / "b.yaml", ["train.steps=5"])
    assert (settings.train.lr, settings.train.seed, settings.train.steps) == (2e-3, 3, 5)


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["train.learning_rate=1e-3"], "unknown setting 'train.learning_rate'"),
        (["train.step=5"], "Did you mean 'steps'?"),
        (["train.lr=fast"], "train.lr = 'fast'"),
        (["train.lr=-1"], "greater than 0"),
        (["model.num_layers=3"], "Did you mean 'num_hidden_layers'?"),
        (["loss.name=focal"], "loss.name"),
        (["train"], "not an override"),
        (["out.x=1"], "is a single value"),
        (["train.steps=1.5"], "train.steps"),
    ],
)
def test_a_mistake_is_named_with_a_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("?", r"\?")):
        read_settings(PretrainSettings, ROOT / "configs" / "tiny.yaml", [*REQUIRED, *overrides])


@pytest.mark.parametrize(
    "text,message",
    [
        ("train: {lr: 1, lr: 2}", "written twice"),
        ("- a\n- b", "must be a mapping"),
        ("train: [", "not valid YAML"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("base: bad.yaml", "circle"),
        ("base: nowhere.yaml", "no such configuration file"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(PretrainSettings, path, REQUIRED)


def test_missing_settings_are_asked_for():
    with pytest.raises(ConfigError, match=r"'data' is required"):
        read_settings(PretrainSettings, ROOT / "configs" / "tiny.yaml", ["out=x"])
