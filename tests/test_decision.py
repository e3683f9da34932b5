"""Thresholds of a model: learned on validation alone, kept beside the weights, used when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from starlette.testclient import TestClient

import behavegpt
from behavegpt import decision
from behavegpt.cli import main
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TEST, VALID, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.datasets.synthetic import small_log
from behavegpt.decision import FILE, Thresholds, learn_thresholds, load_thresholds, save_thresholds
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.fitting import FittedPredictor
from behavegpt.predictor import Predictor
from behavegpt.serving.app import make_app
from behavegpt.serving.requests import ServeSettings
from behavegpt.trained_folder import load
from behavegpt.training.evaluate import evaluate
from behavegpt.training.model_folder import open_model
from behavegpt.training.settings import DecisionSettings
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.test_evaluation import predictor_for

EVENTS = [
    {"u": "a", "t": f"2020-01-{n + 1:02} 10:00:00", "e": f"event{n % 5}", "l": "location1"}
    for n in range(6)
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, its prepared folder, and a model that was trained with decision.thresholds."""
    folder = tmp_path_factory.mktemp("decision")
    pq.write_table(small_log(users=60, events=6000, seed=1), folder / "log.parquet")
    log, data = str(folder / "log.parquet"), str(folder / "data")
    assert main(["prepare", log, "--out", data, "--behavior", "behavior"]) == 0
    train = ["train", str(ROOT / "configs/tiny.yaml"), f"data.path={data}", f"out={folder / 'run'}"]
    asked = ["decision.thresholds=true", "decision.keep=0.9", "decision.min_targets=5"]
    assert main([*train, *asked]) == 0
    return folder


def by_label(found: Any) -> np.ndarray:
    """Probabilities (U, K) in the order of the sorted labels."""
    order = np.argsort(found.labels.astype(str), axis=1)
    return np.take_along_axis(found.probabilities, order, 1)


def test_training_saves_thresholds_that_prediction_uses(work: Path) -> None:
    model = load(work / "run/model")
    assert model.thresholds is not None and model.thresholds.facts["weight"] is not None
    log = pq.read_table(work / "log.parquet")
    every = model.tokenizer.behaviors.classes
    plain = by_label(model.predict(log, every))
    found = by_label(model.predict(log, every, thresholds=True))
    labels = np.argsort(np.array(model.tokenizer.behaviors.values.to_pylist(), str))
    wanted = plain * np.exp(-model.thresholds.values[labels])
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), rtol=1e-3, atol=1e-7)
    assert (found.argmax(1) != plain.argmax(1)).any()
    reading = model.reading(user="uid")
    assert reading.thresholds is model.thresholds


def test_the_command_learns_what_training_learned(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(work / "run/model"), str(work / "data")
    before = (work / "run/model" / FILE).read_text()
    options = ["--keep", "0.9", "--min-targets", "5"]
    assert main(["thresholds", str(work / "run"), data, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (work / "run/model" / FILE).read_text() == before
    for name in ("plain", "cross_fitted", "fitted"):
        assert 0 < told["validation"][name]["f1_m"] < 1
    out = work / "run/eval/metrics.valid.json"
    assert main(["evaluate", model, data, "--split", "valid", "--thresholds"]) == 0
    shown = json.loads(out.read_text())
    assert shown["protocol"]["thresholds"]["objective"] == "rec_m"
    figures = shown["models"]["behavegpt"]
    for name, value in told["validation"]["fitted"].items():
        assert figures[name] == pytest.approx(value, abs=2e-3)  # ties of rounding
    log = str(work / "log.parquet")
    capsys.readouterr()
    assert main(["predict", model, log, "--thresholds", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    expected = load(model).predict(log, thresholds=True)
    assert first["behavior"] == expected.labels[0, 0]


def test_a_fitted_model_learns_in_place(work: Path, tmp_path: Path) -> None:
    kept(work, tmp_path / "model")
    (tmp_path / "model" / FILE).unlink()
    bare = Predictor(*open_model(work / "run/model"))
    fitted = FittedPredictor(bare, tmp_path, work / "data")
    with pytest.raises(ConfigError, match="objective"):
        fitted.learn_thresholds(objective="macro")
    assert fitted.learn_thresholds(keep=0.9, min_targets=5) is fitted
    found, trained = load(tmp_path / "model").thresholds, load(work / "run/model").thresholds
    assert fitted.thresholds is not None and found is not None and trained is not None
    for values in (fitted.thresholds.values, found.values):
        np.testing.assert_array_equal(values, trained.values)


def test_the_test_split_is_never_read() -> None:
    store = random_store(2, users=30)
    settings = DecisionSettings(keep=0.5, min_targets=5)
    predictor = predictor_for(store)
    found = learn_thresholds(predictor.model, store, settings)
    assert found.facts["weight"] is not None
    split = np.asarray(store.columns["split"])

    def after(changed: int) -> Thresholds:
        events = store.columns["event"].copy()
        events[split == changed] = events[split == changed][::-1]
        behaviors = np.where(events < 2, 1, (events.astype(int) - 2) % 5 + 2).astype(np.uint8)
        columns = store.columns | {"event": events, "behavior": behaviors}
        other = EventStore(store.path, store.manifest, store.vocabulary, columns, store.offsets)
        return learn_thresholds(predictor.model, other, settings)

    np.testing.assert_array_equal(after(TEST).values, found.values)
    assert after(TEST).facts == found.facts != after(VALID).facts


def test_thresholds_are_a_shift_of_an_evaluation() -> None:
    store = random_store(5, users=40)
    model = predictor_for(store).model
    only = torch.full((store.behaviors.classes,), 50.0)
    only[2] = 0
    figures, _ = evaluate(model, store, TEST, shift=only)
    assert int(figures.predicted[2]) == figures.rows > 0


@pytest.mark.parametrize("every", [1, 3])
def test_of_many_targets_every_nth_event_is_read(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    store = random_store(3, users=30)
    rows = target_rows(store, VALID)
    monkeypatch.setattr(decision, "CELLS", -(-len(rows) * decision.CANDIDATES // every))
    found = decision._validation_rows(predictor_for(store).model, store)
    assert found is not None
    kept = rows[rows % every == 0]
    assert len(kept) > 10
    np.testing.assert_array_equal(found.user, np.searchsorted(store.offsets, kept, "right") - 1)
    np.testing.assert_array_equal(found.target, store.columns["behavior"][kept] - FIRST)


def test_a_validation_split_of_one_user_teaches_nothing() -> None:
    store = random_store(0, users=1, longest=60)
    with pytest.raises(DataError, match="two users"):
        learn_thresholds(predictor_for(store).model, store, DecisionSettings())


def kept(work: Path, folder: Path) -> tuple[Predictor, Path]:
    """The trained model, copied."""
    import shutil

    shutil.copytree(work / "run/model", folder)
    return load(folder), folder / FILE


SPOILED: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "not JSON"),
    "a list": ("[]", "not a mapping"),
    "another format": ('{"format": 99}', "format 99"),
    "other labels": ('{"format": 1, "tokenizer_hash": "x"}', "other labels"),
    "too few": ('{"format": 1, "tokenizer_hash": "HASH", "thresholds": [0.5]}', "no list of"),
    "text": ('{"format": 1, "tokenizer_hash": "HASH", "thresholds": "a"}', "no list of"),
    "nested": ('{"format": 1, "tokenizer_hash": "HASH", "thresholds": [[1], 2]}', "no list of"),
    "no numbers": ('{"format": 1, "tokenizer_hash": "HASH", "thresholds": [NANS]}', "no list of"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_damaged_files_are_refused(work: Path, tmp_path: Path, case: str) -> None:
    model, path = kept(work, tmp_path / "model")
    text, told = SPOILED[case]
    nans = ", ".join(["NaN"] * model.tokenizer.behaviors.classes)
    path.write_text(text.replace("HASH", model.tokenizer.hash).replace("NANS", nans))
    with pytest.raises(CheckpointError) as error:
        load_thresholds(path.parent, model.tokenizer)
    assert told in str(error.value) and str(path) in str(error.value)
    with pytest.raises(CheckpointError, match="damaged or changed"):  # by the manifest
        load(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError):
        load(path.parent)


def test_a_file_that_is_put_is_checked(work: Path, tmp_path: Path) -> None:
    model, path = kept(work, tmp_path / "model")
    (path.parent / "README.md").write_text("a card, which no manifest knows")
    changed = Thresholds(np.arange(model.tokenizer.behaviors.classes, dtype=np.float32), {"a": 1})
    for _ in range(2):
        save_thresholds(changed, model.tokenizer, path.parent)
        again = load(path.parent).thresholds
        assert again is not None and again.facts == {"a": 1}
        np.testing.assert_array_equal(again.values, changed.values)
    (path.parent / "README.md").write_text("another card")
    load(path.parent)
    path.write_text(path.read_text().replace("0.0", "0.5", 1))
    with pytest.raises(CheckpointError, match=FILE):
        load(path.parent)


def universal() -> Any:
    log = pa.Table.from_pylist(EVENTS)
    return behavegpt.load("universal").fit_tables(log, user="u", time="t", event="e")


def untrained() -> Predictor:
    return predictor_for(random_store(0))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a model without": (untrained, {"thresholds": True}, "behavegpt thresholds MODEL DATA"),
    "both rules": (untrained, {"thresholds": True, "prior_correction": 1}, "cannot be combined"),
    "no truth value": (untrained, {"thresholds": "yes"}, "thresholds"),
    "the universal model": (universal, {"thresholds": True}, "validation split"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    make, options, told = REFUSED[case]
    with pytest.raises(ConfigError, match=told):
        make().predict(EVENTS, **options)


LINES: dict[str, tuple[list[str], str]] = {
    "universal learns none": (["thresholds", "universal", "DATA"], "validation split"),
    "universal has none": (["evaluate", "universal", "DATA", "--thresholds"], "trained models"),
    "unknown objective": (["thresholds", "MODEL", "DATA", "--objective", "f1"], "objective"),
    "share beyond 1": (["thresholds", "MODEL", "DATA", "--keep", "1.5"], "keep"),
    "both rules": (
        ["evaluate", "MODEL", "DATA", "--thresholds", "--prior-correction", "1"],
        "cannot be combined",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_the_command_line_says_what_is_wrong(
    work: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    line, told = LINES[case]
    places = {"MODEL": str(work / "run/model"), "DATA": str(work / "data")}
    assert main([places.get(word, word) for word in line]) == 2
    assert told in capsys.readouterr().err


def test_http_serves_the_same_rule(work: Path) -> None:
    model = load(work / "run/model")
    schema = model.tokenizer.event_schema
    log = pq.read_table(work / "log.parquet")
    first = pc.equal(log[schema.user], log[schema.user][0])
    some = log.filter(first).slice(0, 50).to_pylist()
    rows = [
        {k: str(v) if k == schema.time else v for k, v in row.items() if k != schema.user}
        for row in some
    ]
    asked = {"users": [{"id": "7", "events": rows}], "thresholds": True}
    with TestClient(make_app(model, ServeSettings())) as client:
        answer = client.post("/v1/predict", json=asked)
        both = client.post("/v1/predict", json=asked | {"prior_correction": 1})
    expected = model.predict(rows, thresholds=True)
    behaviors = answer.json()["users"][0]["behaviors"]
    assert [b["behavior"] for b in behaviors] == expected.labels[0].tolist()
    assert both.status_code == 422 and "cannot be combined" in both.text
    bare = Predictor(model.model, model.tokenizer)
    with TestClient(make_app(bare, ServeSettings())) as client:
        refused = client.post("/v1/predict", json=asked)
    assert refused.status_code == 422 and "this model has no thresholds" in refused.text


def test_a_graph_comes_with_the_models_thresholds(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export-model", str(work / "run/model"), str(out), "--format", "torch"]) == 0
    assert json.loads((out / "io.json").read_text())["thresholds"] == FILE
    model = load(work / "run/model")
    found = load_thresholds(out, model.tokenizer)
    assert found is not None and model.thresholds is not None
    np.testing.assert_array_equal(found.values, model.thresholds.values)
