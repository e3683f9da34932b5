"""What a process does when it is told to stop: by Ctrl-C, by SIGTERM, or by a cluster's warning."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]
SOON = 0.05  # seconds until a stop is sent again: the callback that dropped it has returned

_deferred = {"depth": 0, "stops": 0}  # of the main thread, where handlers run


@contextmanager
def deferring() -> Iterator[None]:
    """A stop waits until these lines have run: those that make or clear away what others find."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    _deferred["depth"] += 1
    try:
        yield
    finally:
        _deferred["depth"] -= 1

    if _deferred["stops"] and not _deferred["depth"]:
        _deferred["stops"] = 0
        raise KeyboardInterrupt


@contextmanager
def interrupting() -> Iterator[list[int]]:
    """SIGTERM ends what runs as Ctrl-C does, by a KeyboardInterrupt, so that what was begun is
    cleared away. Yields the signals received, in their order."""

    received: list[int] = []

    _deferred["stops"] = 0

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not _deferred["depth"]:
            raise KeyboardInterrupt
        _deferred["stops"] += 1

    def dropped(report: sys.UnraisableHookArgs) -> None:
        """A callback of C code cannot raise: the interrupt would be printed and forgotten. What
        else fails after a stop are the destructors of objects that it left half made."""
        if received and isinstance(report.exc_value, KeyboardInterrupt):
            again = threading.Timer(SOON, os.kill, (os.getpid(), received[-1]))
            again.daemon = True
            again.start()
        elif not received:
            hook(report)

    # a signal that the shell told this process to ignore (nohup) stays ignored
    numbers = (signal.SIGINT, signal.SIGTERM)
    hook, sys.unraisablehook = sys.unraisablehook, dropped

    try:
        ours = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        with _handled(ours, stop):
            yield received
    finally:
        if received:
            gc.collect()  # those objects go now, while nobody is told of their complaints
        sys.unraisablehook = hook


@contextmanager
def collecting() -> Iterator[list[int]]:
    """SIGTERM, SIGINT and SIGUSR1 are noted, for a run that saves and ends at its next step; a
    second SIGINT interrupts. Yields the signals received, in their order."""
    received: list[int] = []

    # only noted: the step that runs ends, and its checkpoint is whole
    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    with _handled((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), note):
        yield received


@contextmanager
def _handled(numbers: Sequence[int], handler: Handler) -> Iterator[None]:
    """`handler` for these signals; elsewhere than in the main thread, where none can be set, as
    before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # the handlers of whoever embeds us come back afterwards
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
