"""How the counting loops are compiled: numba, outside of the interpreter's lock.

What Python calls is a `kernel`, whose code is kept on disk. What only compiled code calls is
`inner`: it is compiled with its callers, without the wrappers for Python, which take as long to
compile as the code itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def inner(function: Callable[..., Any]) -> Any:
    """Compile with whatever calls it."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(nogil=True, **options)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile at the first call and keep the code.

    numba's cache looks at the file of the function alone, so code that is older than any file of
    the loops is dropped.
    """
    compiled: Any = njit(nogil=True, cache=True)(function)
    changed = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*memory*.py"))
    for index in Path(compiled.stats.cache_path).glob(f"*.{function.__name__}-*.nbi"):
        if index.stat().st_mtime < changed:
            index.unlink(missing_ok=True)
    return compiled
