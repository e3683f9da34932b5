"""Files and folders that are complete or absent however the process ends, and that one process at a
time writes.

Whatever is half made is called `.tmp-PURPOSE-NAME-PID-START`, after the process that makes it and
the moment when that process began; the next writer of NAME removes what dead processes left.
Checksums are in `checksums.py`, locks in `locks.py`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from behavegpt.errors import BehaveGPTError
from behavegpt.locks import lock
from behavegpt.paths import short_name, target
from behavegpt.signals import deferring

_TEMPORARY = re.compile(
    r"\.tmp-(?P<purpose>[a-z]+)-(?P<name>.*)-(?P<pid>[0-9]{1,9})-(?P<start>[0-9]{1,20})", re.DOTALL
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h> and <linux/fs.h>


def write_text(path: Path, text: str) -> None:
    """Replace a text file, UTF-8; its folder is made if absent."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, error: type[BehaveGPTError], remedy: str) -> dict[str, Any]:
    """Read a JSON mapping; raises `error` naming the file."""
    try:
        # bytes: json finds UTF-8, UTF-16 and UTF-32 by itself
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path}: not JSON ({cause}); {remedy}.") from None
    if not isinstance(value, dict):
        raise error(f"{path}: holds {type(value).__name__}, not a mapping; {remedy}.")
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` in one rename, or vanishes on any error."""
    # where a link leads: the link itself stays one
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, path.name)
    temporary = temporary_name(path, "new")

    try:
        yield temporary
        # beside it, so on the same disk: a rename there is one step
        os.replace(temporary, path)
    # whatever stops it, also Ctrl-C: nothing half made stays
    except BaseException:
        with deferring(), suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, removed at the end; meanwhile this process alone may write
    `path`.

    Raises ConfigError when another process holds it.
    """
    path = target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        remove_stale(path.parent, path.name)
        folder = temporary_name(path, "new")
        try:
            folder.mkdir()
            yield folder
        finally:
            with deferring():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A `workspace` that takes the place of the folder `path` when all went well."""
    with workspace(path) as folder:
        yield folder
        put_in_place(folder, target(path))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder in the system's temporary directory, removed at the end; those of dead
    processes go first."""
    place, prefix = Path(tempfile.gettempdir()), f".tmp-scratch-{_origin()}-"

    for path in list(place.glob(f"{prefix}*")):
        matched = _TEMPORARY.fullmatch(path.name)
        if matched and not _lives(matched):
            shutil.rmtree(path, ignore_errors=True)  # another user's stays

    # the process's start in the name: its number may belong to another one later
    suffix = f"-{os.getpid()}-{_started(os.getpid()) or 0}"
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=place) as name:
        yield Path(name)


def put_in_place(folder: Path, final: Path) -> None:
    """Give a finished folder its name; an older one of that name is exchanged in one step, then
    deleted.

    Files get the permissions that the umask gives, whatever library wrote them.
    """
    _open_by_umask(folder)
    with deferring():
        if not os.path.lexists(final):
            os.rename(folder, final)
        elif _exchange(folder, final):
            discard(folder)
        else:  # `remove_stale` puts it back if the process ends between the two renames
            old = temporary_name(final, "old")
            os.rename(final, old)
            os.rename(folder, final)
            discard(old)


def discard(path: Path) -> None:
    """Delete a folder; renamed first, so that a crash on the way leaves no half of it under its
    name."""
    # a name of its own is known for what it is already, and would be strange inside another one
    if not _TEMPORARY.fullmatch(path.name):
        path = path.rename(temporary_name(path, "gone"))
    _remove(path)


def temporary_name(path: Path, purpose: str) -> Path:
    """A name beside `path`, on the same disk, that tells which process made it."""
    process = f"{os.getpid()}-{_started(os.getpid()) or 0}"
    return path.with_name(f".tmp-{purpose}-{short_name(path.name)}-{process}")


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Delete what dead processes left of `name` (of all names: only where no other machine writes
    into the folder).

    A folder that was about to be exchanged, and has no successor, gets its name back.
    """
    for path in list(folder.iterdir()):
        matched = _TEMPORARY.fullmatch(path.name)
        is_other = name is not None and matched and matched["name"] != short_name(name)
        if not matched or is_other or _lives(matched):
            continue

        final = folder / (name or matched["name"])
        # the process ended between the two renames of put_in_place
        if matched["purpose"] == "old" and not os.path.lexists(final):
            os.rename(path, final)
        else:
            _remove(path)


def _remove(path: Path) -> None:
    """Delete a file, a folder, or a link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _open_by_umask(folder: Path) -> None:
    """Permissions of a folder and all below it as if made by open() and mkdir(): temporary files,
    which libraries write through, are for their owner alone."""
    mask = _umask()
    for parent, _, files in os.walk(folder):
        inherited = os.stat(parent).st_mode & 0o7000  # such as the group of a shared folder
        os.chmod(parent, inherited | (0o777 & ~mask))
        for name in files:
            os.chmod(os.path.join(parent, name), 0o666 & ~mask)


def _umask() -> int:
    """This process's umask."""
    try:  # asking the system call sets it, for all threads
        status = Path("/proc/self/status").read_text()
        line = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
        return int(line[1], 8)  # type: ignore[index]
    except (OSError, TypeError):
        mask = os.umask(0o022)
        os.umask(mask)
        return mask


@cache
def _renameat2() -> Any:
    """Linux's call that can exchange two names; None with another C library."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    names = (os.fsencode(one), os.fsencode(other))
    if rename is None:
        return False

    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True

    code = ctypes.get_errno()
    # an old kernel, or a file system that cannot
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _lives(matched: re.Match[str]) -> bool:
    """Whether the owner of a temporary name still runs; another process of its number began at
    another moment."""
    started = _started(int(matched["pid"]))
    return started is not None and started == int(matched["start"])


@cache
def _origin() -> str:
    """Where process numbers mean the same: containers and machines may share a temporary
    directory."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; 0 where the system does not tell, None
    if it is gone."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # somebody else's
    except ProcessLookupError:
        return None

    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        # behind the program's name, which may hold spaces and parentheses: state, parent, ...
        fields = status.rpartition(")")[2].split()
    except OSError:
        return 0
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie has ended
