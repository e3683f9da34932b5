"""The main job through the command line: prepare, train, evaluate, predict, embed, report; and its
mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import behavegpt
from behavegpt.baselines import counts
from behavegpt.cli import COMMANDS, main
from behavegpt.cli.command import Group
from behavegpt.data.reencode import fit_store
from behavegpt.data.store import open_store
from behavegpt.datasets.synthetic import small_log
from behavegpt.errors import CheckpointError, DataError
from tests.conftest import ROOT

TINY = str(ROOT / "configs" / "tiny.yaml")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A log, its prepared folder and a trained model with the history head."""
    folder = tmp_path_factory.mktemp("work")
    log = small_log(users=60, events=6000, seed=1)
    pq.write_table(log, folder / "log.parquet")
    assert (
        main(
            [
                "prepare",
                str(folder / "log.parquet"),
                "--out",
                str(folder / "data"),
                "--behavior",
                "behavior",
            ]
        )
        == 0
    )
    train = [
        "train",
        TINY,
        f"data.path={folder / 'data'}",
        f"out={folder / 'run'}",
        "model.history_head=true",
    ]
    assert main([*train, "model.next_heads=[event, location, gap]"]) == 0
    evaluate = ["evaluate", str(folder / "run/model"), str(folder / "data"), "--baselines"]
    assert main(evaluate) == 0
    return folder


@pytest.fixture(scope="module")
def predictor(work):
    return behavegpt.load(work / "run" / "model")


def rows(work: Path) -> pa.Table:
    return pq.read_table(work / "log.parquet")


def users(work: Path) -> int:
    return len(rows(work)["user_id"].unique())


def test_metrics_have_the_promised_names(work):
    result = json.loads((work / "run/eval/metrics.json").read_text())
    names = {"rec_w", "rec_m", "prec_w", "prec_m", "f1_m", "ndcg@3", "ndcg@5", "hr@3", "hr@5"}
    assert {"behavegpt", *counts.NAMES} == set(result["models"])
    assert all(names <= set(figures) for figures in result["models"].values())
    assert result["rows"] > 100 and result["protocol"]["split"] == "test"
    beaten = result["models"]["most_frequent"]["ndcg@3"]
    assert result["models"]["behavegpt"]["ndcg@3"] > beaten, (
        "thirty steps learn more than the prior"
    )


def test_report_and_card(work):
    assert main(["report", str(work / "run")]) == 0
    assert (work / "run/report.html").stat().st_size > 50_000
    assert (
        "rec_w" in (work / "run/model/README.md").read_text()
        or "recall" in (work / "run/model/README.md").read_text()
    )


def test_predictions_are_labels_with_probabilities(work, predictor):
    found = predictor.predict(rows(work), top_k=4)
    assert len(found) == users(work) and found.labels.shape == (users(work), 4)
    known = set(predictor.tokenizer.behaviors.values.to_pylist())
    assert set(found.labels.ravel()) <= known
    assert (np.diff(found.probabilities, axis=1) <= 0).all()
    assert found.probabilities.sum(1).max() <= 1 + 1e-5
    assert found.to_table().num_rows == 4 * users(work)


def test_the_same_user_gets_the_same_answer_in_any_company(work, predictor):
    log = rows(work)
    everyone = predictor.predict(log, top_k=3)
    names = everyone.users.to_pylist()
    for index in (0, 17, len(names) - 1):
        mine = pc.equal(log["user_id"].cast(pa.string()), names[index])
        alone = predictor.predict(log.filter(mine), top_k=3)
        assert alone.labels[0].tolist() == everyone.labels[index].tolist()
        np.testing.assert_allclose(alone.probabilities[0], everyone.probabilities[index], atol=1e-5)
    shuffled = log.take(np.random.default_rng(0).permutation(len(log)))
    again = predictor.predict(shuffled, top_k=3)
    np.testing.assert_allclose(again.probabilities, everyone.probabilities, atol=1e-6)


def test_prediction_equals_the_evaluation_of_the_same_event(work, predictor):
    """What `predict` says after n events is what `evaluate` scores for event n + 1 when the context
    is the same."""
    store = open_store(work / "data")
    log = rows(work)
    of_user = pc.equal(log["user_id"].cast(pa.string()), store.users()[5].as_py())
    mine = log.filter(of_user).sort_by("timestamp").slice(0, 20)
    found = predictor.predict(mine, top_k=3)
    begin = int(store.offsets[5])
    config = predictor.model.config
    ids = {
        f: torch.from_numpy(np.asarray(store.column(f)[begin : begin + 20]).astype(np.int64))[None]
        for f in config.columns
    }
    inputs = {("input_ids" if f == "event" else f"{f}_ids"): v for f, v in ids.items()}
    with torch.no_grad():
        best = predictor.model(**inputs).logits[0, -1].softmax(-1).topk(3)
    assert predictor.tokenizer.labels(best.indices.numpy()).tolist() == found.labels[0].tolist()
    np.testing.assert_allclose(found.probabilities[0], best.values, atol=1e-5)


def test_unknown_labels_and_bad_rows_are_counted(work, predictor):
    log = rows(work).slice(0, 50).to_pandas()
    log["event"] = log["event"].astype(object)
    log.loc[3, "event"] = "never seen before"
    log.loc[4, "event"] = None
    found = predictor.predict(log, top_k=2)
    assert found.unknown["event"] == 1
    assert sum(found.rejected.values()) == 1


def test_one_history_as_rows_without_a_user(predictor, work):
    row = rows(work).slice(0, 3).drop_columns(["user_id"]).to_pylist()
    assert len(predictor.predict(row, top_k=2)) == 1


def test_a_log_without_behaviors_can_be_predicted_from(predictor, work):
    assert len(predictor.predict(rows(work).drop_columns(["behavior"]), top_k=2)) == users(work)


def test_no_usable_event_is_an_error(predictor):
    with pytest.raises(DataError, match="no usable event"):
        predictor.predict(
            {"user_id": ["a"], "timestamp": ["2024-01-01"], "location": ["x"], "event": [None]}
        )


def test_embeddings_follow_the_last_event(predictor, work):
    found = predictor.embed(rows(work))
    assert found.vectors.shape == (users(work), predictor.model.config.hidden_size)
    assert np.isfinite(found.vectors).all() and len(
        np.unique(found.vectors.round(5), axis=0)
    ) == users(work)


def test_other_data_is_refused_with_the_difference(work, predictor, tmp_path):
    pq.write_table(small_log(users=20, events=1000, seed=9), tmp_path / "other.parquet")
    main(
        [
            "prepare",
            str(tmp_path / "other.parquet"),
            "--out",
            str(tmp_path / "other"),
            "--slot-minutes",
            "60",
        ]
    )
    with pytest.raises(CheckpointError, match="slot_minutes: 30 in the model, 60 in the data"):
        fit_store(open_store(tmp_path / "other"), predictor.tokenizer)


def test_a_swapped_tokenizer_is_refused(work, tmp_path):
    import shutil

    shutil.copytree(work / "run/model", tmp_path / "model")
    text = (tmp_path / "model/preprocessor_config.json").read_text()
    (tmp_path / "model/preprocessor_config.json").write_text(
        text.replace('"tz": "UTC"', '"tz": "Asia/Tokyo"')
    )
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: damaged or changed"):
        behavegpt.load(tmp_path / "model")
    # "the change was meant": the hash in config.json still tells
    (tmp_path / "model/MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="do not belong together"):
        behavegpt.load(tmp_path / "model")


@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl"])
def test_predict_writes_any_format(work, tmp_path, name):
    out = tmp_path / f"p.{name}"
    assert (
        main(
            [
                "predict",
                str(work / "run/model"),
                str(work / "log.parquet"),
                "--top-k",
                "2",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert out.stat().st_size > 0 and len(list(tmp_path.iterdir())) == 1


def test_predict_prints_json(work, capsys):
    assert (
        main(
            [
                "predict",
                str(work / "run/model"),
                str(work / "log.parquet"),
                "--top-k",
                "2",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2 * users(work) and set(found[0]) == {
        "user",
        "rank",
        "behavior",
        "probability",
    }


def lines_of_verbs(verbs=COMMANDS, before=()):
    for name, verb in verbs.items():
        if isinstance(verb, Group):
            yield from lines_of_verbs(verb.commands, (*before, name))
        else:
            yield (*before, name)


@pytest.mark.parametrize("verb", lines_of_verbs(), ids=" ".join)
def test_every_verb_has_help_with_examples(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    group = COMMANDS[verb[0]]
    shown = verb[:1] if isinstance(group, Group) and verb[1:] == (group.default,) else verb
    assert f"behavegpt {' '.join(shown)}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    "line,message",
    [
        (["train", "nowhere.yaml"], "no such configuration file"),
        (["train", TINY, "data.path=nowhere", "out=x"], "not a prepared folder"),
        (["evaluate", "nowhere", "nowhere"], "not a model folder"),
        (["prepare", "nowhere.csv", "--out", "x"], "nowhere.csv"),
        (["predict", "nowhere", "nowhere"], "not a model folder"),
        (["convert", "unheard_of", "x", "--out", "y.parquet"], "unheard_of"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "x" / "ckpt").exists()


def test_a_used_run_folder_is_refused_without_resume(work, capsys):
    line = [
        "train",
        TINY,
        f"data.path={work / 'data'}",
        f"out={work / 'run'}",
        "model.history_head=true",
    ]
    assert main(line) == 2
    assert "--resume" in capsys.readouterr().err


def test_the_prepared_events_open_as_a_hugging_face_dataset(work):
    store = open_store(work / "data")
    events = store.as_dataset()
    assert len(events) == store.manifest.events
    assert (
        events[0]["event"] == int(store.columns["event"][0])
        and events[-1]["user"] == store.manifest.users - 1
    )


def test_info_and_doctor(work, capsys, tmp_path):
    assert main(["info", str(work / "run/model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["behaviors"] > 2
    assert main(["doctor", "--folder", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_no_socket_is_opened(work, monkeypatch):
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(behavegpt.load(work / "run/model").predict(rows(work))) == users(work)


def test_the_scripts_show_their_help():
    for script in ("train.py", "eval/next_behavior.py"):
        ran = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0 and "examples:" in ran.stdout


def test_overrides_may_stand_behind_resume(work):
    line = [
        "train",
        TINY,
        f"data.path={work / 'data'}",
        f"out={work / 'run'}",
        "model.history_head=true",
        "--resume",
    ]
    assert main([*line, "model.next_heads=[event, location, gap]"]) == 0


def test_a_schema_file_and_options_together_are_refused(work, tmp_path, capsys):
    (tmp_path / "schema.yaml").write_text("user: user_id\ntime: timestamp\nevent: event\n")
    line = [
        "prepare",
        str(work / "log.parquet"),
        "--schema",
        str(tmp_path / "schema.yaml"),
        "--tz",
        "Asia/Tokyo",
    ]
    assert main([*line, "--out", str(tmp_path / "data")]) == 2
    assert "--tz" in capsys.readouterr().err


def test_without_validation_events_the_last_weights_are_kept(work, tmp_path):
    line = [
        "prepare",
        str(work / "log.parquet"),
        "--out",
        str(tmp_path / "data"),
        "--split",
        "time:0.8,0,0.2",
    ]
    assert main(line) == 0
    assert main(["train", TINY, f"data.path={tmp_path / 'data'}", f"out={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["best_step"] == 30


@pytest.mark.parametrize(
    "shape", ["max_length=0", "dropout=1.5", "num_attention_heads=0", "max_length=abc"]
)
def test_an_impossible_shape_is_one_paragraph(work, tmp_path, shape, capsys):
    line = [
        "train",
        TINY,
        f"data.path={work / 'data'}",
        f"out={tmp_path / 'run'}",
        f"model.{shape}",
    ]
    assert main(line) == 2
    assert "model" in capsys.readouterr().err


def test_the_demo_clears_only_its_own_folder(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").mkdir()
    (tmp_path / "mine" / "data" / "dataset.json").write_text("{}")
    assert main(["demo", "--out", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "data" / "dataset.json").exists()
