"""The grid runner: done runs are skipped, claimed ones are left to others, and the published rows
are found as done."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from behavegpt.errors import BehaveGPTError
from behavegpt.grid import Grid, Row, Run, attempted, claim, find, made_once, mean_and_deviation
from tests.conftest import ROOT


def one(name: str, done: list[str]) -> Iterator[Row]:
    done.append(name)
    yield {"name": name, "value": len(done)}


def runs(names: str, done: list[str]) -> list[Run]:
    return [Run({"name": name}, partial(one, name, done)) for name in names]


def test_what_has_its_row_is_not_run_again(tmp_path: Path) -> None:
    grid, done = Grid(tmp_path / "rows.jsonl"), list[str]()
    assert grid.run(runs("ab", done)) == 2
    assert grid.run(runs("abc", done)) == 1
    assert done == ["a", "b", "c"] and [row["name"] for row in grid.rows()] == done
    assert grid.run(runs("abc", done), again=lambda row: row["value"] == 2) == 1
    assert grid.find({"name": "b"}) == {"name": "b", "value": 4}, "the latest row counts"
    assert not list(grid.locks.iterdir()), "no lock is left behind"


def test_a_run_that_another_process_is_on_is_left_to_it(tmp_path: Path) -> None:
    grid, done = Grid(tmp_path / "rows.jsonl"), list[str]()
    first, second = runs("ab", done)
    with grid.claimed(first.name) as mine:
        assert mine
        assert grid.run([first, second]) == 1
    assert done == ["b"]
    assert grid.run([first, second]) == 1


def test_a_run_that_was_ended_meanwhile_is_not_repeated(tmp_path: Path) -> None:
    grid, done = Grid(tmp_path / "rows.jsonl"), list[str]()
    [waiting] = runs("a", done)
    waiting = Run(waiting.key, waiting.rows, wait=True)
    thread = threading.Thread(target=grid.run, args=([waiting],))
    with grid.claimed(waiting.name):
        thread.start()
        other = Grid(grid.path, tmp_path / "elsewhere")
        other.run(runs("a", done))
    thread.join(10)
    assert done == ["a"]


def test_a_run_whose_process_ended_after_its_last_row_is_tidied_and_not_repeated(
    tmp_path: Path,
) -> None:
    grid, done, tidied = Grid(tmp_path / "rows.jsonl"), list[str](), list[str]()
    [made] = runs("a", done)
    run = Run(made.key, made.rows, tidy=lambda: tidied.append("a"))
    assert grid.run([run]) == 1 and tidied == ["a"]
    assert grid.run([run]) == 0 and tidied == ["a"], "a finished grid does nothing"

    (grid.locks / run.name).touch()  # as a kill leaves it
    assert grid.run([run]) == 0 and tidied == ["a", "a"] and done == ["a"]
    assert not list(grid.locks.iterdir())


def test_rows_before_an_error_stay(tmp_path: Path) -> None:
    def half() -> Iterator[Row]:
        yield {"name": "first"}
        raise ValueError("stopped")

    grid = Grid(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="stopped"):
        grid.run([Run({"name": "last"}, half)])
    assert grid.rows() == [{"name": "first"}]
    with claim(grid.locks / Run({"name": "last"}, half).name) as mine:
        assert mine, "its lock is free again"


@pytest.mark.parametrize(
    "error", [BehaveGPTError("bad data"), RuntimeError("no memory"), MemoryError("none")]
)
def test_a_failure_is_a_row(error: Exception) -> None:
    def fail() -> Row:
        raise error

    row = attempted(fail, "run")
    assert row["status"] == "failed" and row["reason"] == f"{type(error).__name__}: {error}"
    assert attempted(lambda: {"loss": 1.0}, "run")["status"] == "done"
    with pytest.raises(KeyError):
        attempted(lambda: {}["a"], "run")


def test_a_claim_leaves_no_file_however_it_ends(tmp_path: Path) -> None:
    with claim(tmp_path / "locks" / "key.lock") as mine:
        assert mine
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "locks" / "key.lock"):
        raise KeyboardInterrupt
    assert not list((tmp_path / "locks").iterdir())


def test_an_interrupt_is_no_failed_run() -> None:
    def stopped() -> Row:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:  # as a library does
            raise BehaveGPTError("the log cannot be read") from None

    with pytest.raises(KeyboardInterrupt):
        attempted(stopped, "run")


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> None:
        made.append(1)
        (tmp_path / "run" / "model").mkdir(parents=True)

    for _ in range(2):
        assert made_once(tmp_path / "run", make, "model") == tmp_path / "run" / "model"
    assert made == [1]


@pytest.mark.parametrize(
    "values,text",
    [([], "-"), ([None], "-"), ([0.5], "0.5000"), ([0.4, 0.6, None], "0.5000 ± 0.1414")],
)
def test_the_mean_and_its_deviation(values: list[float | None], text: str) -> None:
    assert mean_and_deviation(values) == text
    assert mean_and_deviation([0.5, 0.5001], 3, least=1e-3) == "0.500"


def published(name: str) -> list[Row]:
    return [
        json.loads(line) for line in (ROOT / "docs" / "results" / name).read_text().splitlines()
    ]


@pytest.mark.parametrize("log", ["globo", "retail"])
@pytest.mark.parametrize("script", ["cross_domain", "new_behavior"])
def test_the_published_rows_are_found_as_done(script: str, log: str) -> None:
    """Each row in docs/results is that of a run of the shipped protocol, which would skip it."""
    from behavegpt.config import read_settings
    from tests.adapt.test_eval import script as load

    module = load(script)
    file = ROOT / "configs" / "adapt" / f"eval_{script}_{log}.yaml"
    protocol = read_settings(module.Protocol, file)
    options = module.argparse.Namespace(only=[], tune=None)
    rows = published(f"{script}_{log}.jsonl")
    found = [find(rows, run.key) for run in module.runs(protocol, options)]
    assert rows and [row for row in rows if "lr" not in row and row not in found] == []
