"""Every shipped configuration loads, and mistakes in settings are named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from behavegpt.benchmark.settings import BenchmarkSettings
from behavegpt.config import dump_settings, read_settings
from behavegpt.data.schema import EventSchema
from behavegpt.errors import ConfigError
from behavegpt.finetune import FinetuneSettings
from behavegpt.pretrain import PretrainSettings
from behavegpt.profiles.settings import ProfileSettings
from behavegpt.scaling.settings import SweepSettings
from behavegpt.training.settings import TrainSettings
from tests.conftest import ROOT

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
SCHEMAS = [EventSchema, SweepSettings, BenchmarkSettings, ProfileSettings, FinetuneSettings]
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
    settings = read_settings(
        PretrainSettings, ROOT / "configs" / "small.yaml", [*REQUIRED, "train.lr=1e-5"]
    )
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    assert read_settings(PretrainSettings, tmp_path / "config.yaml") == settings
    assert settings.train.lr == 1e-5


def test_base_files_are_merged_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("out: a\ntrain: {lr: 1, seed: 3}\ndata: {path: x}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntrain: {lr: 2e-3}\n")
    settings = read_settings(PretrainSettings, tmp_path / "b.yaml", ["train.steps=5"])
    assert (settings.train.lr, settings.train.seed, settings.train.steps) == (2e-3, 3, 5)


def test_null_takes_back_a_group_as_it_does_in_a_file():
    settings = read_settings(BenchmarkSettings, "benchmark/memory", ["data.newyork=null"])
    assert set(settings.data) == {"retail", "jakarta", "kualalumpur"}
    given = [*REQUIRED, "train.steps=null", "train=null"]
    whole = read_settings(PretrainSettings, ROOT / "configs" / "tiny.yaml", given)
    assert whole.train == TrainSettings()


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
        (["train.lr="], "has no value; write train.lr=null"),
        (["out= "], "has no value"),
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
        ("train: [", r"bad\.yaml, line 1, column 9: not valid YAML"),
        ("base: 5", "base = 5: must be a file name"),
        ("base: null", "base = None"),
        ("base: [1]", r"base = \[1\]"),
        ("base: [tiny.yaml, null]", "base = "),
        ("base: {a: b}", "base = "),
        ("base: ''", "base = ''"),
        ('base: "a\\0b"', "base = "),
        ("5", "top level must be a mapping"),
        ("[]", "top level must be a mapping"),
        ("train: {steps: " + "9" * 5000 + "}", "not valid YAML"),
        ("train: {steps: 123456789012345678901234567890}", "integer of 97 bits"),
        ("train: {seed: -99999999999999999999}", "integer of 67 bits"),
        ("train: {steps: 4611686018427387904}", "train.steps"),
        ("train: {lr: .inf}", "train.lr"),
        ("train: {lr: .nan}", "train.lr"),
        ("train: {lr: 1e999}", "train.lr"),
        ("train: {lr: 2024-13-45}", "train.lr = '2024-13-45'"),
        ("train: {lr: 2024-01-02}", "train.lr = '2024-01-02'"),
        ("train: {lr: !!timestamp 2024-13-45}", "not valid YAML"),
        ("train: {steps: !!int x}", "not valid YAML"),
        ("train: {steps: !!binary '#'}", "not valid YAML|train.steps"),
        ("x: !!python/name:os.system", "not valid YAML"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("train: {<<: 5}", "not valid YAML"),
        ("x: *nobody", "not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("x: \x01", "not valid YAML"),
        ("a: &a [*a]", "written out"),
        ("a: &a {b: *a}", "written out"),
        ("x: " + "[" * 60 + "]" * 60, "more than 32 levels"),
        ("x: " + "[" * 100_000, "more than 32 levels"),
        ("x: " + "{a: " * 40 + "1" + "}" * 40, "more than 32 levels"),
        ("\n".join(f"{'  ' * i}a:" for i in range(50)), "more than 32 levels"),
        (LAUGHS, "written out"),
        (MERGES, "written out"),
        ("x: [" + "1, " * 30_000 + "1]", "written out"),
        ("x: " + "1" * 2_000_000, "characters; settings may have"),
        ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("base: bad.yaml", "circular"),
        ("base: nowhere.yaml", "no such configuration file"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=message) as found:
        read_settings(PretrainSettings, path, REQUIRED)
    assert time.process_time() - began < 5
    assert "\n" not in str(found.value) and len(str(found.value)) < 600, "one line"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_other_settings_are_read_by_the_same_rules(schema: type, tmp_path: Path):
    for text in ("base: 5", LAUGHS, "x: " + "[" * 100_000, "x: " + "9" * 5000):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError) as found:
            read_settings(schema, tmp_path / "bad.yaml")
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "override,message",
    [
        ("train.lr=" + "[" * 100_000, "more than 32 levels"),
        ("train.lr=&a [*a]", "written out"),
        ("train.steps=123456789012345678901234567890", "integer of 97 bits"),
        ("train.steps=" + "9" * 5000, "train.steps"),
        ("train.lr=.inf", "finite"),
        ("a." * 100 + "a=1", "not an override"),
        ("train.betas=" + str(list(range(5000))), "train.betas"),
        ("model={" + ", ".join(f"a{i}: 1" for i in range(3000)) + "}", "unknown setting"),
    ],
)
def test_an_override_has_the_same_bounds(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as found:
        read_settings(PretrainSettings, ROOT / "configs" / "tiny.yaml", [*REQUIRED, override])
    assert len(str(found.value)) < 3000


def test_text_that_is_no_yaml_and_aliases_within_bounds_are_fine(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("x: &x {lr: 1e-3, steps: 7}\ntrain: {<<: *x, seed: 3}\n")
    with pytest.raises(ConfigError, match="unknown setting 'x'"):
        read_settings(PretrainSettings, tmp_path / "a.yaml", REQUIRED)
    (tmp_path / "b.yaml").write_text(
        "train: &x {lr: 1e-3, steps: 7}\nmodel: {}\ndata: {path: 2024-01-02}\nout: 12:30:00 a: b"
    )
    with pytest.raises(ConfigError, match=r"b\.yaml, line 4, column"):
        read_settings(PretrainSettings, tmp_path / "b.yaml")
    found = read_settings(
        PretrainSettings, None, ["data.path=2024-01-02", "out=a: b: c", "train.lr=1e-3"]
    )
    assert (found.data.path, found.out, found.train.lr) == ("2024-01-02", "a: b: c", 1e-3)


def test_a_chain_of_bases_ends(tmp_path: Path):
    for i in range(40):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    with pytest.raises(ConfigError, match="each the `base:` of the next"):
        read_settings(PretrainSettings, tmp_path / "0.yaml", REQUIRED)


def test_many_mistakes_are_cut_short():
    wrong = [f"train.x{i}=1" for i in range(100)]
    with pytest.raises(ConfigError) as found:
        read_settings(PretrainSettings, ROOT / "configs" / "tiny.yaml", [*REQUIRED, *wrong])
    assert str(found.value).endswith("and 80 more.") and str(found.value).count("\n") == 20


def test_missing_settings_are_asked_for():
    with pytest.raises(ConfigError, match=r"'data' is required"):
        read_settings(PretrainSettings, ROOT / "configs" / "tiny.yaml", ["out=x"])
