"""Fine-tuning as a run: resume, evaluation, other schemas, losses, and mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import behavegpt
from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.reencode import fit_store, reencode
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.datasets.synthetic import small_log
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.finetune import FinetuneSettings, adapt_model, finetune
from behavegpt.ingest.prepare import prepare
from behavegpt.losses import LossSettings, build_loss
from behavegpt.training.checkpoint import load_checkpoint
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "mode,adapt", [("new_behavior", {"rows": "new"}), ("lora", {"vocabulary": "grow"}), ("ofa", {})]
)
def test_a_resumed_run_ends_with_the_same_bytes(settings_for, tmp_path, mode, adapt):
    settings = settings_for(
        mode, steps=8, adapt=adapt, train={"keep": 9, "checkpoint_every": 2, "valid_every": 8}
    )
    whole = finetune(settings)
    shutil.copytree(whole, tmp_path / "stopped")
    for made in ("ckpt/step_00000006", "ckpt/step_00000008", "model", "adapter", "base"):
        shutil.rmtree(tmp_path / "stopped" / made, ignore_errors=True)
    again = finetune(settings.model_copy(update={"out": str(tmp_path / "stopped")}), resume=True)
    files = ["model/model.safetensors", "model/config.json", "model/preprocessor_config.json"]
    for name in [
        *files,
        *(
            ["adapter/adapter_model.safetensors", "base/model.safetensors"]
            if mode == "lora"
            else []
        ),
    ]:
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name


def test_resume_says_which_settings_changed(settings_for, capsys):
    settings = settings_for("full", steps=4, train={"checkpoint_every": 2, "keep": 9})
    run = finetune(settings)
    shutil.rmtree(run / "ckpt/step_00000004")
    train = settings.train.model_copy(update={"steps": 6, "lr": 0.5})
    capsys.readouterr()
    finetune(settings.model_copy(update={"train": train}), resume=True)
    said = capsys.readouterr().err
    assert "resuming with changed settings: train.steps 4 -> 6, train.lr 0.01 -> 0.5" in said


def test_resume_refuses_another_mode_or_base(settings_for, place, tmp_path):
    run = finetune(settings_for("full"))
    with pytest.raises(CheckpointError, match="mode: checkpoint full, now ofa"):
        finetune(settings_for("ofa", out=str(run)), resume=True)
    with pytest.raises(CheckpointError, match="base: checkpoint"):
        finetune(settings_for("full", base=str(run / "model"), out=str(run)), resume=True)


def test_the_run_folder_is_that_of_pretraining(place, settings_for):
    run = finetune(settings_for("new_behavior"))
    assert main(["evaluate", str(run / "model"), str(place / "new"), "--baselines"]) == 0
    assert main(["report", str(run)]) == 0
    record = json.loads((run / "run.json").read_text())
    assert sum(part["trained"] for part in record["transfer"]) == record["parameters"]
    assert record["config"]["mode"] == "new_behavior" and record["finished"]


def test_an_unknown_label_is_refused_with_the_difference_and_the_remedy(place, settings_for):
    predictor = behavegpt.load(place / "base/model")
    with pytest.raises(
        CheckpointError, match=r"behavior: 2 labels \('behavior5', 'behavior6'\).*finetune"
    ):
        fit_store(open_store(place / "new"), predictor.tokenizer)


def test_data_with_fewer_labels_in_another_order_are_evaluated(place):
    """The same events under other ids give the same figures."""
    from behavegpt.training.evaluate import evaluate

    predictor, known = behavegpt.load(place / "base/model"), open_store(place / "known")
    turned = {
        field: Vocabulary(v.values.take(pa.array(range(v.classes)[::-1])), v.counts[::-1].copy())
        for field, v in known.vocabulary.items()
    }
    other = reencode(known, turned)
    assert not np.array_equal(other.columns["event"], known.columns["event"])
    figures = []
    for store in (known, fit_store(other, predictor.tokenizer)):
        metrics, loss = evaluate(predictor.model, store, 2)
        figures.append((loss, metrics.compute(store.behaviors.counts)))
    assert figures[0] == figures[1]


def test_reencoding_makes_unseen_labels_unknown_and_keeps_the_rest(place):
    store = open_store(place / "new")
    fewer = {
        "event": Vocabulary(store.vocabulary["event"].values.slice(3, 5), np.zeros(5, np.int64))
    }
    found = reencode(store, fewer)
    before = store.vocabulary["event"].decode(store.columns["event"])
    after = found.vocabulary["event"].decode(found.columns["event"])
    kept = set(fewer["event"].values.to_pylist())
    assert after == [label if label in kept else None for label in before]
    trained = [
        label for label, split in zip(before, store.columns["split"], strict=True) if split == 0
    ]
    assert found.vocabulary["event"].counts.tolist() == [
        trained.count(x) for x in fewer["event"].values.to_pylist()
    ]


def test_class_losses_of_the_base_are_taken_over_by_name(place, settings_for):
    work = adapt_model(settings_for("new_behavior"))
    old = open_store(place / "known").behaviors.values.to_pylist()
    last = sorted((place / "base/ckpt").glob("step_*"))[-1]
    state = load_checkpoint(last).loss["class_loss"]
    loss = build_loss(
        LossSettings(name="dro", start=0.0), torch.tensor(work.store.behaviors.counts)
    )
    before = loss.class_weight.clone()
    work.inherit(loss)
    for label, value in zip(work.store.behaviors.values.to_pylist(), loss.class_loss, strict=True):
        wanted = state[old.index(label)] if label in old else np.log(work.store.behaviors.classes)
        assert float(value) == pytest.approx(float(wanted), abs=1e-12), label
    assert not torch.equal(before, loss.class_weight), "the weights follow"
    assert len(loss.cap) == work.store.behaviors.classes


# ---- other schemas


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The same shape of log thrice: without location, with a further field, with slots of an
    hour."""
    folder = tmp_path_factory.mktemp("schemas")
    log = small_log(users=30, events=1500, seed=3)
    log = log.append_column(
        "device", pa.array(["phone", "watch", "watch"] * (len(log) // 3 + 1)).slice(0, len(log))
    )
    pq.write_table(log, folder / "log.parquet")
    columns = {"user": "user_id", "time": "timestamp", "event": "event"}
    schemas = {
        "no location": EventSchema(**columns),
        "more fields": EventSchema(**columns, location="location", extra=("device",)),
        "longer slots": EventSchema(
            **columns, location="location", slot_minutes=60, behavior="behavior"
        ),
    }
    for name, schema in schemas.items():
        prepare([folder / "log.parquet"], folder / name, schema)
    return folder


REMARKS = {
    "no location": "no location",
    "more fields": "no field device",
    "longer slots": "60 instead of 30 minutes",
}


@pytest.mark.parametrize("name", REMARKS)
@pytest.mark.parametrize("mode", ["cross_domain", "lora"])
def test_another_schema_works_and_is_remarked_on(logs, settings_for, name, mode):
    run = finetune(settings_for(mode, data={"path": str(logs / name)}))
    record = json.loads((run / "run.json").read_text())
    assert any(REMARKS[name] in remark for remark in record["remarks"])
    assert main(["evaluate", str(run / "model"), str(logs / name)]) == 0
    predictor = behavegpt.load(run / "model")
    log = pq.read_table(logs / "log.parquet")
    assert len(predictor.predict(log, top_k=2)) == len(log["user_id"].unique())


def test_copied_slots_of_another_length_are_averages_of_the_bases(place, logs, settings_for):
    base = behavegpt.load(place / "base/model").model.model.embedding.tables["slot"].weight
    work = adapt_model(settings_for("cross_domain", data={"path": str(logs / "longer slots")}))
    mine = work.model.model.embedding.tables["slot"].weight
    torch.testing.assert_close(mine, base.view(24, 2, -1).mean(1))


# ---- mistakes


def one_class(store):
    behaviors = Vocabulary(pa.array(["behavior0"]), np.array([1]))
    return reencode(store, dict(store.vocabulary) | {"behavior": behaviors})


def short_histories(store):
    starts = store.offsets[:-1]
    columns = {name: np.asarray(column)[starts] for name, column in store.columns.items()}
    columns["split"] = np.zeros(len(starts), np.uint8)
    manifest = store.manifest.model_copy(
        update={"events": len(starts), "split": {"events": [len(starts), 0, 0]}}
    )
    return replace(store, columns=columns, offsets=np.arange(len(starts) + 1), manifest=manifest)


@pytest.mark.parametrize(
    "mode,adapt,change,error,message",
    [
        (
            "new_behavior",
            {"new": ["behavior1"]},
            None,
            ConfigError,
            "already knows the behavior 'behavior1'",
        ),
        (
            "new_behavior",
            {"new": ["jogging"]},
            None,
            DataError,
            "no training event of the behavior 'jogging'",
        ),
        ("full", {"new": ["behavior6"]}, None, ConfigError, "mode=new_behavior"),
        ("cross_domain", {}, one_class, DataError, "1 behavior, so there is nothing to predict"),
        (
            "cross_domain",
            {},
            short_histories,
            DataError,
            "every history has 0 or 1 training events",
        ),
    ],
)
def test_a_mistake_is_one_error_with_a_remedy(
    place, settings_for, mode, adapt, change, error, message
):
    store = open_store(place / "new")
    with pytest.raises(error, match=message):
        finetune(settings_for(mode, adapt=adapt), store=change(store) if change else store)


def test_data_without_a_new_behavior_are_refused(place, settings_for):
    with pytest.raises(ConfigError, match=r"no new behavior.*mode=full"):
        adapt_model(settings_for("new_behavior", data={"path": str(place / "known")}))


def test_only_the_named_behaviors_are_added(place, settings_for):
    work = adapt_model(settings_for("new_behavior", adapt={"new": ["behavior6"]}))
    assert (
        work.tokenizer.behaviors.values.to_pylist()[-1] == "behavior6"
        and work.tokenizer.behaviors.classes == 6
    )
    raw = open_store(place / "new")
    other = raw.behaviors.encode(["behavior5"])[0]
    assert (work.store.column("behavior")[raw.column("behavior") == other] == 1).all()


def test_behaviors_that_are_events_cannot_be_appended_to_a_column_of_behaviors(logs, settings_for):
    with pytest.raises(
        ConfigError, match=r"a column of their own.*the events themselves.*cross_domain"
    ):
        adapt_model(settings_for("new_behavior", data={"path": str(logs / "no location")}))


def test_a_base_that_is_none_and_a_tied_base(place, settings_for, tmp_path, logs):
    with pytest.raises(CheckpointError, match="not a model folder"):
        adapt_model(settings_for("full", base=str(place / "known")))
    tied = tmp_path / "tied"
    line = [
        "train",
        str(ROOT / "configs/tiny.yaml"),
        f"data.path={logs / 'no location'}",
        f"out={tied}",
        "train.steps=1",
    ]
    assert main([*line, "model.tied_head=true", "model.embedding_size=8"]) == 0
    with pytest.raises(ConfigError, match="tied_head needs behavior_is_event"):
        adapt_model(settings_for("cross_domain", base=str(tied / "model")))


def test_a_base_that_reads_behaviors_beside_the_events(place, settings_for, tmp_path, logs):
    line = [
        "train",
        str(ROOT / "configs/tiny.yaml"),
        f"data.path={place / 'known'}",
        f"out={tmp_path / 'base'}",
    ]
    assert main([*line, "train.steps=2", "model.inputs=with_behavior"]) == 0
    base = str(tmp_path / "base" / "model")
    known = behavegpt.load(base)
    assert (
        known.model.config.field_order[-1] == "behavior"
        and known.model.config.columns.count("behavior") == 1
    )
    before = known.model.model.embedding.tables["behavior"].weight
    for mode, same in {"new_behavior": True, "full": True, "cross_domain": False}.items():
        work = adapt_model(settings_for(mode, base=base))
        grown = work.model.model.embedding.tables["behavior"].weight
        assert len(grown) == len(work.tokenizer.behaviors) > len(before)
        rows = work.tokenizer.behaviors.encode(known.tokenizer.behaviors.values)
        assert torch.equal(grown[rows], before[2:]) is same, mode
    with pytest.raises(
        ConfigError, match=r"reads behaviors beside the events .inputs: with_behavior.*inputs=all"
    ):
        adapt_model(
            settings_for("cross_domain", base=base, data={"path": str(logs / "no location")})
        )


def test_errors_are_of_the_kind_the_command_line_explains(settings_for):
    with pytest.raises(BehaveGPTError):
        adapt_model(settings_for("full", base="nowhere"))


# ---- the command

CONFIGS = [
    p for p in sorted((ROOT / "configs/adapt").glob("*.yaml")) if not p.stem.startswith("eval_")
]


def test_the_command_adapts_and_a_mistake_is_one_paragraph(place, tmp_path, capsys):
    config = str(ROOT / "configs/adapt/cross_domain.yaml")
    line = [
        "finetune",
        config,
        f"base={place / 'base/model'}",
        f"data.path={place / 'new'}",
        f"out={tmp_path / 'run'}",
    ]
    assert main([*line, "train.steps=2", "--mode", "head_only", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["config"]["mode"] == "head_only"
    assert "projection" in shown.err and "trained" in shown.err
    assert main([*line[:2], *line[3:], "train.steps=2", "--mode", "full"]) == 2
    assert "'base' is required" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_says_how_to_run_it(path):
    settings = read_settings(FinetuneSettings, path, ["base=b", "data.path=d", "out=o"])
    assert settings.mode and "behavegpt finetune" in path.read_text().split("\nmode:")[0]


def test_the_script_shows_its_help():
    ran = subprocess.run(
        [sys.executable, ROOT / "finetune.py", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0 and "--mode" in ran.stdout
