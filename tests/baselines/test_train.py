"""Baselines through the project's own commands: train, resume, evaluate, load, predict, embed; and
their settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import behavegpt
from behavegpt.baselines.architectures import ARCHITECTURES
from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.pretrain import PretrainSettings, model_config, pretrain
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.runs import save_store

CONFIGS = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))
TRAIN = {"steps": 20, "batch_events": 256, "lr": 3e-2, "valid_every": 10, "log_every": 1}
SHAPE = {"embedding_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 16}
LOG = [
    {"t": f"2024-05-01 {hour:02d}:10", "e": f"event{hour % 3}", "l": "location1"}
    for hour in range(8, 14)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A log in which every event is followed by the next label."""
    store = random_store(behaviors=None)
    place = np.arange(store.manifest.events) - np.repeat(store.offsets[:-1], np.diff(store.offsets))
    store.columns["event"][:] = place % 12 + FIRST
    return save_store(store, tmp_path_factory.mktemp("data") / "log")


def settings(data: Path, out: Path, model: dict, **loss) -> PretrainSettings:
    return PretrainSettings.model_validate(
        {
            "out": str(out),
            "data": {"path": str(data)},
            "model": SHAPE | model,
            "loss": {"name": "cross_entropy"} | loss,
            "train": TRAIN,
        }
    )


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "lift"])
def test_train_evaluate_load_predict_embed(data, tmp_path, name, capsys):
    run = pretrain(settings(data, tmp_path / "run", {"architecture": name}))
    losses = [
        json.loads(line)["loss"]
        for line in (run / "log.jsonl").read_text().splitlines()
        if '"train"' in line
    ]
    assert losses[-1] < 0.95 * losses[0], "it learns"
    assert main(["evaluate", str(run / "model"), str(data)]) == 0
    figures = json.loads((run / "eval" / "metrics.json").read_text())["models"]["behavegpt"]
    assert 0 < figures["rec_w"] <= 1
    predictor = behavegpt.load(run / "model")
    assert predictor.model.config.architecture == name
    both = predictor.predict(
        [{**row, "u": user} for user in "ab" for row in LOG[: 3 if user == "a" else 6]]
    )
    alone = predictor.predict(LOG)
    np.testing.assert_allclose(both.probabilities[1], alone.probabilities[0], atol=1e-6)
    assert predictor.embed(LOG).vectors.shape == (1, 16)


def test_lift_tunes_a_trained_base_and_leaves_it_alone(data, tmp_path):
    base = pretrain(settings(data, tmp_path / "base", {}))
    lift = {"architecture": "lift", "options": {"base": str(base / "model"), "branch": 4}}
    chosen = settings(data, tmp_path / "lift", lift, name="logit_adjustment")
    chosen = chosen.model_copy(update={"model": lift})
    before = behavegpt.load(base / "model").model.state_dict()
    run = pretrain(chosen)
    after = behavegpt.load(run / "model").model.state_dict()
    assert (
        after["model.encoder.blocks.0.mlp_in.weight"] == before["model.blocks.0.mlp_in.weight"]
    ).all()
    assert after["model.encoder.branches.0.up.weight"].any(), "the branches are trained"
    assert "base" not in json.dumps(
        json.loads((run / "model" / "config.json").read_text())["options"]["base"] or ""
    )


def test_a_resumed_baseline_equals_one_that_never_stopped(data, tmp_path):
    whole = pretrain(
        settings(data, tmp_path / "whole", {"architecture": "cdn"}, name="two_distributions")
    )
    part = settings(data, tmp_path / "part", {"architecture": "cdn"}, name="two_distributions")
    pretrain(part)
    for later in sorted((tmp_path / "part" / "ckpt").glob("step_*"))[1:]:
        later.rename(tmp_path / later.name)
    pretrain(part, resume=True)
    first, second = (
        behavegpt.load(run / "model").model.state_dict() for run in (whole, tmp_path / "part")
    )
    assert all((first[name] == second[name]).all() for name in first)
    with pytest.raises(CheckpointError, match="architecture"):
        pretrain(
            settings(data, tmp_path / "part", {"architecture": "sasrec"}, name="two_distributions"),
            resume=True,
        )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_says_how_to_run_it(path, data):
    text = path.read_text()
    assert text.startswith("#") and f"configs/baselines/{path.name}" in text.split("\nbase:")[0]
    if path.stem == "catsr_transfer":
        assert (
            read_settings(FinetuneSettings, path, ["data.path=x", "out=y", "base=z"]).mode
            == "qk_only"
        )
        return
    given = read_settings(PretrainSettings, path, [f"data.path={data}", "out=y"])
    if path.stem != "lift":
        assert model_config(given, random_store(behaviors=None)).hidden_size == 128
        alone = read_settings(
            PretrainSettings, path, [f"data.path={data}", "out=y", "model.inputs=event_only"]
        )
        config = model_config(alone, random_store(behaviors=None))
        assert (list(config.field_sizes), config.hidden_size) == (["event"], 128)


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["model.architecture=sasrek"], "Did you mean 'sasrec'"),
        (["model.head_size=3"], "sasrec has no setting 'head_size'"),
        (["model.options.target_time=known"], "sasrec has no 'target_time'"),
        (["model.inputs=ids"], "inputs must be one of all, event_only, with_behavior"),
        (["model.score=sum"], "score must be dot or cosine"),
        (
            ["model.inputs=event_only", "model.history_head=true"],
            "^model: BehaveGPTConfig: history_head reads",
        ),
        (["language_model=gpt2"], "language_model initializes a BehaveGPT"),
    ],
)
def test_a_mistake_is_named(data, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        base = [f"data.path={data}", f"out={tmp_path / 'run'}"]
        pretrain(
            read_settings(
                PretrainSettings,
                ROOT / "configs" / "baselines" / "sasrec.yaml",
                [*base, *overrides],
            )
        )


def test_behavegpt_reads_the_event_alone_too(data, tmp_path):
    chosen = settings(data, tmp_path / "run", {"inputs": "event_only"})
    config = model_config(chosen, random_store(behaviors=None))
    assert (
        type(config).model_type == "behavegpt"
        and config.columns == ("event",)
        and config.hidden_size == 16
    )


@pytest.mark.parametrize("name", ["behavegpt", *(name for name in ARCHITECTURES if name != "lift")])
def test_behaviors_join_the_inputs_unless_they_are_the_events(tmp_path, name):
    shape = {
        "architecture": name,
        "inputs": "with_behavior",
        "history_head": name in ("behavegpt", "gru"),
    }
    chosen = settings(tmp_path, tmp_path / "run", shape)
    for behaviors, last in ((5, "behavior"), (None, "event")):
        config = model_config(chosen, random_store(behaviors=behaviors))
        assert config.field_order[-1] == last and config.columns.count("behavior") <= 1


def test_lift_takes_the_behaviors_that_its_base_reads(tmp_path):
    data = save_store(random_store(), tmp_path / "log")
    base = pretrain(settings(data, tmp_path / "base", {"inputs": "with_behavior"}))
    # the shape is the base's
    model = {"architecture": "lift", "options": {"base": str(base / "model")}}
    tuned = settings(data, tmp_path / "run", {}).model_copy(update={"model": model})
    assert behavegpt.load(pretrain(tuned) / "model").model.config.field_order[-1] == "behavior"


def test_a_baseline_is_no_base_for_finetuning(data, tmp_path):
    run = pretrain(settings(data, tmp_path / "run", {"architecture": "gru"}))
    given = {
        "base": str(run / "model"),
        "mode": "full",
        "out": str(tmp_path / "x"),
        "data": {"path": str(data)},
    }
    with pytest.raises(ConfigError, match="gru"):
        finetune(FinetuneSettings.model_validate(given))
