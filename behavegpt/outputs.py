"""Whether an output can be written: asked before the work, not found out after it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

from behavegpt.errors import ConfigError
from behavegpt.paths import check_unicode, target

OutputKind = Literal["file", "into", "whole"]


def check_output(path: Path, kind: OutputKind, endings: Collection[str] = ()) -> None:
    """Raise ConfigError or OSError unless an output can be written: now, not after hours of work.

    `kind`: a file; a folder into which files are written; or a folder that is replaced whole.
    """
    # by the name: a table is written in the format that its ending names
    if endings and path.suffix not in endings:
        raise ConfigError(
            f"{path}: unknown format {path.suffix!r}; use a name that ends in {', '.join(endings)}."
        )

    check_unicode(path)
    # written through, it would make a file where nobody looks for one
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path}: a broken link to {os.readlink(path)}; remove or repair it.")

    place = target(path)
    if not place.name:
        raise ConfigError(
            f"{path}: the root directory cannot be replaced; name a file or folder in it."
        )
    _check_kind(path, place, kind)

    # the nearest folder that is there must take a file; permissions alone do not tell
    there = place.absolute() if kind == "into" else place.absolute().parent
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"{there}: a file, where a folder must be; choose another name.")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = str(path)  # not that of the attempt
        raise


def _check_kind(path: Path, place: Path, kind: OutputKind) -> None:
    """Raise ConfigError where something of another kind stands at `place`, which `path` means."""
    # what is not there may become anything
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = place.stat().st_mode
        if kind == "file" and not stat.S_ISREG(mode):
            there = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise ConfigError(f"{path}: {there}, but a file is to be written; choose another name.")
        if kind != "file" and not stat.S_ISDIR(mode):
            raise ConfigError(
                f"{path}: a file, where a folder must be written; choose another name."
            )

    # replacing a folder renames it, which a mount point does not allow
    if kind == "whole" and os.path.ismount(place):
        raise ConfigError(f"{path}: a mount point, which cannot be replaced; name a folder in it.")
