"""What an evaluation says beside its figures: targets it leaves out, and data that need no
model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behavegpt import plots
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import TEST, EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import DataError
from behavegpt.evaluation import compare
from behavegpt.evaluation_summary import metrics_table
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.predictor import Predictor
from behavegpt.report import write_model_card, write_report
from behavegpt.report.tables import metric_table
from tests.helpers import random_store
from tests.runs import save_store
from tests.test_plots import fake_run


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds and is tested elsewhere."""
    monkeypatch.setattr(plots, "draw_all", lambda run, named: [])


def predictor_for(store: EventStore) -> Predictor:
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        embedding_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_length=16,
    )
    return Predictor(BehaveGPTForBehaviorPrediction(config), EventTokenizer.from_store(store, 16))


def made(
    folder: Path, *, behaviors: int = 5, unseen: float = 0.0, constant: bool = False
) -> EventStore:
    """A prepared folder; a share of its test events has unknown behaviors, or all of them have
    one."""
    store = random_store(2, users=25, behaviors=behaviors)
    np.maximum(store.columns["behavior"], FIRST, out=store.columns["behavior"])
    test = np.flatnonzero(np.asarray(store.columns["split"]) == TEST)
    if constant:
        store.columns["behavior"][test] = 3
    store.columns["behavior"][test[: int(unseen * len(test))]] = 1
    return open_store(save_store(store, folder / "data"))


def evaluated(folder: Path, **data: Any) -> tuple[dict[str, Any], str]:
    store = made(folder, **data)
    result = compare(predictor_for(store), store, folder / "eval" / "metrics.json")
    _, rows, title = metrics_table(result)
    return result, "\n".join([title, *(" ".join(row) for row in rows)])


def test_targets_with_unseen_labels_are_counted_and_are_misses_beside_each_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, table = evaluated(tmp_path, unseen=0.9)
    store = open_store(tmp_path / "data")
    rows, unseen = len(target_rows(store, TEST)), count_unseen(store, TEST)
    assert result["rows"] == rows and result["unseen"] == {
        "targets": unseen,
        "share": unseen / (rows + unseen),
    }
    assert rows + unseen == len({*target_rows(store, TEST)}) + result["unseen"]["targets"]
    assert unseen > 4 * rows > 0
    for name, figures in result["models"].items():
        strict = figures["with_unseen"]
        assert set(strict) == set(figures) - {"with_unseen", "cross_entropy"}, name
        for key in ("rec_w", "hr@3", "ndcg@5", "prec_w"):
            assert strict[key] == pytest.approx(figures[key] * rows / (rows + unseen))
        assert strict["rec_m"] < figures["rec_m"] and strict["prec_m"] < figures["prec_m"]
    written = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert written["models"]["markov"]["with_unseen"] == result["models"]["markov"]["with_unseen"]
    text = f"{unseen:,} of {rows + unseen:,} targets"
    assert text in capsys.readouterr().err and any(text in remark for remark in written["remarks"])
    assert table.count("with unseen") == len(result["models"]) + 1
    assert f"{result['models']['behavegpt']['with_unseen']['hr@3']:.4f}" in table
    run = fake_run(tmp_path / "run")
    (run / "eval" / "metrics.json").write_text(json.dumps(written))
    lines = metric_table(written["models"], unseen)["rows"]
    assert all(len(line["with_unseen"]) == len(line["cells"]) for line in lines)
    for page in (write_report(run), write_model_card(run)):
        text = page.read_text()
        assert (
            text.count("with unseen") >= len(lines)
            and f"{unseen:,} of {rows + unseen:,} targets" in text
        )


def test_where_all_labels_are_known_nothing_is_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, table = evaluated(tmp_path, behaviors=6)
    for figures in result["models"].values():
        assert all(figures[name] == value for name, value in figures["with_unseen"].items())
    assert (
        result["remarks"] == []
        and "with unseen" not in table
        and "note:" not in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "data,remark",
    [
        ({"behaviors": 1}, "a constant predictor is enough"),
        ({"constant": True}, "targets are 'behavior1': a constant predictor is enough"),
        ({"behaviors": 2}, "with 2 behaviors HR@3 and HR@5 is 1 whatever the model"),
        ({"behaviors": 4}, "with 4 behaviors HR@5 is 1 whatever the model"),
    ],
)
def test_figures_that_need_no_model_are_named(
    data: dict[str, Any], remark: str, tmp_path: Path
) -> None:
    result, _ = evaluated(tmp_path, **data)
    assert any(remark in text for text in result["remarks"]), result["remarks"]
    run = fake_run(tmp_path / "run")
    (run / "eval" / "metrics.json").write_text(json.dumps(result))
    assert remark.replace("'", "&#39;") in write_report(run).read_text()
    assert remark in write_model_card(run).read_text()


def test_a_split_of_unseen_labels_alone_says_why_it_cannot_be_scored(tmp_path: Path) -> None:
    store = made(tmp_path, unseen=1.0)
    with pytest.raises(DataError, match=r"behaviors of its \d+ targets do not occur in training"):
        compare(predictor_for(store), store, tmp_path / "eval" / "metrics.json")


def test_intervals_and_examples_by_behavior_come_with_the_figures(tmp_path: Path) -> None:
    store = made(tmp_path)
    result = compare(predictor_for(store), store, tmp_path / "eval" / "metrics.json")
    uncertainty = result["uncertainty"]
    assert set(uncertainty["intervals"]) == set(result["models"])
    assert set(uncertainty["differences"]) == set(result["models"]) - {"behavegpt"}
    for name, figures in uncertainty["intervals"].items():
        for figure, (low, high) in figures.items():
            assert low <= result["models"][name][figure] <= high, (name, figure)
    shown = json.loads((tmp_path / "eval" / "examples.json").read_text())
    labels = [str(label) for label in store.behaviors.values.to_pylist()]
    assert set(shown["by_behavior"]) <= set(labels) and any(shown["by_behavior"].values())
    for label, found in shown["by_behavior"].items():
        assert len(found) <= 2 and all(example["actual"] == label for example in found)
        right = [example["predicted"][0][0] == label for example in found]
        assert right in ([], [True], [False], [True, False])
