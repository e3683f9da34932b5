"""Errors a user can mend. The command line prints them as one paragraph and exits with 2; all else
is our bug."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class BehaveGPTError(Exception):
    """An error in the input or the settings; the message says what is wrong, where, and how to
    fix it."""


class DataError(BehaveGPTError):
    """Event logs or a prepared folder that cannot be used."""


class ConfigError(BehaveGPTError):
    """Settings that are unknown, of the wrong type or contradictory."""


class CheckpointError(BehaveGPTError):
    """A checkpoint or model folder that is damaged or does not fit the data."""


def install_command(extra: str) -> str:
    """How to install an extra: from the checkout, or what it consists of, as the package is not on
    PyPI."""
    if (Path(__file__).parents[1] / "setup.cfg").is_file():
        return f"pip install -e '.[{extra}]' (in your checkout of BehaveGPT)"

    from importlib.metadata import requires  # only for a message

    # requirements as `name>=1; extra == "onnx"`
    requirements = (line.partition(";") for line in requires("behavegpt") or ())
    named = [f"'{name.strip()}'" for name, _, condition in requirements if extra in condition]
    return f"pip install {' '.join(named)}"


class MissingExtraError(BehaveGPTError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; run: {install_command(extra)}")


def violation(error: Exception) -> str:
    """What a model configuration objects to: the last line, as huggingface_hub wraps errors in
    types of its own.

    >>> wrapped = "Class validation error:\\n    ValueError: dropout must be in [0, 1), not 2."
    >>> violation(ValueError(wrapped))
    'dropout must be in [0, 1), not 2.'
    """
    return str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")


# what people can do about it, by the system's number
_DISK = {
    errno.ENOSPC: "the disk is full; make room there, or write to another one",
    errno.EDQUOT: "your share of the disk is used up; make room there, or write to another one",
    errno.EFBIG: (
        "the file grew beyond what is allowed (`ulimit -f` shows the limit); raise it, or write "
        "elsewhere"
    ),
    errno.EROFS: "the disk is read-only; write to another one",
    errno.EIO: "the disk failed; check it, or write to another one",
}
# words of libraries' own errors
_NO_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "failed to allocate",
    "Failed to allocate",
)
_PLACE = {
    errno.EACCES: "no permission; change it, or name another place",
    errno.EPERM: "not permitted; name another place",
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENOTDIR: "a file, where a folder must be; check the path",
    errno.EISDIR: "a folder, where a file must be; check the path",
    errno.EEXIST: "exists already; name another place",
    errno.ENOTEMPTY: "a folder that is not empty; name another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "links that lead in a circle; name another place",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or what kind of error it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_INTERRUPTED = ("query interrupted", "keyboardinterrupt")


def is_interruption(error: BaseException | None) -> bool:
    """Whether a signal stopped the work: DuckDB makes an error of its own of it, of one inside an
    Arrow table another, and others may wrap them.

    >>> [is_interruption(RuntimeError(text)) for text in ("Query interrupted", "read: no memory")]
    [True, False]
    >>> is_interruption(DataError("reading the object as Arrow data failed: KeyboardInterrupt:"))
    True
    """
    while error is not None:
        # by words and by name: this module imports none of the libraries
        text = str(error).lower()
        if isinstance(error, KeyboardInterrupt) or any(word in text for word in _INTERRUPTED):
            return True
        if type(error).__name__ == "InterruptException":
            return True

        # libraries wrap it
        error = error.__cause__ or error.__context__
    return False


def environment_fault(error: BaseException) -> str | None:
    """What to tell people of an error that the machine is to blame for, not the program; None for
    any other.

    Libraries hide the system's errors in types of their own (safetensors, DuckDB, torch): known by
    the system's words.

    >>> environment_fault(OSError(errno.ENOSPC, "No space left on device", "runs/a"))
    'runs/a: the disk is full; make room there, or write to another one.'
    """
    if isinstance(error, OSError):
        code = error.errno
        reason = (_DISK | _PLACE).get(code or 0)
        if code is None or reason is None:
            return f"{first_line(error)}; check files and disk."
        if error.filename is None:
            return f"{first_line(error)}: {reason}."
        return f"{error.filename}: {reason}."

    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return (
            f"{first_line(error)}: not enough memory; take a smaller model, smaller batches or "
            "fewer events."
        )

    code = disk_fault(error)
    return None if code is None else f"{first_line(error)}: {_DISK[code]}."


def disk_fault(error: BaseException) -> int | None:
    """The system's error number when a disk cannot take more, also in the words of a library's own
    error."""
    # also in the words of a library: safetensors and DuckDB raise errors of their own
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _DISK else None
    return next((code for code in _DISK if os.strerror(code) in str(error)), None)
