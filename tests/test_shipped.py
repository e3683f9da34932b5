"""The models that come with the package: listed, described, opened by name, and as good as their
cards say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.demo import DEMO_SCHEMA, online_retail
from behavegpt.demo.run import SPLIT
from behavegpt.evaluation import compare
from behavegpt.finetune import FinetuneSettings
from behavegpt.ingest.prepare import prepare
from behavegpt.shipped import SHIPPED, shipped_folder
from behavegpt.trained_folder import load

CARDS = {name: model.card.read_text(encoding="utf-8") for name, model in SHIPPED.items()}
FIGURES = {"rec_w": 0, "rec_m": 1, "ndcg@3": 2}  # columns of the card's table


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_names_data_licence_figures_and_limits(name: str) -> None:
    card = CARDS[name]
    front = card.split("---")[1]
    assert re.search(r"^license: (apache-2.0|cc-by-4.0)$", front, re.MULTILINE)
    assert "CC BY 4.0" in card and "Online Retail" in card and "## Limits" in card
    assert not re.search(r"/(?:tmp|work|home|root)/", card)
    assert SHIPPED[name].size < 5_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_has_the_metadata_of_the_hub(name: str) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCard(CARDS[name]).data
    assert isinstance(data, ModelCardData)
    assert data.library_name == "behavegpt" and data.license in ("apache-2.0", "cc-by-4.0")
    assert data.tags and all(isinstance(tag, str) for tag in data.tags)
    assert not data.eval_results, "the Hub would want a whole model-index"


def test_models_lists_them_and_prints_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(SHIPPED)
    assert main(["models"]) == 0
    assert "MB" in capsys.readouterr().out
    assert main(["models", "demo"]) == 0
    assert capsys.readouterr().out.strip() == CARDS["demo"].strip()
    assert main(["models", "dmeo"]) == 2
    assert "Did you mean 'demo'?" in capsys.readouterr().err


def test_the_demos_model_predicts_by_name(tmp_path: Path, capsys) -> None:
    log = pq.read_table(online_retail())
    few = log.filter(pc.is_in(log["user_id"], value_set=log["user_id"].unique().slice(0, 5)))
    pq.write_table(few, tmp_path / "shop.parquet")
    assert main(["predict", "demo", str(tmp_path / "shop.parquet"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len({row["user"] for row in told}) == 5
    found = behavegpt.load("demo").predict(few, top_k=1).to_table().to_pylist()
    best = {row["user"]: row["behavior"] for row in told if row["rank"] == 1}
    assert {row["user"]: row["behavior"] for row in found} == best
    assert main(["thresholds", "demo", str(tmp_path)]) == 2
    assert "is part of the package" in capsys.readouterr().err


def test_an_own_folder_of_the_name_comes_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_folder("demo") == SHIPPED["demo"].folder
    (tmp_path / "demo").mkdir()
    assert shipped_folder("demo") is None and shipped_folder("universal") is None


def test_the_demos_model_has_the_figures_of_its_card(tmp_path: Path) -> None:
    store = prepare([online_retail()], tmp_path / "data", DEMO_SCHEMA, split=SPLIT)
    result = compare(
        load("demo", "cpu"), store, tmp_path / "metrics.json", baselines=False, thresholds=True
    )
    row = re.search(r"^\| BehaveGPT \| (.*) \|$", CARDS["demo"], re.MULTILINE)
    assert row is not None
    told = [float(cell.strip("* ")) for cell in row[1].split("|")]
    for name, column in FIGURES.items():
        assert result["models"]["behavegpt"][name] == pytest.approx(told[column], abs=6e-4), name


def test_the_demos_model_is_a_base_by_name(tmp_path: Path) -> None:
    settings = {"mode": "full", "data": {"path": "absent"}, "out": str(tmp_path)}
    shipped = FinetuneSettings.model_validate(settings | {"base": "demo"})
    assert shipped.base_folder == SHIPPED["demo"].folder
    own = FinetuneSettings.model_validate(settings | {"base": "runs/mine/model"})
    assert own.base_folder == Path("runs/mine/model")
