"""Two runs into one place: the second is refused, whatever the verb, and the first one's work stays
whole."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from behavegpt.cli import main
from behavegpt.embeddings import assemble
from behavegpt.errors import DataError
from behavegpt.locks import lock
from tests.reliability.forks import ROOT
from tests.reliability.makers import contents
from tests.reliability.verbs import VERBS, argv_of

# verb -> what it holds, and the lock file where that is not beside it
HELD: dict[str, tuple[str, str | None]] = {
    "prepare": ("out/data", None),
    "convert": ("out/stream.parquet", None),
    "train": ("out/run", "out/run/.lock"),
    "finetune": ("out/tuned", "out/tuned/.lock"),
    "evaluate": ("out/eval/metrics.json", None),
    "export": ("out/entry", None),
    "export-model": ("out/portable", None),
    "challenge split": ("out/split/split", None),
    "challenge targets": ("out/targets", None),
    "profile": ("out/profile", "out/profile/.lock"),
    "profile --embed": ("out/new/embed", None),
}


@pytest.mark.parametrize("verb", HELD)
def test_a_second_run_into_the_same_place_is_refused(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    path, file = (Path(name) if name else None for name in HELD[verb])
    assert path is not None
    (file or path).parent.mkdir(parents=True, exist_ok=True)
    with lock(path, file):
        before = contents(place / "out")
        assert main(argv_of(verb, "out")) == 2
        assert "is in use by process" in capsys.readouterr().err
        assert contents(place / "out") == before


@pytest.mark.slow  # each held place, and a second run into it, are above
def test_of_two_exports_at_once_one_writes_and_the_other_is_refused(place: Path) -> None:
    """In processes of their own: the one that comes second may not add rows of zeros."""
    argv = argv_of("export", "together")
    command = [sys.executable, "-m", "behavegpt", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    told = [run.communicate(timeout=300)[0].decode() for run in runs]
    codes = sorted(run.returncode for run in runs)
    # one may also have come when the other was done: it replaces what is there
    assert codes in ([0, 2], [0, 0]), told
    assert codes == [0, 0] or any("is in use by process" in text for text in told), told
    vectors = np.load(place / "together" / "entry" / "embeddings.npy", allow_pickle=False)
    assert len(vectors) and (np.abs(vectors).sum(1) > 0).all()


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_trained_folder_is_read_by_whom_the_umask_lets(mask: int, place: Path) -> None:
    before = os.umask(mask)
    try:
        assert main(_trained(place, mask)) == 0
    finally:
        os.umask(before)
    for path in (place / f"modes{mask}" / "run" / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path


def _trained(place: Path, mask: int) -> list[str]:
    words = [
        word.replace("data.path=data", f"data.path={place / 'data'}") for word in VERBS["train"]
    ]
    out = place / f"modes{mask}" / "run"
    return [
        f"out={out}" if word.startswith("out=") else word for word in words if word != "--resume"
    ]


def test_an_export_seals_only_what_it_wrote_itself(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if another program had put its own array under the name: rows of zeros, as an unfinished
    export has."""
    monkeypatch.chdir(place)
    write = assemble._Rows.write

    def spoiled(self: assemble._Rows, rows: np.ndarray, vectors: np.ndarray) -> None:
        write(self, rows, vectors)
        target = np.load(self._path, mmap_mode="r+", allow_pickle=False)
        target[rows[0]] = 0

    monkeypatch.setattr(assemble._Rows, "write", spoiled)
    assert main(["export", "model", "data", "spoiled"]) == 2
    assert "not the array that was written" in capsys.readouterr().err
    assert not Path("spoiled").exists()


def test_an_export_never_leaves_a_row_out(tmp_path: Path) -> None:
    import pyarrow as pa

    rows = assemble._Rows(
        tmp_path / "e.npy", "float16", (3, 2), np.arange(3), pa.array(["a", "b", "c"])
    )
    rows.write(np.array([0, 2]), np.ones((2, 2)))
    with pytest.raises(AssertionError, match="row 1 was never written"):
        rows.written()


def test_vectors_of_others_and_changed_ones_are_told_apart(tmp_path: Path) -> None:
    from behavegpt.user_embeddings import UserEmbeddings

    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    folder = UserEmbeddings(np.arange(5), vectors).save(tmp_path / "entry")
    order = np.array([3, 1, 0, 2, 4])
    np.save(folder / "client_ids.npy", np.arange(5)[order])
    with pytest.raises(DataError, match=r"pairing differs"):
        UserEmbeddings.load(folder)
    np.save(folder / "embeddings.npy", vectors[order])  # both in the new order: the same entry
    assert UserEmbeddings.load(folder).client_ids.tolist() == order.tolist()
