"""Paths as people write them: `~` is their home folder, and an empty one is a mistake, not the
current folder."""

from __future__ import annotations

import os
from pathlib import Path

from behavegpt.errors import ConfigError


def local_path(path: str | Path) -> Path:
    """The path with `~` expanded. Raises ConfigError for an empty text, as an unset variable of the
    shell gives."""
    text = os.fspath(path)
    if not text.strip():
        raise ConfigError(
            "an empty path was given (is a variable not set?); name a file or folder, or . for "
            "this one."
        )
    check_unicode(text)
    return Path(os.path.expanduser(text))


def cache_folder() -> Path:
    """$BEHAVEGPT_CACHE, else ~/.cache/behavegpt."""
    return local_path(os.environ.get("BEHAVEGPT_CACHE") or "~/.cache/behavegpt")


def check_unicode(path: str | Path) -> None:
    """Raise ConfigError for a name that is no UTF-8, which Arrow and DuckDB cannot open."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        raise ConfigError(
            f"{shown}: the name is not UTF-8; rename it (or set LC_ALL=C.UTF-8)."
        ) from None
