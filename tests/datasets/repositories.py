"""Small repositories made by `git fast-import`, which takes any bytes, dates and names in
milliseconds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Commit(NamedTuple):
    """One commit; `paths` are as fast-import writes them, so odd ones in C quotes."""

    subject: str | bytes = "Add it"
    paths: tuple[str | bytes, ...] = ("src/a.py",)
    date: str = "1700000000 +0100"
    name: str = "Ann"
    mail: str = "ann@example.org"


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run git in `folder`."""
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def repository(folder: Path, commits: Iterable[Commit]) -> Path:
    """A repository with these commits, oldest first, on its current branch; without a work tree
    checked out."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    stream = b"".join(_text(number, commit) for number, commit in enumerate(commits))
    git(folder, "fast-import", "--quiet", "--date-format=raw-permissive", stdin=stream)
    return folder


def _text(number: int, commit: Commit) -> bytes:
    subject = _bytes(commit.subject)
    lines = [
        b"commit refs/heads/main",
        f"author {commit.name} <{commit.mail}> {commit.date}".encode(),
        f"committer C <c@example.org> {1_700_000_000 + number} +0000".encode(),
        f"data {len(subject)}".encode(),
        subject,
    ]
    content = str(number).encode()
    for path in commit.paths:
        lines += [b"M 100644 inline " + _bytes(path), f"data {len(content)}".encode(), content]
    return b"\n".join(lines) + b"\n\n"


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
