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
    """Let the peak of the resident memory begin anew (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """Peak resident memory in bytes since `reset_peak`; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    lines = dict(
        line.split(":", 1)
        for line in status.read_text(encoding="ascii", errors="replace").splitlines()
    )
    return int(lines["VmHWM"].split()[0]) * 1024
