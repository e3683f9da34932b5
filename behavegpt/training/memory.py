"""Memory of the process that trains on a CPU."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more


def keep_freed_memory() -> None:
    """Have the C library keep what is freed instead of returning it to the kernel; does nothing
    outside glibc.

    A step frees its activations and the next one asks for them again: clearing fresh pages took 5 %
    of a step (benchmarks/train.py). The process stays as large as its largest step.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            # the mmap threshold first: larger blocks bypass the heap, and are returned whatever it
            # keeps
            library = ctypes.CDLL(None)
            library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
