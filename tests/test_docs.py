"""What the pages point at is there: files of the project by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
PAGES = [page for page in PAGES if page.name != "log.md"]  # the log tells of files that went
FILE = re.compile(r"(?<![\w/.-])(?:\.\./)?((?:[\w-]+/)+[\w.-]+\.(?:py|yaml|cfg|jsonl|md))\b")
# a page may leave the room out
ROOMS = ("", "behavegpt", "docs", "docs/results", "benchmarks", "tests", "configs")
MADE = ("runs/", "data/", "OUT/", "RUN/", "DIR/", "NAME", "site/")  # by the reader's own commands


def paths_in(page: Path) -> Iterator[str]:
    for match in FILE.finditer(page.read_text(encoding="utf-8")):
        path = match[1]
        if not path.startswith(MADE) and "NAME" not in path:
            yield path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = {
        path for path in paths_in(page) if not any((ROOT / room / path).exists() for room in ROOMS)
    }
    missing = {path for path in missing if not (page.parent / path).exists()}
    assert not missing


def test_the_pattern_finds_paths() -> None:
    assert len(list(paths_in(ROOT / "docs" / "paper.md"))) > 20
