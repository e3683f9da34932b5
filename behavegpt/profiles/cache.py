"""What decides whether a member must run again, and what its run has cost."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

ROOM = "behavegpt.profiles"


def digest(*parts: Any) -> str:
    """A hash of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_hash(module: str) -> str:
    """A hash of a module and of what it imports from this room; comments, layout and docstrings do not count."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = _source(name)
            waiting += imported
    return digest(found)


@cache
def _source(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's code as text without docstrings, and the modules of the room that it imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == ROOM:
            imported |= {f"{ROOM}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{ROOM}."):
            imported.add(node.module)
    return without_docstrings(tree), tuple(sorted(imported))


def without_docstrings(tree: ast.Module) -> str:
    """The syntax of a module as text: no comments, layout or docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.dump(tree)


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
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii", errors="replace").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
