"""The table of style counts: each measure on a file where the count is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

LONG = "\n".join(f"    x = {number}" for number in range(50))
SOURCE = f'''"""Module."""
from typing import Any


def shaped(x: Tensor, y):
    """(B, T) to (B,)."""
    # why

    return [[a for a in b] for b in x]  # beside code


def plain(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: dict[str, Any]) -> None:
{LONG}


low, high = (int(value) for value in "12")
{"w" * 101} = 1  # TODO
'''
COUNTS = {
    "lines": "1 / 66",
    "function": "51 / 51 / 51",
    "over_50": "1",
    "parameters": "1",
    "annotated": "90 % of 10",
    "shapes": "100 % of 1",
    "docstrings": "50 % of 2",
    "comments": "4.5",
    "blank": "1.5",
    "wide": "1",
    "any": "1",
    "nested": "1",
    "unpacked": "1",
    "marks": "1",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "style_counts", ROOT / "tools" / "style_counts.py"
    )
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "module.py").write_text(SOURCE)
    return tmp_path


def test_the_measures_of_a_known_file(
    folder: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(folder)]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    table = {name.removeprefix("| "): value for name, _, value, *_ in lines}
    assert {name: table[name] for name in COUNTS} == COUNTS


def test_the_places_of_a_measure(
    folder: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--list", "over_50", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}/module.py:12 plain: 51 lines\n"
