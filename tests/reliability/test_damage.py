"""Damaged files: a reader is refused in one paragraph, or gets what was written; nothing else ever.

The figures of the long trial are in docs/reliability.md.
"""

from __future__ import annotations

import collections
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from behavegpt.checksums import MANIFEST, Damage, damaged_files
from behavegpt.doctor import check_folders
from behavegpt.errors import BehaveGPTError, DataError
from tests.reliability.makers import KINDS

Record = Callable[[str, object], None]


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.randint(1, 64))


def blank(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes(min(512, len(content) - place)) + content[place + 512 :]


DAMAGES = {"flip": flip, "cut": cut, "append": append, "blank": blank}


@pytest.fixture(scope="module", params=KINDS)
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str]:
    """A kind's name, a folder of it, and what is read from it."""
    kind = KINDS[request.param]
    folder = kind.make(tmp_path_factory.mktemp(request.param))
    return request.param, folder, kind.read(folder)


def outcome(name: str, folder: Path, expected: str) -> str:
    """refused, same or CHANGED; anything that is no BehaveGPTError goes through."""
    try:
        return "same" if KINDS[name].read(folder) == expected else "CHANGED"
    except BehaveGPTError as error:
        assert len(str(error)) < 2000
        return "refused"


@pytest.mark.parametrize("trials", [40, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_silent(
    sound: tuple[str, Path, str], damage: str, trials: int, tmp_path: Path, record_property: Record
) -> None:
    """Every file in turn, at random places; what a reader does not look at (the data card, say)
    `doctor` does."""
    name, folder, expected = sound
    trials = trials if damage == "flip" else trials // 4
    rng, found = random.Random(trials), collections.Counter[str]()
    copy = shutil.copytree(folder, tmp_path / folder.name)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    for number in range(trials):
        path = files[number % len(files)]
        content = path.read_bytes()
        damaged = DAMAGES[damage](content, rng)
        if damaged == content:
            continue
        path.write_bytes(damaged)
        kind = outcome(name, copy, expected)
        found[kind] += 1
        assert kind != "CHANGED", f"{path.name}, trial {number}"
        if name != "entry":
            assert not check_folders(copy)["ok"], (
                f"{path.name}, trial {number}: doctor sees nothing"
            )
        path.write_bytes(content)
    assert outcome(name, copy, expected) == "same" and check_folders(copy)["ok"]
    assert found["refused"] > 0.5 * sum(found.values())
    record_property(f"{name}, {damage}", dict(found))


def test_missing_files_and_links_are_refused(sound: tuple[str, Path, str], tmp_path: Path) -> None:
    name, folder, expected = sound
    copy = shutil.copytree(folder, tmp_path / folder.name)
    for path in sorted(
        path for path in copy.rglob("*") if path.is_file() and path.name != MANIFEST
    ):
        moved = path.rename(tmp_path / "moved")
        if path.name in ("missing.npy", "entry.json", "data_card.md", "rejects.parquet"):
            assert outcome(name, copy, expected) in ("same", "refused")
        else:
            assert outcome(name, copy, expected) == "refused", path
        moved.rename(path)


def test_old_folders_without_checksums_still_open(
    sound: tuple[str, Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, folder, expected = sound
    if name == "checkpoint":
        pytest.skip("checkpoints always had a manifest")
    copy = shutil.copytree(folder, tmp_path / folder.name)
    (copy / MANIFEST).unlink(missing_ok=True)
    if name == "entry":
        (copy / "entry.json").unlink()
    assert outcome(name, copy, expected) == "same"
    assert ("damage would go unnoticed" in caplog.text) == (name != "entry")


def test_what_was_found_sound_is_not_read_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    import time

    import behavegpt.checksums
    from behavegpt.checksums import seal, verify

    monkeypatch.setenv("BEHAVEGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a.bin"
    file.write_bytes(b"a" * 1000)
    seal(tmp_path / "folder")
    read: list[str] = []
    whole = hashlib.file_digest
    counted = lambda stream, kind: read.append(stream.name) or whole(stream, kind)  # noqa: E731
    monkeypatch.setattr(behavegpt.checksums.hashlib, "file_digest", counted)
    damage = Damage(DataError, "x")
    time.sleep(2 * behavegpt.checksums.SETTLED)
    for _ in range(3):
        verify(tmp_path / "folder", damage)
    assert len(read) == 1
    times = file.stat()
    file.write_bytes(b"b" * 1000)
    import os

    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had happened
    with pytest.raises(DataError, match=r"a\.bin: damaged or changed"):
        verify(tmp_path / "folder", damage)
    assert damaged_files(tmp_path / "folder", damage)
