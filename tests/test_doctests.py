"""Every example in a docstring runs and gives what it says."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.conftest import ROOT

FILES = [
    path
    for path in sorted((ROOT / "behavegpt").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
