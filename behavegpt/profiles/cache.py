"""What decides whether a member must run again, and what its run has cost."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(*parts: Any) -> str:
    """A hash of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reset_peak() -> None:
    """Reset the process's peak resident memory, where the kernel allows it (Linux)."""
    # writing 5 to clear_refs resets VmHWM alone, see proc(5)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """Peak resident memory in bytes since `reset_peak`; None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    lines = dict(
        line.split(":", 1)
        for line in status.read_text(encoding="ascii", errors="replace").splitlines()
    )
    return int(lines["VmHWM"].split()[0]) * 1024  # the kernel reports kB
