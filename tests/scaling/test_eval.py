"""eval/scaling.py from nothing to the summary, and the floor it compares with."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, open_store
from behavegpt.datasets.synthetic_world import make_world
from behavegpt.scaling.subsets import divide, heldout_store
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("eval_scaling", ROOT / "eval" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_floor_is_that_of_the_held_out_targets(script, tmp_path, split):
    data = script.synthetic_data(8000, 2, tmp_path)
    store = open_store(data)
    heldout = heldout_store(divide(store, split, 300, seed=0), tmp_path / "heldout")
    found = script.best_possible(heldout, tmp_path / "log.parquet", make_world(2), split)
    log = pq.read_table(tmp_path / "log.parquet")
    probability = make_world(2).next_behavior_probabilities(log)
    user, behavior = log["user_id"].to_pylist(), log["behavior"].to_pylist()
    names = {name: i for i, name in enumerate(make_world(2).labels["behavior"].to_pylist())}
    by_user: dict[str, list[float]] = {}
    for n in range(len(user) - 1):
        if user[n] == user[n + 1]:
            by_user.setdefault(str(user[n]), []).append(
                -np.log(probability[n, names[behavior[n + 1]]])
            )
    expected = []
    for u, label in enumerate(heldout.users().to_pylist()):
        begin, end = heldout.offsets[u], heldout.offsets[u + 1]
        splits = heldout.columns["split"][begin + 1 : end]
        expected += [by_user[label][i] for i in range(len(splits)) if splits[i] == SPLITS[split]]
    assert len(expected) == len(target_rows(heldout, SPLITS[split]))
    assert found == pytest.approx(np.mean(expected))


@pytest.mark.slow
def test_the_script_sweeps_fits_and_compares_with_the_floor(script, tmp_path, capsys):
    shapes = ", ".join(f"{{embedding_size: {d}, num_attention_heads: 2}}" for d in (2, 4, 12))
    settings = [f"sizes=[{shapes}]", "model={max_length: 32, dropout: 0.0, num_hidden_layers: 1}"]
    settings += ["events=[1e3, 4e3, 16e3]", "data.heldout_events=500", "lr={values: [1e-2]}"]
    assert script.main(["--synthetic", "40000", "--out", str(tmp_path), "--set", *settings]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 9 and found["best_possible"] < min(losses)  # nobody beats the law
    assert len(list((tmp_path / "fit_figs").glob("*.png"))) == 4
    assert "lowest possible loss" in capsys.readouterr().out
