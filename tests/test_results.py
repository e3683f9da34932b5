"""The figures in the pages are those of the rows in docs/results."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "tools" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_what_its_rows_give(results: ModuleType) -> None:
    marked = []
    for page in results.pages():
        text = page.read_text("utf-8")
        marked += [found[2] for found in results.MARKED.finditer(text)]
        assert results.made_anew(text) == text, f"{page.name}: python tools/results.py --write"
    assert set(marked) == set(results.TABLES)


def test_another_figure_is_noticed(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (*results.BENCHMARKS, "losses_memory"):
        shutil.copytree(results.RESULTS / folder, tmp_path / folder)
    shutil.copy(results.RESULTS / "universal.jsonl", tmp_path)
    rows = results.read_rows(tmp_path / "benchmark_memory" / "rows.jsonl")
    row = next(row for row in rows if row["model"] == "mixer_dro" and row["data"] == "newyork")
    row["test"]["rec_w"] += 0.01
    (tmp_path / "benchmark_memory" / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    before = results.main_table()
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert results.main_table() != before
