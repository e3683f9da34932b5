"""Files and folders that are complete or absent; who may write; what the dead leave."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from behavegpt import io
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import (
    put_in_place,
    read_json,
    remove_stale,
    replacing,
    scratch,
    temporary_name,
    write_json,
)
from behavegpt.locks import lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_name(path: Path, purpose: str) -> Path:
    """A name that a process left which is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return path.with_name(f".tmp-{purpose}-{path.name}-{ended.pid}-12345")


def filled(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text(text)
    return folder


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_replaces_another_and_nothing_is_left(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(io, "_renameat2", lambda: None)
    for text in ("first", "second"):
        with scratch(tmp_path / "out") as folder:
            (folder / "a.txt").write_text(text)
            assert any(name.startswith(".tmp-new-out-") for name in names(tmp_path))
        assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a.txt").read_text() == text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    filled(tmp_path / "out", "old")
    with pytest.raises(error), scratch(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("new")
        raise error
    with pytest.raises(error), replacing(tmp_path / "b.txt") as file:
        file.write_text("half")
        raise error
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a.txt").read_text() == "old"


def test_what_the_dead_left_goes_and_what_the_living_or_strangers_have_stays(
    tmp_path: Path,
) -> None:
    living = filled(temporary_name(tmp_path / "out", "new"), "living")
    other = filled(
        dead_name(tmp_path / "other", "new"), "of another output, maybe of another machine"
    )
    strange = filled(tmp_path / ".tmp-notes", "a stranger's")
    for purpose in ("new", "gone"):
        filled(dead_name(tmp_path / "out", purpose), "dead")
    # of a process that had our number before us
    own_number = tmp_path / f".tmp-new-out-{os.getpid()}-1"
    filled(own_number, "dead")
    remove_stale(tmp_path, "out")
    assert names(tmp_path) == sorted([living.name, other.name, strange.name])
    remove_stale(tmp_path)
    assert names(tmp_path) == sorted([living.name, strange.name])


def test_scratch_in_the_systems_folder_goes_when_its_owner_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io.tempfile, "tempdir", str(tmp_path))
    filled(dead_name(tmp_path / f"{io._origin()}-x", "scratch"), "dead")
    elsewhere = filled(
        dead_name(tmp_path / "0123-x", "scratch"), "of a container with process numbers of its own"
    )
    # a process may hold several
    with io.temporary_folder() as first, io.temporary_folder() as second:
        assert first != second and stat.S_IMODE(first.stat().st_mode) == 0o700
        assert names(tmp_path) == sorted([first.name, second.name, elsewhere.name])
    assert names(tmp_path) == [elsewhere.name]


def test_a_folder_that_lost_its_name_between_two_renames_gets_it_back(tmp_path: Path) -> None:
    filled(dead_name(tmp_path / "out", "old"), "old")
    with pytest.raises(RuntimeError), scratch(tmp_path / "out"):
        raise RuntimeError
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a.txt").read_text() == "old"
    filled(dead_name(tmp_path / "out", "old"), "older")
    remove_stale(tmp_path, "out")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a.txt").read_text() == "old"


HOLD = """
import sys, time
from pathlib import Path
from behavegpt.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_writes_a_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                ConfigError, match=f"out is in use by process {holder.pid} on .*; wait for it"
            ),
            scratch(out),
        ):
            raise AssertionError("two processes write one folder")
        holder.kill()
        holder.wait()
        with scratch(out) as folder:
            (folder / "a.txt").touch()
        assert names(tmp_path) == ["out"]  # the lock of the dead is gone too
    finally:
        holder.kill()


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), lock(tmp_path / "out"):
            raise RuntimeError
    assert names(tmp_path) == []


def test_long_names_have_room_for_what_is_half_made(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        with scratch(tmp_path / name) as folder:
            (folder / "a.txt").touch()
        write_json(tmp_path / name / ("y" * 250 + ".json"), {})
        assert names(tmp_path / name) == ["a.txt", "y" * 250 + ".json"]


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    filled(tmp_path / "disk" / "data", "old")
    (tmp_path / "link").symlink_to("disk/data")
    with scratch(tmp_path / "link") as folder:
        (folder / "a.txt").write_text("new")
    (tmp_path / "file").symlink_to("disk/b.json")
    (tmp_path / "disk" / "b.json").write_text("{}")
    write_json(tmp_path / "file", {"x": 1})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").is_symlink()
    assert (tmp_path / "disk" / "data" / "a.txt").read_text() == "new"
    assert json.loads((tmp_path / "disk" / "b.json").read_text()) == {"x": 1}
    assert names(tmp_path / "disk") == ["b.json", "data"]


@pytest.mark.parametrize(
    "mask,file,folder", [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_the_umask_decides_who_reads_a_folder(
    mask: int, file: int, folder: int, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    before = os.umask(mask)
    try:
        with scratch(tmp_path / "out") as work:
            (work / "deeper").mkdir(mode=0o700)
            save_file({"w": torch.zeros(2)}, work / "deeper" / "model.safetensors")
            (work / "b.json").write_text("{}")
            os.chmod(work / "b.json", 0o600)
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == folder


def test_a_shared_folders_group_stays(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o2775)
    with scratch(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"null", b"{", b"\xff", b"[" * 200_000], ids=lambda x: x[:4].hex()
)
def test_strange_json_is_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: (not JSON|holds)"):
        read_json(tmp_path / "a.json", DataError, "write it again")


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "one", "1"), filled(tmp_path / "other", "2")
    put_in_place(one, other)
    assert names(tmp_path) == ["other"] and (other / "a.txt").read_text() == "1"
