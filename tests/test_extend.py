"""Behaviors that are added without training: everything else as before, and predicted once seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from behavegpt.cli import main
from behavegpt.data.memory_columns import store_columns
from behavegpt.data.memory_tables import Counted, fit_tables, with_classes
from behavegpt.data.store import TRAIN
from behavegpt.demo import online_retail
from behavegpt.export_model import export_model
from behavegpt.graph_inputs import GraphInputs
from behavegpt.predictor import Predictor
from behavegpt.trained_folder import load
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.test_export_model import NEEDED, runner
from tests.test_retire import saved
from tests.test_user_states import histories

STORE = random_store(0)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "history": {"history_head": True},
    "memory": {"memory": True},
    "memory, no blocks": {"memory": True, "num_hidden_layers": 0},
}
NEW = ["garden gnome", "sundial"]


@pytest.mark.parametrize("shape", KINDS.values(), ids=KINDS)
def test_all_else_is_as_before(tmp_path: Path, shape: dict[str, Any]) -> None:
    before, encoded = saved(tmp_path / "model", **shape), histories(STORE)
    out = str(tmp_path / "with")
    assert main(["vocabulary", "add", str(tmp_path / "model"), *NEW, "--out", out]) == 0
    after = load(out, "cpu")

    known = before.tokenizer.behaviors.values.to_pylist()
    assert after.tokenizer.behaviors.values.to_pylist() == known + NEW
    everything = before.predict(encoded, 100).to_pandas()
    found = after.predict(encoded, 100).to_pandas()
    assert set(NEW) <= set(found.behavior)
    # what was known keeps its probability but for what is new, which was never seen
    rest = found[~found.behavior.isin(NEW)]
    whole = rest.groupby("user").probability.transform("sum")
    tables = [
        table.pivot(index="user", columns="behavior", values="probability")
        for table in (everything, rest.assign(probability=rest.probability / whole))
    ]
    np.testing.assert_allclose(tables[1][tables[0].columns], tables[0], atol=1e-2)
    assert np.allclose(after.embed(encoded).vectors, before.embed(encoded).vectors, atol=1e-6)
    after.generate(encoded, 1)


def test_tables_with_more_classes_are_those_of_a_log_that_has_them_not() -> None:
    columns = store_columns(STORE)
    used = np.asarray(STORE.columns["split"]) == TRAIN
    classes = STORE.behaviors.classes
    folds = np.zeros(len(STORE.offsets) - 1, np.int64)
    few, many = (
        fit_tables(columns, STORE.offsets, Counted(used, number, folds))
        for number in (classes, classes + 3)
    )
    events = int((used & (columns.behavior >= 0)).sum())
    found = with_classes(few, events, 3)
    np.testing.assert_allclose(found.prior, many.prior, rtol=1e-6)
    # places in the hash tables may differ, contexts and what followed them not
    contexts = []
    for tables in (found, many):
        filled = tables.key >= 0
        rows = tables.row[filled]
        followers = [
            tables.follower[tables.start[row] : tables.start[row + 1]].tolist() for row in rows
        ]
        contexts.append(dict(zip(tables.key[filled].tolist(), followers, strict=True)))
    assert contexts[0] == contexts[1]


@pytest.fixture(scope="module")
def gnomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The demo model with a family more, and a customer of Online Retail who buys of it."""
    folder = tmp_path_factory.mktemp("gnomes")
    model = str(ROOT / "behavegpt/demo/model")
    assert main(["vocabulary", "add", model, *NEW, "--out", str(folder / "with")]) == 0
    log = pd.read_parquet(online_retail())
    rows = log[log["user_id"] == 12347].reset_index(drop=True)
    gnome = rows.tail(8).assign(family=NEW[0], event="gnome")
    gnome["timestamp"] += pd.to_timedelta(np.arange(1, 9), "D")
    return folder, pd.concat([rows, gnome], ignore_index=True)


def test_a_new_behavior_is_predicted_once_it_was_seen(gnomes: tuple[Path, pd.DataFrame]) -> None:
    folder, events = gnomes
    model = load(folder / "with", "cpu")

    def probability(rows: pd.DataFrame) -> float:
        table = model.predict(rows, 100).to_pandas()
        return float(table[table.behavior == NEW[0]].probability.iloc[0])

    unseen, once, often = (probability(events.iloc[: len(events) - n]) for n in (8, 7, 0))
    assert unseen < 1e-4 and once > 50 * unseen and often > 0.2
    assert model.predict(events, 1).labels[0, 0] == NEW[0]
    assert NEW[0] in model.explain(events).because[0]


@pytest.mark.parametrize("kind", NEEDED)
def test_other_runtimes_know_it_too(
    kind: Any, gnomes: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """After adding, and after retiring another one beside it."""
    for library in NEEDED[kind]:
        pytest.importorskip(library, reason=f"{library} is not installed; pip install -e '.[onnx]'")
    folder, events = gnomes
    less = ["vocabulary", "retire", str(folder / "with"), "bag", "--out", str(tmp_path / "less")]
    assert main(less) == 0

    for name, model in (("with", folder / "with"), ("less", tmp_path / "less")):
        predictor, out = load(model, "cpu"), tmp_path / f"{name} file"
        export_model(predictor, out, kind)
        inputs = GraphInputs(out)
        feed = inputs.of(events)[1]
        logits = torch.from_numpy(runner(kind, out)(feed)[0])
        expected = predictor.predict(events, 3)
        found = logits.softmax(-1).topk(3).values
        np.testing.assert_allclose(found, expected.probabilities, atol=1e-5)
        assert inputs.labels(logits.numpy(), 3).tolist() == expected.labels.tolist()
        assert expected.labels[0, 0] == NEW[0]


def test_times_go_along_and_retired_ones_come_back(tmp_path: Path) -> None:
    from behavegpt.timing.files import load_gaps, save_gaps
    from behavegpt.timing.fit import fit_gaps

    before = saved(tmp_path / "model", memory=True)
    save_gaps(fit_gaps(STORE), before.tokenizer, tmp_path / "model")
    less, more = str(tmp_path / "less"), str(tmp_path / "more")
    assert main(["vocabulary", "retire", str(tmp_path / "model"), "behavior1", "--out", less]) == 0
    shutil.copyfile(tmp_path / "model/timing.json", tmp_path / "less/timing.json")
    assert main(["vocabulary", "add", less, "behavior1", *NEW, "--out", more]) == 0

    after: Predictor = load(more, "cpu")
    assert after.model.config.retired is None and after.timing is not None
    assert len(after.timing.label) == len(after.tokenizer.behaviors)
    old = load_gaps(tmp_path / "model", before.tokenizer)
    assert old is not None
    np.testing.assert_array_equal(after.timing.label[: len(old.label)], old.label)
    assert "behavior1" in after.predict(histories(STORE), 100).labels


REFUSED = {
    "known": (["behavior1"], "already predicts 'behavior1'"),
    "empty": ([" "], "empty label"),
}


@pytest.mark.parametrize(("labels", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], words: str
) -> None:
    saved(tmp_path / "model")
    saved(tmp_path / "gru", memory=True, architecture="gru")
    out = tmp_path / "out"
    assert main(["vocabulary", "add", str(tmp_path / "model"), *labels, "--out", str(out)]) == 2
    assert words in capsys.readouterr().err and not out.exists()
    assert main(["vocabulary", "add", str(tmp_path / "gru"), "x", "--out", str(out)]) == 2
    assert "baseline" in capsys.readouterr().err
    assert main(["vocabulary", "add", "universal", "a", "--out", str(out)]) == 2


def test_the_command_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "model", memory=True)
    (tmp_path / "new.txt").write_text("a b\nc\n", encoding="utf-8")
    labels = [f"@{tmp_path / 'new.txt'}", "d"]
    out = str(tmp_path / "out")
    command = ["vocabulary", "add", str(tmp_path / "model"), *labels, "--out", out, "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["added"] == 3 and told["known"] == STORE.behaviors.classes and told["left"] == []
    values = load(out, "cpu").tokenizer.behaviors.values.to_pylist()
    assert values[-3:] == ["a b", "c", "d"]
