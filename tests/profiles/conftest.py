"""Directories and contexts for the tests of profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from behavegpt.profiles.events import DataSettings, open_events
from behavegpt.profiles.members import Context
from tests.profiles.makers import make_input


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_input(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """`context(directory, threads=1)`."""

    def make(path: Path, clients: str = "relevant", threads: int = 2, seed: int = 0) -> Context:
        tables = open_events(DataSettings(path=str(path), clients=clients, threads=threads))
        return Context(tables, tmp_path / "cache", seed)

    return make


@pytest.fixture(scope="session")
def mini(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated challenge of 20,000 clients, split."""
    from behavegpt.challenge.split import split

    out = tmp_path_factory.mktemp("mini") / "split"
    split(shared_data("challenge_mini"), out)
    return out
