"""How the counting loops are compiled: numba, with the interpreter's lock released.

What Python calls is a `kernel`, whose code is kept on disk. What only compiled code calls is
`inner`: it is compiled with its callers, without the wrappers for Python, which take as long to
compile as the code itself.

A NamedTuple is handed over array by array, which is free where a function is called once a position
and took 2.6 x the time where it is called for each candidate: innermost functions take what they
read alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit


def inner(function: Callable[..., Any]) -> Any:
    """Compile with whatever calls it."""
    # numba's stubs lack these options, so they travel as a mapping
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(nogil=True, **options)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile at the first call and keep the code.

    numba's cache looks at the file of the function alone, so code that is older than any file of
    the loops is dropped.
    """
    try:
        compiled: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # a container whose package and home are read-only
        _warn_of_no_cache()
        return njit(nogil=True)(function)

    # a template of all loops: whichever of them was edited, the machine code may hold an inlined
    # copy
    changed = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*memory*.py"))

    for index in Path(compiled.stats.cache_path).glob(f"*.{function.__name__}-*.nbi"):
        # another process may drop the same ones at this moment
        with suppress(FileNotFoundError):
            if index.stat().st_mtime < changed:
                index.unlink()

    return compiled


@cache
def _warn_of_no_cache() -> None:
    """Once: each of some twenty kernels would say it."""
    warnings.warn(
        "compiled code cannot be cached, because no cache folder is writable, so every "
        "process spends some ten seconds compiling: set NUMBA_CACHE_DIR to a writable "
        "folder",
        stacklevel=3,
    )
