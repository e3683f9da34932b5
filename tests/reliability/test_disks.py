"""Full, read-only and odd places: one paragraph, exit code 2, nothing left; told before the work
where it can be."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from behavegpt import errors
from behavegpt.cli import main
from behavegpt.errors import ConfigError, environment_fault
from behavegpt.outputs import check_output
from tests.reliability.forks import Ended, commands
from tests.reliability.makers import contents
from tests.reliability.verbs import VERBS, argv_of, lay_out

Record = Callable[[str, object], None]
NOBODY = 65534
QUICK = ("prepare", "predict", "train")
LIMITS = (0, 100, 1000, 4000, 20_000)  # bytes that a file may have


@pytest.fixture(scope="module")
def open_place(place: Path) -> Iterator[Path]:
    """`place`, where another user can read it: pytest's own folders are closed to all others."""
    folder = Path(tempfile.mkdtemp(prefix="behavegpt-tests-", dir="/var/tmp"))
    try:
        copy = shutil.copytree(place, folder / "place", symlinks=True)
        folder.chmod(0o755)
        yield copy
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def out(place: Path) -> Iterator[Path]:
    yield place / "out"
    shutil.rmtree(place / "out", ignore_errors=True)


def refused(ended: Ended) -> str:
    """The one paragraph of a command that could not write."""
    # of a profile, whose other members go on
    member = ended.status == 1 and "failed: " in ended.output
    assert ended.status == 2 or member, ended.output
    assert "Traceback" not in ended.output, ended.output
    return ended.output


def needed(verb: str, quick: bool) -> None:
    if quick and verb not in QUICK:
        pytest.skip("in the long trial")


EVERY = [True, pytest.param(False, marks=pytest.mark.slow)]


@pytest.mark.parametrize("quick", EVERY)
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_paragraph(
    verb: str, quick: bool, place: Path, out: Path, record_property: Record
) -> None:
    """Files end at some size: whatever a library (DuckDB, Arrow, safetensors, torch) makes of it is
    told alike."""
    needed(verb, quick)
    told = 0
    for limit in LIMITS[1:3] if quick else LIMITS:
        lay_out(place, verb)
        ended = commands().run(argv_of(verb, "out"), place, file_limit=limit)
        if ended.status == 0:  # all its files are smaller
            shutil.rmtree(out)
            continue
        text = refused(ended)
        assert any(words in text for words in ("File too large", "grew beyond what is allowed")), (
            text
        )
        told += 1
        left = [n for n in (contents(out) if out.exists() else {}) if ".tmp" in n or ".lock" in n]
        assert not left, (limit, left)
        shutil.rmtree(out, ignore_errors=True)
    record_property(verb, f"{told} refused")
    assert told


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("quick", EVERY)
def test_a_folder_without_permission_is_told_before_the_work(
    verb: str, quick: bool, open_place: Path
) -> None:
    """Root, whom no permission stops, becomes another user for it."""
    needed(verb, quick)
    out, root = lay_out(open_place, verb), os.getuid() == 0
    out.mkdir(exist_ok=True)
    if not root:
        for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
            folder.chmod(0o555)
    before = contents(out)
    try:
        text = refused(
            commands().run(argv_of(verb, "out"), open_place, **({"user": NOBODY} if root else {}))
        )
        assert "no permission" in text or "Permission denied" in text, text
        assert contents(out) == before
    finally:
        for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        shutil.rmtree(out)


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file where a folder must be": (
        lambda p: _file(p / "file") / "x",
        "a file, where a folder must be",
    ),
    "dangling link": (lambda p: _link(p / "link", "nowhere/x"), "a broken link"),
    "name too long": (lambda p: p / ("x" * 300), "the name is too long"),
    "folder of a name too long": (lambda p: p / ("x" * 300) / "y", "the name is too long"),
    "links in a circle": (
        lambda p: _link(p / "circle", "circle"),
        "links that lead in a circle|a broken link",
    ),
    "no disk": (lambda p: Path("/proc/nothing/x"), "no such file or folder"),
}


def _file(path: Path) -> Path:
    path.write_text("in the way")
    return path


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


# verb -> its output, with {} for the place, and the ending it needs
OUTPUTS = {
    "prepare": (["prepare", "absent.csv", "--out", "{}"], ""),
    "convert": (["convert", "gowalla", "absent", "--out", "{}"], ".parquet"),
    "synthesize": (["synthesize", "--events", "100", "--out", "{}"], ".parquet"),
    "predict": (["predict", "absent", "absent.csv", "--out", "{}"], ".parquet"),
    "embed": (["embed", "absent", "absent.csv", "--out", "{}"], ".parquet"),
    "probe": (["probe", "absent", "a.csv", "b.csv", "--at", "2024-01-01", "--out", "{}"], ""),
    "generate": (["generate", "absent", "absent.csv", "--out", "{}"], ".csv"),
    "evaluate": (["evaluate", "absent", "absent", "--out", "{}"], ".json"),
    "export": (["export", "absent", "absent", "{}"], ""),
    "export-model": (["export-model", "absent", "{}"], ""),
    "demo": (["demo", "--out", "{}"], ""),
    "challenge split": (["challenge", "split", "absent", "--out", "{}"], ""),
    "challenge targets": (["challenge", "targets", "absent", "--out", "{}"], ""),
    "challenge evaluate": (
        ["challenge", "evaluate", "absent", "--data", "absent", "--out", "{}"],
        "",
    ),
    "challenge leaderboard": (["challenge", "leaderboard", "absent", "--out", "{}"], ""),
    "profile": (["profile", "absent.yaml", "--embed", "absent", "--to", "{}"], ""),
    "scale fit": (["scale", "fit", "absent.jsonl", "--out", "{}"], ".json"),
    "scale run": (["scale", "run", "scaling/small", "data.path=absent", "out={}"], ""),
    "benchmark": (["benchmark", "benchmark/memory", "out={}"], ""),
    "train": (["train", "tiny", "data.path=absent", "out={}"], ""),
    "finetune": (
        ["finetune", "adapt/cross_domain", "base=absent", "data.path=absent", "out={}"],
        "",
    ),
    "profile, built": (["profile", "profiles/small", "data.path=absent", "out={}"], ""),
    "pretrain-universal": (["pretrain-universal", "universal/shipped", "out={}"], ""),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("verb", OUTPUTS)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    verb: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The inputs do not even exist: they are looked at later."""
    import re

    monkeypatch.chdir(tmp_path)
    (words, ending), (make, message) = OUTPUTS[verb], PLACES[where]
    path = make(tmp_path)
    if ending:
        link, path = path, path.with_name(path.name + ending)
        if "link" in where:
            link.rename(path)
    assert main([word.format(path) for word in words]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told) and "absent" not in told and told.count("\n") == 1, told


ENDINGS = [(verb, words, ending) for verb, (words, ending) in OUTPUTS.items() if ending]


@pytest.mark.parametrize(
    "verb,words,ending", ENDINGS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_ending_that_no_format_has_is_told_before_anything_is_read(
    verb: str, words: list[str], ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out", "out.txt", "out.npz"):
        assert main([word.format(tmp_path / name) for word in words]) == 2
        assert "unknown format" in capsys.readouterr().err


def test_folders_and_special_files_are_not_replaced_by_files(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null"), Path("/")):
        with pytest.raises(ConfigError):
            check_output(path, "file")
    with pytest.raises(ConfigError, match="a file, where a folder"):
        check_output(_file(tmp_path / "file"), "whole")
    with pytest.raises(ConfigError, match="a mount point"):
        check_output(Path("/proc"), "whole")
    check_output(tmp_path / "new" / "deeper", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]  # looking leaves nothing


@pytest.mark.parametrize("code", [*errors._DISK, *errors._PLACE])
def test_every_fault_of_the_system_has_its_words(code: int) -> None:
    told = environment_fault(OSError(code, os.strerror(code), "runs/x"))
    assert (
        told is not None and told.startswith("runs/x: ") and "; " in told
    ) or code == errno.EMFILE


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_librarys_own_error_is_known_by_the_systems_words(kind: type[Exception]) -> None:
    assert "the disk is full" in (
        environment_fault(kind("I/O error: No space left on device (os error 28)")) or ""
    )
    assert environment_fault(kind("index out of range")) is None


MEMORY = [
    MemoryError("Unable to allocate 28.0 GiB for an array"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: 28 GB"
    ),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:20])
def test_too_little_memory_is_one_paragraph(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "log.csv").write_text("user,time,event\na,2024-01-01,x\n")
    monkeypatch.setattr("behavegpt.ingest.prepare.find_logs", fails)
    assert (
        main(
            ["prepare", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out"), "--user", "user"]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert "not enough memory; take a smaller model" in told and "Traceback" not in told


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_in_the_middle(
    code: int,
    place: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)

    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code), "out/data")

    monkeypatch.setattr("behavegpt.ingest.prepare.write_folder", fails)
    assert main(argv_of("prepare", "out")) == 2
    told = capsys.readouterr().err
    assert (
        f"prepare: {environment_fault(OSError(code, '', 'out/data'))}" in told
        and "Traceback" not in told
    )
    assert not contents(out)
