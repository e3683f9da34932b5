"""A command in a fresh process, and what it cost.

Imports the standard library alone: a child's peak memory starts from its parent's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any


def measured(
    command: Sequence[str],
    *,
    threads: int | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Run a command, held to `threads` cores where given: CPU seconds (user + system), wall
    seconds, peak MiB. `options`: of subprocess.Popen. Ends the program when the command fails."""

    def hold() -> None:
        if threads and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=dict(environment or os.environ),
        preexec_fn=hold if threads else None,
        **options,
    )
    # wait4 tells what this child used; getrusage would add up all children
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")

    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": wall,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def with_bytecode(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, with compiled modules kept: imports count, compiling them anew does not."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
