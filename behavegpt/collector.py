"""Python's cycle collector, out of the way while modules are imported and models are loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector(*, freeze: bool = False) -> Iterator[None]:
    """No search for cycles inside. Importing torch makes a million objects that stay, and looking
    through them again and again takes an eighth of a command's start.

    `freeze`: nor are they looked at later. For a process of our own, not for a user's notebook.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_enabled:
            gc.enable()
