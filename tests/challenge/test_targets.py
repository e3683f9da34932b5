"""Targets are the organizers' matrices bit for bit, for any clients in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.challenge.split import split
from behavegpt.challenge.targets import (
    OPEN_TASKS,
    TASKS,
    available_tasks,
    load_targets,
    write_targets,
)
from behavegpt.cli import main
from behavegpt.datasets.challenge_files import WINDOWS, open_directory
from behavegpt.errors import ConfigError, DataError
from tests.challenge.makers import make_directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_directory(tmp_path_factory.mktemp("targets") / "data")
    split(path)
    return path


def one_row(table: pd.DataFrame, client: int, column: str | None, labels: np.ndarray) -> np.ndarray:
    """The organizers' rule for one client, as the specification says it."""
    mine = table[table["client_id"] == client]
    if column is None:
        return np.array([len(mine) == 0])
    return np.isin(labels, mine[column].unique())


def test_the_organizers_matrices(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    mini = shared_data("challenge_mini")
    split(mini, tmp_path / "out")
    directory = open_directory(tmp_path / "out")
    write_targets(directory, tmp_path / "targets", list(TASKS))
    written = {file.stem: np.load(file) for file in (tmp_path / "targets").glob("*.npy")}
    with np.load(mini / "expected" / "targets.npz") as expected:
        assert np.array_equal(written["client_ids"], expected["client_ids"])
        assert np.array_equal(written["active"], expected["active"])
        for task in TASKS:
            for window in WINDOWS:
                # churn: the same, on active clients
                name = f"{'conversion' if task == 'churn' else task}_{window}"
                ours = written[f"{task}_{window}"]
                assert ours.dtype == np.uint8
                assert np.array_equal(ours, expected[name]), name


@pytest.mark.parametrize("task", TASKS)
def test_against_one_client_after_the_other(data: Path, task: str) -> None:
    """Clients in any order, unknown ones, one that occurs three times."""
    directory = open_directory(data)
    bought = {window: pd.read_parquet(directory.target(window)) for window in WINDOWS}
    rng = np.random.default_rng(0)
    clients = rng.permutation(
        np.r_[directory.relevant_clients, -5, 10**12, np.repeat(directory.active_clients[:1], 3)]
    )
    targets = load_targets(directory, clients, task)
    labels = np.load(directory.array(task)) if TASKS[task].column else np.empty(0)
    assert np.array_equal(targets.labels, labels)
    for window, matrix in zip(WINDOWS, (targets.train, targets.validation), strict=True):
        expected = np.stack(
            [one_row(bought[window], c, TASKS[task].column, labels) for c in clients]
        )
        assert expected.any()
        assert np.array_equal(matrix, expected.astype(np.uint8))
    taking_part = (
        np.isin(clients, directory.active_clients)
        if task == "churn"
        else np.ones(len(clients), bool)
    )
    assert np.array_equal(targets.rows, taking_part)


def test_labels_may_be_whole_floats_but_nothing_else(data: Path, tmp_path: Path) -> None:
    copy = open_directory(make_directory(tmp_path / "copy"))
    split(copy.path)
    path = copy.array("propensity_sku")
    labels = np.load(path)
    expected = load_targets(copy, copy.relevant_clients, "propensity_sku").train
    np.save(path, labels.astype(float))
    assert np.array_equal(
        load_targets(copy, copy.relevant_clients, "propensity_sku").train, expected
    )
    wrong = {
        "no whole number": labels + 0.5,
        "holds <U": labels.astype(str),
        "each once": np.r_[labels[:-1], labels[:1]],
        "Python objects": labels.astype(object),
    }
    for says, array in wrong.items():
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match=says):
            load_targets(copy, copy.relevant_clients, "propensity_sku")


def test_popularity_must_belong_to_the_labels(tmp_path: Path) -> None:
    data = open_directory(make_directory(tmp_path / "data"))
    split(data.path)
    path = data.array("popularity_propensity_price")
    for array in (
        np.ones(3),
        np.full(100, np.nan),
        np.zeros(100),
        -np.ones(100),
        np.array(["1"] * 100),
    ):
        np.save(path, array)
        with pytest.raises(DataError, match="popularity_propensity_price"):
            load_targets(data, data.relevant_clients, "propensity_price")


def test_clients_that_occur_twice_are_refused(tmp_path: Path) -> None:
    data = open_directory(make_directory(tmp_path / "data"))
    path = data.path / "input" / "relevant_clients.npy"
    ids = np.load(path)
    np.save(path, np.r_[ids, ids[4:5]])
    with pytest.raises(DataError, match=rf"client {ids[4]} \(index 4\)"):
        _ = data.relevant_clients


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["challenge", "targets", str(data), "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["tasks"]
    assert [fact["task"] for fact in facts] == list(TASKS)
    for fact in facts:
        matrix = np.load(out / f"{fact['task']}_validation.npy")
        rows = (
            np.load(out / "active.npy") if fact["task"] == "churn" else np.ones(len(matrix), bool)
        )
        assert fact["validation_positives"] == matrix[rows].sum()
        assert fact["labels_absent_in_validation"] == (matrix[rows].sum(axis=0) == 0).sum()
    assert main(["challenge", "targets", str(data), "--out", str(out), "--tasks", "chrun"]) == 2
    assert "Did you mean 'churn'?" in capsys.readouterr().err


def test_hidden_tasks_without_labels_are_left_out(tmp_path: Path) -> None:
    data = open_directory(make_directory(tmp_path / "data"))
    for name in ("propensity_new_sku", "propensity_price"):
        data.array(name).unlink()
    assert available_tasks(data) == (*OPEN_TASKS, "conversion")
    with pytest.raises(DataError, match=r"propensity_price\.npy is missing"):
        load_targets(data, data.relevant_clients, "propensity_price")
    with pytest.raises(ConfigError, match="use 'conversion'"):
        load_targets(data, data.relevant_clients, "hidden1")


def test_before_the_split_the_remedy_is_named(tmp_path: Path) -> None:
    data = open_directory(make_directory(tmp_path / "data"))
    with pytest.raises(
        DataError, match=r"train_target\.parquet is missing; run `behavegpt challenge split`"
    ):
        load_targets(data, data.relevant_clients, "churn")
