"""Rows survive torn lines and several writers; figures that are none are refused."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from behavegpt.errors import DataError
from behavegpt.grid import append_row, read_rows
from behavegpt.scaling.rows import usable_rows


def _write(path: str, worker: int) -> None:
    for number in range(40):
        append_row(Path(path), {"worker": worker, "number": number, "text": "x" * 500})


def test_several_processes_append_whole_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    processes = [
        multiprocessing.get_context("fork").Process(target=_write, args=(str(path), w))
        for w in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = read_rows(path)
    assert sorted((row["worker"], row["number"]) for row in rows) == [
        (w, n) for w in range(3) for n in range(40)
    ]


def test_a_torn_line_is_cut_off_before_the_next_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2, "b"')
    assert read_rows(path) == [{"a": 1}]
    append_row(path, {"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_a_row_without_a_finite_figure_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        append_row(tmp_path / "rows.jsonl", {"loss": float("nan")})
    assert read_rows(tmp_path / "rows.jsonl") == []


def test_failed_runs_are_no_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(
        path,
        {
            "status": "failed",
            "reason": "out of memory",
            "params": 1,
            "params_without_embeddings": 1,
        },
    )
    append_row(
        path,
        {"status": "done", "params": 10, "params_without_embeddings": 4, "events": 5, "loss": 2.0},
    )
    append_row(path, {"params": 11, "params_without_embeddings": 5, "events": 5, "loss": 1.9})
    assert [row["params"] for row in usable_rows([path])] == [10, 11]
    assert [row["params"] for row in usable_rows([path], "without_embeddings")] == [4, 5]


@pytest.mark.parametrize(
    "row", [{"loss": None}, {"loss": 0}, {"events": "many"}, {"params": True}, {"loss": -1.0}]
)
def test_a_figure_that_is_none_is_named(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"params": 10, "events": 5, "loss": 2.0} | row) + "\n")
    with pytest.raises(DataError, match=f"rows.jsonl, row 1: '{next(iter(row))}'"):
        usable_rows([path])


def test_the_learning_rate_is_chosen_on_validation_not_on_the_fitted_loss(tmp_path):
    path = tmp_path / "rows.jsonl"
    cell = {"name": "m", "shape": "8x1", "params": 10, "events": 5, "seed": 0}
    append_row(path, {**cell, "lr": 1e-3, "loss": 1.8, "choice_loss": 2.1})
    append_row(path, {**cell, "lr": 2e-3, "loss": 1.9, "choice_loss": 2.0})
    append_row(path, {**cell, "seed": 1, "lr": 1e-3, "loss": 1.7, "choice_loss": 2.2})
    assert [row["loss"] for row in usable_rows([path])] == [1.9, 1.7]
