"""Shared fixtures. Logs that may not be redistributed are looked for outside the project; tests
skip without them."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# a shell that starts its job in the background makes it ignore Ctrl-C, which some tests send
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# a process for each core: threads would wait for one another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "BEHAVEGPT_CACHE" not in os.environ:
    os.environ["BEHAVEGPT_CACHE"] = tempfile.mkdtemp(prefix="behavegpt-tests-")
    atexit.register(shutil.rmtree, os.environ["BEHAVEGPT_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
# Files that one worker takes, one after the other: they share a server of processes, or what takes
# seconds to make ready, which every worker that has one of them would begin anew.
TOGETHER = {
    "reliability": ("tests/reliability/",),
    "runs": ("tests/equivalence/", "tests/training/test_crash.py", "tests/training/test_ranks.py"),
    "serving": ("tests/serving/",),
}
# what is begun first, so that no worker has a long file left when the others are done
FIRST = (
    *TOGETHER,
    "tests/test_notebooks.py",
    "tests/updating/test_update.py",
    "tests/data/test_labels.py",
    "tests/test_given_model.py",
    "tests/test_user_states.py",
    "tests/test_export_model.py",
    "tests/test_ecosystem.py",
    "tests/labeling/test_label.py",
    "tests/probing/test_probe.py",
    "tests/ingest/test_fuzz.py",
    "tests/golden/test_golden.py",
    "tests/benchmark/test_benchmark.py",
    "tests/ingest/test_fuzz_files.py",
    "tests/test_gpu_benchmark.py",
    "tests/profiles/test_pipeline.py",
    "tests/scaling/test_sweep.py",
    "tests/generation/test_generation.py",
    "tests/adapt/test_finetune.py",
    "tests/test_when.py",
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` on a machine without one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def unit_of(nodeid: str) -> str:
    """What one worker takes with this test: its group, or its file."""
    groups = [name for name, beginnings in TOGETHER.items() if nodeid.startswith(beginnings)]
    return groups[0] if groups else nodeid.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: groups of files too, in our order."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    # xdist's order, by the number of tests, has files of one long test come last
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On several workers the long files come first; else the order is that of the names."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {unit: number for number, unit in enumerate(FIRST)}
        items.sort(key=lambda item: place.get(unit_of(item.nodeid), len(FIRST)))


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
