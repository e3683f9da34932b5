"""MANIFEST.json: size and SHA-256 of a folder's files, which tell a damaged folder from a good one.

What was found sound once is not read again while its size, times and inode stay the same (a note in
$BEHAVEGPT_CACHE/verified), so that opening a folder of many gigabytes stays fast;
`behavegpt doctor DIR` reads all.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from behavegpt.errors import BehaveGPTError
from behavegpt.io import write_text

MANIFEST = "MANIFEST.json"
FORMAT = 1
LONGEST = 1 << 22  # bytes of a manifest that is read
SETTLED = 0.1  # seconds after a change from which on the times tell the next one

Stamp = list[int | str]  # device, inode, size, times and digest of a file that was found sound


class Damage(NamedTuple):
    """How an error is told: its type, and what a person can do."""

    error: type[BehaveGPTError]
    remedy: str


def seal(folder: Path, files: Collection[str] | None = None, **facts: Any) -> None:
    """Write the manifest of files (default: all) of a folder, and wait until all of it is on the
    disk."""
    if files is None:
        files = files_of(folder)

    text = _dumps(manifest_of(folder, files, facts))
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")

    # files before the folder: an entry must not reach the disk before what it names
    sync(*(folder / name for name in (*files, MANIFEST)), folder)


def put(folder: Path, name: str, text: str) -> None:
    """Write a text file into a folder, and into its manifest where it has one; the folder is sound
    at every moment."""
    manifest = None
    if is_sealed(folder):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))

    # out of the manifest while it changes: a crash between the writes leaves a file that the
    # manifest does not name, never one that it calls damaged
    if manifest is not None and name in manifest["files"]:
        del manifest["files"][name]
        write_text(folder / MANIFEST, _dumps(manifest))

    write_text(folder / name, text)
    if manifest is not None:
        manifest["files"] |= manifest_of(folder, [name], {})["files"]
        write_text(folder / MANIFEST, _dumps(manifest))

    sync(folder / name, folder)


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a manifest; those of earlier versions have none."""
    return os.path.lexists(folder / MANIFEST)


def verify(folder: Path, damage: Damage, files: Collection[str] | None = None) -> None:
    """Raise `damage.error`, naming the file, unless files (default: all) are those that `seal`
    saw."""
    # every time: it is small, and the notes are worth nothing without it
    sums = _read_manifest(folder, damage)
    known = _read_stamps(folder)

    sound: dict[str, Stamp] = {}
    for name in sums if files is None else files:
        if name not in sums:
            raise damage.error(f"{folder / name}: {MANIFEST} does not know it; {damage.remedy}.")
        # raises already where size or kind differ, which needs no reading
        stamp = _stamp(folder / name, sums[name], damage)
        if known.get(name) != stamp:
            _compare(folder / name, sums[name], damage)
        sound[name] = stamp

    # written only when something new was read: opening a model must not write each time
    if any(known.get(name) != stamp for name, stamp in sound.items()):
        _write_stamps(folder, known | sound)


def damaged_files(folder: Path, damage: Damage) -> list[str]:
    """A line for each file of the manifest that is not as it was, reading every byte."""
    # all of them: a person wants to know at once what to restore
    lines = []
    for name, entry in _read_manifest(folder, damage).items():
        try:
            _compare(folder / name, entry, damage)
        except (BehaveGPTError, OSError) as error:
            lines.append(str(error))
    return lines


def files_of(folder: Path) -> list[str]:
    """The names of all files below a folder but its manifest, sorted."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in paths if name != MANIFEST)


def manifest_of(folder: Path, files: Iterable[str], facts: dict[str, Any]) -> dict[str, Any]:
    """Facts, and size and SHA-256 of the files, as they are now."""
    entries = {}
    for name in files:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries[name] = {"sha256": digest, "size": file.tell()}
    return {"format": FORMAT, **facts, "files": entries}


def sync(*paths: Path) -> None:
    """Wait until files, or the entries of directories, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def verify_exactly(folder: Path, damage: Damage, files: Collection[str], **facts: Any) -> None:
    """As `verify`, reading every byte, of a folder that holds these files alone, with these facts
    and no links."""
    kinds = [(folder, stat.S_ISDIR)]
    kinds += [(folder / name, stat.S_ISREG) for name in (*files, MANIFEST)]
    for path, is_right in kinds:
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise damage.error(f"{path}: missing ({error.strerror}); {damage.remedy}.") from None
        if not is_right(mode):  # a link could lead anywhere, a pipe would never end
            raise damage.error(
                f"{path}: a link or special file, which no checkpoint holds; {damage.remedy}."
            )

    try:
        actual = manifest_of(folder, files, facts)
        with open(folder / MANIFEST, "rb") as stream:
            text = stream.read(1 << 16)  # a checkpoint's is a few hundred bytes
    except OSError as error:
        raise damage.error(f"{folder}: cannot be read ({error}); {damage.remedy}.") from None

    # byte for byte: facts, names and digests at once
    if text != _dumps(actual).encode():
        digests = {name: entry["sha256"].encode() for name, entry in actual["files"].items()}
        wrong = [name for name in files if digests[name] not in text]
        raise _changed(folder / (wrong[0] if wrong else MANIFEST), damage)


def _read_manifest(folder: Path, damage: Damage) -> dict[str, Any]:
    """File -> size and SHA-256. A manifest that `seal` cannot have written is damaged."""
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            text = file.read(LONGEST)
        manifest = json.loads(text)
        files: dict[str, Any] = manifest["files"]
        # dumped again it must be the same text: anything else was not written by `seal`
        sound = _dumps(manifest).encode() == text and manifest["format"] == FORMAT
        sound = sound and all(
            set(entry) == {"sha256", "size"} and is_inside(name) for name, entry in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damage.error(f"{path}: cannot be read ({error}); {damage.remedy}.") from None

    if not sound:
        raise _changed(path, damage)
    return files


def is_inside(name: str) -> bool:
    """Whether a relative name stays below the folder it is joined to."""
    path = PurePosixPath(name)
    plain = bool(path.parts) and not path.is_absolute() and "\0" not in name and "\\" not in name
    return plain and not any(part in ("..", "") for part in name.split("/"))


def _compare(path: Path, entry: dict[str, Any], damage: Damage) -> None:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise damage.error(f"{path}: cannot be read ({error.strerror}); {damage.remedy}.") from None
    if (digest, size) != (entry["sha256"], entry["size"]):
        raise _changed(path, damage)


def _changed(path: Path, damage: Damage) -> BehaveGPTError:
    return damage.error(f"{path}: damaged or changed, {MANIFEST} does not fit; {damage.remedy}.")


def _stamp(path: Path, entry: dict[str, Any], damage: Damage) -> Stamp:
    """What stays the same as long as nobody writes into a file."""
    try:
        status = path.stat()
    except OSError as error:
        raise damage.error(f"{path}: missing ({error.strerror}); {damage.remedy}.") from None

    if not stat.S_ISREG(status.st_mode):
        raise damage.error(f"{path}: no regular file; {damage.remedy}.")
    if status.st_size != entry["size"]:
        raise _changed(path, damage)
    # ctime, as mtime can be set back
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        entry["sha256"],
    ]


def _notes(folder: Path) -> Path:
    """The file with the stamps of a folder, named by its real path."""
    cache = Path(os.environ.get("BEHAVEGPT_CACHE", Path.home() / ".cache" / "behavegpt"))
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return cache / "verified" / f"{key}.json"


def _read_stamps(folder: Path) -> dict[str, Stamp]:
    """File -> stamp; empty where nothing is known, or the note is damaged: all is read again."""
    try:
        known = json.loads(_notes(folder).read_bytes())
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_stamps(folder: Path, stamps: dict[str, Stamp]) -> None:
    """Remember what is sound, where there is a cache to write to."""
    # by ctime, in nanoseconds; a write within the clock's step could leave the times as they are
    latest = max(int(stamp[4]) for stamp in stamps.values()) if stamps else 0
    if time.time_ns() - latest > SETTLED * 1e9:
        with suppress(OSError, RuntimeError):
            write_text(_notes(folder), json.dumps(stamps))


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
