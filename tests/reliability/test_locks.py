"""Two runs into one place: the second is refused, whatever the verb, and the first one's work stays
whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from behavegpt.cli import main
from behavegpt.embeddings import assemble
from behavegpt.errors import DataError
from behavegpt.io import lock
from tests.reliability.makers import contents
from tests.reliability.verbs import argv_of, make_ready

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ready(tmp_path_factory.mktemp("locks"))


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
    assert "not what was written into it" in capsys.readouterr().err
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
