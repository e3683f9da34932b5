"""`git log` of one clone as Arrow tables: a process per repository, read in blocks of whole
commits.

A header is `/hash`, mail, name, date and subject between newlines; with `-z` everything else ends
in a zero byte. No path starts with a slash, so headers and paths cannot be confused, whatever bytes
the paths hold.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.errors import DataError, first_line

HEADER = ("hash", "mail", "name", "date", "subject")
BLOCK = 1 << 24  # bytes read at a time: 16 MiB, about 100,000 commits
# Settings of the user's that would change what is printed are overruled; the mailmap is respected
# (%aE, %aN).
LOG = (
    *("-c", "log.showSignature=false", "-c", "log.showRoot=true", "log", "-z"),
    *("--no-merges", "--no-renames", "--name-only", "--no-relative", "--no-ext-diff", "--no-color"),
    *("--encoding=UTF-8", "--date=raw", "--format=/%H%n%aE%n%aN%n%ad%n%s"),
)
# variables that would send git to another repository than the folder's
ELSEWHERE = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR"),
    *("GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"),
)


class Repository(NamedTuple):
    """A local clone. `folder`: where git runs; `shallow`: whether its history was cut off."""

    folder: Path
    name: str
    shallow: bool


class Commits(NamedTuple):
    """A block of commits. `headers`: commit and HEADER; `files`: commit, position in its list,
    path."""

    headers: pa.Table
    files: pa.Table


def open_repository(source: Path) -> Repository:
    """The repository at `source`: a clone, a work tree, a bare repository or a `.git` folder.
    Raises DataError."""
    folder = source.resolve()
    if not folder.is_dir():
        raise DataError(f"{source}: no such folder; give the folder of a local clone.")

    questions = ("--absolute-git-dir", "--is-shallow-repository", "--is-inside-work-tree")
    described = _ask(folder, "rev-parse", *questions)

    if described is None:
        complaint = _complaint(folder)
        # git asks for consent to read another user's repository
        owned = "dubious ownership" not in complaint
        remedy = (
            "give the folder of a local clone"
            if owned
            else f"run git config --global --add safe.directory {folder}"
        )
        raise DataError(f"{source}: {complaint}; {remedy}.")

    storage, shallow, inside = described.splitlines()
    top = storage
    if inside == "true":
        top = (_ask(folder, "rev-parse", "--show-toplevel") or "").rstrip("\n")

    # a folder of a work tree has no history of its own
    if folder != Path(top).resolve():
        raise DataError(
            f"{source}: a folder inside the repository {top}; give that folder to read its history."
        )

    if _ask(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") is None:
        raise DataError(
            f"{source}: the repository has no commits yet (HEAD names none); remove it."
        )

    folder = folder.parent if folder.name == ".git" else folder
    return Repository(folder, folder.name.removesuffix(".git") or "root", shallow == "true")


def read_commits(repository: Repository) -> Iterator[Commits]:
    """Blocks of the commits that HEAD reaches, newest first and without merges. Raises DataError if
    git fails."""
    # a pipe of errors that nobody reads would block git when it is full
    with tempfile.TemporaryFile() as complaints:
        with _git(repository.folder, *LOG, "HEAD", "--", stderr=complaints) as process:
            assert process.stdout is not None
            first = 0
            for block in _blocks(process.stdout):
                commits = _tables(block, first)
                first += len(commits.headers)
                yield commits

        if process.returncode:
            complaints.seek(0)
            complaint = first_line(RuntimeError(complaints.read().decode("utf-8", "replace")))
            raise DataError(
                f"{repository.folder}: git log failed ({complaint}); try `git fsck` there, or "
                "clone it again."
            )


def _git(folder: Path, *arguments: str, stderr: IO[bytes] | int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}

    # nothing is downloaded
    environment |= {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}

    command = ["git", "-C", str(folder), "--no-pager", *arguments]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
    except FileNotFoundError:
        raise DataError(
            "git was not found on the PATH; install git, then run this again."
        ) from None


def _ask(folder: Path, *question: str) -> str | None:
    """What git prints, or None when it fails."""
    with _git(folder, *question, stderr=subprocess.DEVNULL) as process:
        answer, _ = process.communicate()
    return os.fsdecode(answer) if process.returncode == 0 else None


def _complaint(folder: Path) -> str:
    """Why git does not take `folder` for a repository, in git's words."""
    with _git(folder, "rev-parse", "--git-dir", stderr=subprocess.PIPE) as process:
        _, errors = process.communicate()
    return first_line(RuntimeError(errors.decode("utf-8", "replace"))).removeprefix("fatal: ")


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream in blocks that end where a commit ends."""
    rest = b""
    while read := stream.read(BLOCK):
        # a commit may straddle two reads: what follows the last whole one waits
        rest += read
        end = rest.rfind(b"\0/") + 1
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _tables(block: bytes, first: int) -> Commits:
    """Split a block of whole commits, numbered from `first` on. Bytes that are not UTF-8 become
    U+FFFD."""
    text = block.decode("utf-8", "replace").removesuffix("\0")
    tokens = pc.split_pattern(pa.array([text], pa.large_string()), "\0").flatten()
    is_header = pc.starts_with(tokens, "/")
    # each path belongs to the header before it: number of the headers so far
    commit = np.cumsum(is_header.to_numpy(zero_copy_only=False)) - 1 + first  # (tokens,)

    heads = pc.split_pattern(tokens.filter(is_header), "\n", max_splits=len(HEADER) - 1)
    columns = {name: pc.list_element(heads, place) for place, name in enumerate(HEADER)}
    headers = pa.table({"commit": np.arange(first, first + len(heads)), **columns})

    is_path = pc.invert(is_header)
    # git ends a header with a newline
    paths = pc.replace_substring_regex(tokens.filter(is_path), r"\A\n", "")
    position = np.flatnonzero(is_path.to_numpy(zero_copy_only=False))  # (files,)
    files = {"commit": commit[position], "position": position, "path": paths}
    return Commits(headers, pa.table(files))
