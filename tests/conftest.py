"""Shared fixtures. Logs that may not be redistributed are looked for outside the project; tests
skip without them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# a process for each core: threads would wait for one another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "BEHAVEGPT_CACHE" not in os.environ:
    os.environ["BEHAVEGPT_CACHE"] = tempfile.mkdtemp(prefix="behavegpt-tests-")
    atexit.register(shutil.rmtree, os.environ["BEHAVEGPT_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("globo.parquet")` is the file's path, or skips the test with a reason."""
    folder = Path(os.environ.get("BEHAVEGPT_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(
                f"{name} is not redistributed with the project; set BEHAVEGPT_DATA to its folder"
            )
        return path

    return find
