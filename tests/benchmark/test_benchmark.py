"""`behavegpt benchmark`: tuned on validation, finals of all seeds, nothing done twice, tables from
the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from behavegpt.baselines import counts
from behavegpt.benchmark import run as benchmark_run
from behavegpt.benchmark.run import benchmark, plans_of
from behavegpt.benchmark.settings import BenchmarkSettings
from behavegpt.benchmark.tables import _unseen, truth, write_tables
from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import TEST, open_store
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import ConfigError, DataError
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.pretrain import PretrainSettings
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.runs import save_store

PLAIN = (
    "model: {embedding_size: 4, num_hidden_layers: 1, num_attention_heads: 2, max_length: 16, "
    "dropout: 0.0}\n"
)
LOSS = "loss: {name: cross_entropy}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A log in which every event is followed by the next label, and three models."""
    folder = tmp_path_factory.mktemp("benchmark")
    store = random_store(behaviors=None, users=30)
    place = np.arange(store.manifest.events) - np.repeat(store.offsets[:-1], np.diff(store.offsets))
    store.columns["event"][:] = place % 12 + FIRST
    save_store(store, folder / "log")
    (folder / "plain.yaml").write_text(PLAIN + LOSS)
    (folder / "gru.yaml").write_text(f"base: plain.yaml\nmodel: {{architecture: gru}}\n{LOSS}")
    (folder / "lift.yaml").write_text(
        "model: {architecture: lift}\nloss: {name: logit_adjustment}\n"
    )
    (folder / "benchmark.yaml").write_text(
        json.dumps(
            {
                "out": str(folder / "out"),
                "data": {"log": {"path": str(folder / "log"), "train": {"steps": 8}}},
                "models": {
                    "lift": {"config": str(folder / "lift.yaml"), "base": "plain"},
                    "plain": {"config": str(folder / "plain.yaml")},
                    "gru": {
                        "config": str(folder / "gru.yaml"),
                        "set": {"model.initializer_range": 0.3},
                    },
                },
                "seeds": [0, 1],
                "train": {"steps": 99, "batch_events": 256, "valid_every": 4, "log_every": 2},
                "tuning": {"grid": {"train.lr": [1e-6, 0.03]}, "select": "ndcg@3"},
                "versus": "gru",
                "draws": 20,
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def settings(folder) -> BenchmarkSettings:
    return read_settings(BenchmarkSettings, folder / "benchmark.yaml")


@pytest.fixture(scope="module")
def rows(settings):
    return benchmark(settings)


def test_every_model_is_tuned_alike_and_run_with_all_seeds(rows, folder):
    assert all(row["status"] == "done" for row in rows), [row.get("reason") for row in rows]
    trained = [row for row in rows if row["seed"] is not None]
    for model in ("plain", "gru", "lift"):
        tuned = [row for row in trained if row["model"] == model and row["kind"] == "tune"]
        finals = [row for row in trained if row["model"] == model and row["kind"] == "final"]
        assert [row["point"] for row in tuned] == [{"train.lr": 1e-6}, {"train.lr": 0.03}]
        assert all("test" not in row for row in tuned), "tuning does not look at the test split"
        best = max(tuned, key=lambda row: row["valid"]["ndcg@3"])
        assert [(row["seed"], row["point"]) for row in finals] == [
            (0, best["point"]),
            (1, best["point"]),
        ]
        assert finals[0]["key"] == best["key"] and finals[0]["valid"] == best["valid"], (
            "not trained again"
        )
        assert {row["steps"] for row in tuned + finals} == {8}, "the log's own budget"
        assert all(row["parameters"] > 0 and row["epoch_seconds"] > 0 for row in finals)
    assert len({row["protocol_hash"] for row in trained}) == 1
    bases = {
        row["key"]: row["seed"]
        for row in trained
        if row["model"] == "plain" and row["kind"] == "final"
    }
    lift = [row for row in trained if row["model"] == "lift"]
    assert all(bases[row["base"]] == row["seed"] for row in lift), (
        "each seed on the base of the same seed"
    )
    assert not list((folder / "out" / "runs").glob("*/ckpt")) and not list(
        (folder / "out" / "runs").glob("*/model")
    )


def test_the_ranks_give_the_figures_again(rows, folder):
    target, user = truth(open_store(folder / "log"))
    finals = [row for row in rows if row["kind"] == "final"]
    assert len(finals) == 6 + len(counts.NAMES)  # three models of two seeds
    for row in finals:
        ranks = np.load(folder / "out" / "ranks" / f"{row['key']}.npy", allow_pickle=False)
        assert len(ranks) == len(target) == len(user)
        assert (ranks == 0).mean() == pytest.approx(row["test"]["rec_w"])
        recall = [(ranks[target == k] == 0).mean() for k in np.unique(target)]
        assert np.mean(recall) == pytest.approx(row["test"]["rec_m"])


def test_nothing_is_done_twice(rows, settings, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(benchmark_run, "pretrain", refuse)
    assert benchmark(settings) == rows
    less = settings.model_copy(update={"models": {"gru": settings.models["gru"]}, "counts": False})
    assert [row["model"] for row in benchmark(less)] == ["gru"] * 4
    store = open_store(settings.data["log"].path)
    more = settings.model_copy(update={"seeds": [0, 1, 2]})
    [plan] = plans_of(more, {"log": store})
    # LIFT's third seed waits for its base's
    waiting = [(planned.run.model, planned.run.seed, planned.kind) for planned in plan.open()]
    assert waiting == [("plain", 2, "final"), ("gru", 2, "final")]


def test_a_model_added_later_finds_its_base_again(settings, rows, tmp_path):
    """The weights of a finished benchmark are removed; the base is then trained again, to the same
    figures."""
    alone = {
        "out": str(tmp_path),
        "counts": False,
        "seeds": [0],
        "models": {"plain": settings.models["plain"]},
    }
    benchmark(settings.model_copy(update=alone))
    assert not list((tmp_path / "runs").glob("*/model"))
    models = {name: settings.models[name] for name in ("plain", "lift")}
    found = benchmark(settings.model_copy(update={**alone, "models": models}))
    wanted = [row for row in rows if row["model"] == "lift" and row["seed"] == 0]
    got = [row for row in found if row["model"] == "lift"]
    assert [row["status"] for row in got] == ["done"] * 3
    assert [(row["key"], row["valid"]) for row in got] == [
        (row["key"], row["valid"]) for row in wanted
    ]


def test_a_failure_is_recorded_and_the_rest_goes_on(rows, settings, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(benchmark_run, "pretrain", fail)
    other = settings.model_copy(update={"train": {**settings.train, "batch_events": 128}})
    found = [row for row in benchmark(other) if row["seed"] is not None]
    assert {(row["model"], row["status"]) for row in found} == {
        ("plain", "failed"),
        ("gru", "failed"),
    }
    assert "out of memory" in found[0]["reason"] and "4 runs failed" in capsys.readouterr().err


def test_tables_and_figures_of_the_rows(rows, settings, folder, capsys):
    assert main(["benchmark", str(folder / "benchmark.yaml"), "--table"]) == 0
    text = capsys.readouterr().out
    assert text == (folder / "out" / "tables.md").read_text() + "\n"
    gru = [row for row in rows if row["model"] == "gru" and row["kind"] == "final"]
    values = [row["test"]["rec_w"] for row in gru]
    assert f"| 2 | {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} |" in text
    assert "minus the others" in text and text.count("| most frequent |") == 2
    compared = json.loads((folder / "out" / "comparison.json").read_text())["data"]["log"]
    plain = [
        row["test"]["rec_m"] for row in rows if row["model"] == "plain" and row["kind"] == "final"
    ]
    wanted = np.mean([row["test"]["rec_m"] for row in gru]) - np.mean(plain)
    assert compared["plain"]["rec_m"]["mean"] == pytest.approx(wanted)
    for name in ("log_frontier.png", "log_groups.png"):
        assert (folder / "out" / name).stat().st_size > 10_000
    elsewhere = settings.model_copy(update={"tables": str(folder / "docs")})
    assert write_tables(elsewhere).read_text() == (folder / "out" / "tables.md").read_text()
    assert [
        json.loads(line) for line in (folder / "docs" / "rows.jsonl").read_text().splitlines()
    ] == rows
    with pytest.raises(DataError, match="no finished runs"):
        write_tables(
            settings.model_copy(
                update={"train": {"steps": 1}, "data": settings.data, "counts": False, "seeds": [7]}
            )
        )


def test_counts_are_given_what_models_are_and_the_table_says_it(settings, rows, folder, tmp_path):
    """Events that the hour tells: with the time given, the counts of hours are ahead."""
    store = open_store(folder / "log")
    slot = np.asarray(store.columns["slot"])
    hourly = store.__class__(
        store.path,
        store.manifest,
        store.vocabulary,
        {**store.columns, "event": (slot // 4 + FIRST).astype(np.uint8)},
        store.offsets,
    )
    save_store(hourly, tmp_path / "log")
    plain = settings.models["plain"]
    timed = plain.model_copy(update={"set": {"model.given": ["time"]}})
    changed = {
        "out": str(tmp_path / "out"),
        "data": {"log": settings.data["log"].model_copy(update={"path": str(tmp_path / "log")})},
        "models": {"plain": plain, "timed": timed},
        "seeds": [0],
        "versus": "timed",
        "tuning": settings.tuning.model_copy(update={"grid": {}}),
    }
    mine = settings.model_copy(update=changed)
    found = {(row["model"], tuple(row["given"])): row["test"]["rec_w"] for row in benchmark(mine)}
    names = [(name, given) for given in ((), ("time",)) for name in counts.NAMES]
    assert found.keys() == {("plain", ()), ("timed", ("time",)), *names}
    assert found["by_hour", ("time",)] > 0.9 > 0.4 > found["by_hour", ()]
    text = write_tables(mine).read_text()
    for line in ("| by hour |", "| by hour, given time |", "| timed, given time |", "| plain |"):
        assert line in text
    assert "hidden from a model unless its name says that they were given" in text
    assert "timed, given time minus the others" in text
    assert "Given of the target: nothing." in write_tables(settings).read_text()


def test_a_dry_run_lists_what_can_start(folder, capsys):
    line = ["benchmark", str(folder / "benchmark.yaml"), f"out={folder / 'new'}", "--dry-run"]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert text.count("tune") == 4 and "lift" not in text and not (folder / "new").exists()


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["versus=nobody"], "versus = 'nobody'"),
        (["models.gru.base=gru"], r"models\.gru\.base"),
        (["models.plain.base=lift"], "has a base itself"),
        (["tuning.select=loss"], r"tuning\.select"),
    ],
)
def test_mistakes_are_named(folder, overrides, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(BenchmarkSettings, folder / "benchmark.yaml", overrides)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "benchmark").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configs_name_files_that_load(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert path.read_text().startswith("#") and "behavegpt benchmark" in path.read_text()
    settings = read_settings(BenchmarkSettings, path)
    for entry in settings.models.values():
        read_settings(PretrainSettings, entry.config, ["data.path=x", "out=y"])


def test_the_shipped_benchmarks_name_their_own_logs_alone():
    logs = {
        "newyork": ["newyork"],
        "public": ["jakarta", "retail"],
        "globo": ["globo"],
        "small": ["mine"],
    }
    for name, expected in logs.items():
        settings = read_settings(BenchmarkSettings, ROOT / "configs" / "benchmark" / f"{name}.yaml")
        assert sorted(settings.data) == expected
        assert {"behavegpt_dro", "hstu", "lift"} <= set(settings.models)


def test_the_caption_counts_targets_with_unseen_labels_as_misses_too():
    store = random_store(2, users=25)
    rows, unseen = target_rows(store, TEST), count_unseen(store, TEST)
    model = torch.zeros(len(rows), store.behaviors.classes)
    target = torch.from_numpy(store.column("behavior")[rows].astype(np.int64) - FIRST)
    metrics = PredictionMetrics(store.behaviors.classes).update(model, target)
    plain, strict = metrics.compute(), metrics.with_unseen(unseen).compute()
    said = _unseen(store)
    assert f"{unseen} more test targets" in said
    for figure in ("rec_w", "rec_m"):
        assert f"{strict[figure] / plain[figure]:.4f} times" in said, figure
