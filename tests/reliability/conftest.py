"""What the verbs of the trials work on, made once for all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.reliability.verbs import make_ready


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ready(tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def place(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for one module of trials."""
    return shutil.copytree(
        ready, tmp_path_factory.mktemp("trials"), symlinks=True, dirs_exist_ok=True
    )
