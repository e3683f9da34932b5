"""Freed memory stays with the process, and the process goes on where that cannot be asked for."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from behavegpt.training.memory import keep_freed_memory

FAULTS = """
import resource, torch
from behavegpt.training.memory import keep_freed_memory
keep_freed_memory()
def step():
    parts = [torch.ones(1 << 20) for _ in range(10)]  # 4 MiB each
step(); step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_step_finds_the_pages_of_the_one_before():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10_000, "10 steps of 40 MiB are 100,000 pages of 4 KiB"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
