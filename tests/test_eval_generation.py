"""eval/generation.py: rows, resumption, table and figure."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from behavegpt.data.store import open_store
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.ingest.prepare import prepare
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("generation", ROOT / "eval" / "generation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("generation")
    pq.write_table(small_log(users=60, events=6000, seed=2), place / "log.parquet")
    prepare([place / "log.parquet"], place / "data", SYNTHETIC_SCHEMA, split="time:0.5,0.1,0.4")
    return place / "data"


def test_the_task_holds_what_came_after(script, data):
    store = open_store(data)
    task = script.make_task(store, users=20, steps=15, least=5)
    labels = store.users().to_pylist()
    time = np.asarray(store.columns["time"]).astype(np.int64) + store.manifest.time_origin
    assert 5 < len(task.real) <= 20
    for row, user in enumerate(task.histories.users.to_pylist()):
        index = np.arange(*store.offsets[labels.index(user) : labels.index(user) + 2])
        past = index[store.columns["split"][index] < 2]
        low, high = task.histories.offsets[row : row + 2]
        assert np.array_equal(task.histories.columns["time"][low:high], time[past])
        future = [
            i for i in index if store.columns["split"][i] == 2 and store.column("behavior")[i] >= 2
        ][:15]
        mine = slice(15 * row, 15 * row + 15)
        assert np.array_equal(
            task.real.behavior[mine], np.asarray(store.column("behavior"))[future].astype(int) - 2
        )
        assert task.real.gap[mine].tolist() == [time[i] - time[i - 1] for i in future]


def test_what_happened_is_the_best_forecast(script, data):
    store = open_store(data)
    task = script.make_task(store, users=20, steps=15, least=5)
    users, classes = len(task.real), store.behaviors.classes
    assert script.horizon.otd(task.timeline, task.timeline, users) == 0
    found = script.horizon.t_map(task.timeline, task.timeline, classes)
    assert found["t_map_w"] == 1 and found["t_map"] > 0.5
    assert np.all(task.timeline.days >= 0)


def test_rows_table_and_figure(script, data, tmp_path, capsys):
    line = [
        str(data),
        "--out",
        str(tmp_path / "rows.jsonl"),
        "--runs",
        str(tmp_path / "runs"),
        "--users",
        "10",
    ]
    line += ["--steps", "12", "--config", str(ROOT / "configs/tiny.yaml"), "--seeds", "0"]
    line += ["--train", "train.steps=3", "model.next_heads=[event,location,gap,slot]"]
    assert script.main(line) == 0
    rows = [json.loads(text) for text in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["generator"] for row in rows] == [
        *(
            "real",
            "real, half against half",
            "history density",
            "forecast",
            "repeat_window",
            "user_by_hour",
            "markov",
            "behavegpt",
        ),
    ]
    assert rows[-1]["consistent"] == 1
    for row in rows[2:]:
        assert 0 < row["otd"] <= 20 and 0 <= row["t_map"] <= 1 and 0 <= row["t_map_w"] <= 1
    assert script.main(line) == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(rows), (
        "finished rows are skipped"
    )
    # as if killed while training: it goes on, to the same end
    shutil.rmtree(tmp_path / "runs" / "seed_0" / "model")
    assert script.main([*line, "--speed"]) == 0
    speeds = [json.loads(text) for text in (tmp_path / "rows.jsonl").read_text().splitlines()][
        len(rows) :
    ]
    assert [row["same_tokens"] for row in speeds] == [1, 1]
    capsys.readouterr()
    assert script.main([*line, "--table", "--plot", str(tmp_path / "figure.png")]) == 0
    assert "| behavegpt | 1 |" in capsys.readouterr().out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_learned_generators_leave_rows_of_the_same_form(script, data, tmp_path):
    line = [
        str(data),
        "--out",
        str(tmp_path / "rows.jsonl"),
        "--users",
        "10",
        "--steps",
        "12",
        "--seeds",
        "0",
    ]
    assert (
        script.main(
            [*line, "--budget", "300", "--generators", "seqgan rounds=0", "diffuseq", "upc_sdg"]
        )
        == 0
    )
    _, _, _, _, *rows = [
        json.loads(text) for text in (tmp_path / "rows.jsonl").read_text().splitlines()
    ]
    assert [(row["generator"], row["settings"]["events"]) for row in rows] == [
        *(("seqgan rounds=0", 300), ("diffuseq", 300), ("upc_sdg", 300)),
    ]
    assert all(set(script.FIGURES) <= set(row) for row in rows)
