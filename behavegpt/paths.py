"""Paths as people write them: `~` is their home folder, and an empty one is a mistake, not the current folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from behavegpt.errors import ConfigError


def local_path(path: str | Path) -> Path:
    """The path with `~` expanded. Raises ConfigError for an empty text, as an unset variable of the shell gives."""
    text = os.fspath(path)
    if not text.strip():
        raise ConfigError("an empty path was given (is a variable not set?); name a file or folder, or . for this one.")
    return Path(os.path.expanduser(text))


def cache_folder() -> Path:
    """$BEHAVEGPT_CACHE, else ~/.cache/behavegpt."""
    return local_path(os.environ.get("BEHAVEGPT_CACHE") or "~/.cache/behavegpt")


def _path_text(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty path; name a file or folder")
    return os.path.expanduser(text)


PathText = Annotated[str, AfterValidator(_path_text)]
"""A setting that is a path."""
