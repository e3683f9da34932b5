"""Paths as people write them (`~` is their home folder; an empty one is a mistake, not the current
folder), and names that files can have."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from behavegpt.errors import ConfigError

_LONGEST_NAME = 120  # bytes of a name that is spelled out in others; file systems end at 255


def local_path(path: str | Path) -> Path:
    """The path with `~` expanded. Raises ConfigError for an empty text, as an unset variable of the
    shell gives."""
    text = os.fspath(path)
    if not text.strip():  # Path("") would be the current folder
        raise ConfigError(
            "empty path (is a variable not set?); name a file or folder, or . for the current one."
        )

    check_unicode(text)
    return Path(os.path.expanduser(text))


def cache_folder() -> Path:
    """$BEHAVEGPT_CACHE, else ~/.cache/behavegpt."""
    return local_path(os.environ.get("BEHAVEGPT_CACHE") or "~/.cache/behavegpt")


def check_unicode(path: str | Path) -> None:
    """Raise ConfigError for a name that is no UTF-8, which Arrow and DuckDB cannot open."""
    try:
        os.fspath(path).encode()  # other bytes are surrogates in Python's text
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        raise ConfigError(
            f"{shown}: the name is not UTF-8; rename it (or set LC_ALL=C.UTF-8)."
        ) from None


def target(path: Path) -> Path:
    """What a path stands for: where a link leads (the link itself stays), and a name for `.` and
    `..`."""
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def is_file_name(name: str) -> bool:
    """Whether a column can be a file of the same name, in its folder and nowhere else."""
    return (
        bool(name)
        # both slashes: the folder may be opened on Windows
        and not set(name) & set("/\\\0")
        and name[0] != "."
        # bytes: what file systems count, with room for an ending
        and len(name.encode(errors="replace")) < 200
    )


def short_name(name: str) -> str:
    """A name that leaves room for what is put around it: a long one becomes its hash."""
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()
