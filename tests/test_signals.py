"""A signal stops what runs, wherever it comes; nothing else is changed by listening for it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from behavegpt.locks import lock
from behavegpt.signals import collecting, interrupting

CALLBACK = ctypes.CFUNCTYPE(None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_a_callback_of_c_code_drops_comes_again(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled code is loaded through such callbacks, which cannot raise."""

    def callback() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0)

    with interrupting() as received:
        with pytest.raises(KeyboardInterrupt):
            CALLBACK(callback)()
            time.sleep(30)
        assert received == [number, number]
    assert "Traceback" not in capsys.readouterr().err


def test_another_error_in_a_callback_is_told_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda report: seen.append(report.exc_type)
    try:
        with interrupting():
            CALLBACK(lambda: [][0])()
    finally:
        sys.unraisablehook = before
    assert seen == [IndexError]


class HalfMade:
    """As those of llvmlite: its destructor needs what the constructor did not come to."""

    def __init__(self) -> None:
        self.itself = self  # only the collector can clear it away
        signal.raise_signal(signal.SIGINT)
        self.handle = 1

    def __del__(self) -> None:
        del self.handle


def test_what_a_stop_left_half_made_does_not_complain(capsys: pytest.CaptureFixture[str]) -> None:
    before, sys.unraisablehook = sys.unraisablehook, sys.__unraisablehook__
    try:
        with interrupting(), contextlib.suppress(KeyboardInterrupt):
            HalfMade()
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("listening", [interrupting, collecting])
def test_the_handlers_of_before_are_put_back(listening: object) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before, hook = [signal.getsignal(number) for number in numbers], sys.unraisablehook
    with listening():  # type: ignore[operator]
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in numbers] == before
    assert sys.unraisablehook is hook


def test_a_second_interrupt_ends_a_run_that_only_notes_the_first() -> None:
    with collecting() as received, pytest.raises(KeyboardInterrupt):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert received == [signal.SIGTERM, signal.SIGUSR1]


@pytest.mark.parametrize("at", ["acquire", "release"])
def test_a_stop_while_a_lock_is_taken_or_given_back_leaves_no_file(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes where it hurts most: the file is there, and nobody knows yet, or no more."""
    original = getattr(FileLock, at)

    def stopped(self: FileLock, *arguments: object, **options: object) -> object:
        monkeypatch.undo()  # once
        os.kill(os.getpid(), signal.SIGTERM)
        result = original(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(FileLock, at, stopped)
    with interrupting() as received, pytest.raises(KeyboardInterrupt), lock(tmp_path / "out"):
        assert at == "release", "the body runs"
    assert received == [signal.SIGTERM, signal.SIGINT] and not list(tmp_path.iterdir())
    with interrupting():
        time.sleep(0)  # and the next command is not stopped by it


def test_an_interrupt_inside_a_lock_leaves_no_file_without_handlers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), lock(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())
