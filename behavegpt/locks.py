"""One process at a time: a lock beside what it protects, which tells who holds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from behavegpt.errors import ConfigError, first_line
from behavegpt.paths import short_name
from behavegpt.signals import deferring


@contextmanager
def lock(
    path: Path, file: Path | None = None, remedy: str = "wait for it, or choose another name"
) -> Iterator[None]:
    """Hold `path` for this process; the system frees it when the process ends, however it ends.

    `file`: the lock file, by default `.NAME.lock` beside it. Raises ConfigError naming the process
    that holds it.
    """
    file = file or path.with_name(f".{short_name(path.name)}.lock")
    # beside the lock: older filelocks empty the file they lock
    owner = file.with_name(f"{file.name}.json")
    temporary = owner.with_name(f"{owner.name}.tmp")
    held = FileLock(file)

    try:
        with deferring():  # a stop in between would leave files of a lock that nobody holds
            try:
                held.acquire(timeout=0)  # who finds it taken is told by whom, and does not wait
                about = {"pid": os.getpid(), "host": socket.gethostname()}
                temporary.write_text(json.dumps(about), encoding="utf-8")
                os.replace(temporary, owner)
            except Timeout:
                raise ConfigError(f"{path} is in use by {_owner(owner)}; {remedy}.") from None
            except OSError as error:
                # a read-only folder, or no room for the owner's file: leave nothing behind
                if not held.is_locked:
                    with suppress(OSError):
                        file.unlink(missing_ok=True)
                reason = f"{path}: cannot be locked ({first_line(error)}); {remedy}."
                raise ConfigError(reason) from None
        yield

    finally:
        with deferring():
            if held.is_locked:
                with suppress(OSError):  # on a disk that has become read-only they stay
                    temporary.unlink(missing_ok=True)
                    owner.unlink(missing_ok=True)
                    # before its release: who waits for this inode looks for the next one
                    file.unlink(missing_ok=True)
                held.release()


def _owner(file: Path) -> str:
    """Who holds a lock, by the file beside it, which comes after the lock and goes before it."""
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "a process that is just starting or ending"
