"""The folder of user vectors: memory-mapped, safe to open, and its rows tied to their ids."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from behavegpt.arrays import blocks, open_array, write_array
from behavegpt.errors import DataError
from behavegpt.user_embeddings import UserEmbeddings, pairing, seal


def some(users: int = 50, width: int = 6, dtype: str = "float16") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.choice(10**9, users, replace=False), rng.normal(size=(users, width)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: str) -> None:
    ids, vectors = some(dtype=dtype)
    missing = ids % 3 == 0
    UserEmbeddings(pa.array(ids.astype(str)), vectors, missing).save(tmp_path, dtype)
    loaded = UserEmbeddings.load(tmp_path)
    assert isinstance(loaded.vectors, np.memmap)
    assert loaded.missing is not None
    for ours, saved in (
        (loaded.client_ids, ids),
        (loaded.vectors, vectors),
        (loaded.missing, missing),
    ):
        assert ours.dtype == saved.dtype
        assert np.array_equal(ours, saved)
    facts = json.loads((tmp_path / "entry.json").read_text())
    assert facts | {"pairing": "", "missing_pairing": ""} == {
        "users": 50,
        "dimensions": 6,
        "dtype": dtype,
        "missing": missing.sum(),
        "pairing": "",
        "missing_pairing": "",
    }
    assert np.array_equal(np.load(tmp_path / "embeddings.npy"), vectors)
    UserEmbeddings(ids, vectors).save(tmp_path)
    assert UserEmbeddings.load(tmp_path).missing is None
    assert {file.name for file in tmp_path.iterdir()} == {
        "client_ids.npy",
        "embeddings.npy",
        "entry.json",
    }


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    ids, vectors = some(dtype="float32")
    vectors[7, 2] = 70_000
    with pytest.raises(DataError, match="row 7 holds values beyond float16"):
        UserEmbeddings(ids, vectors).save(tmp_path)
    with pytest.raises(DataError, match="whole numbers"):
        UserEmbeddings(pa.array(["anna", "2"]), vectors[:2]).save(tmp_path, "float32")
    with pytest.raises(ValueError, match="49 users but 50 vectors"):
        UserEmbeddings(ids[1:], vectors)
    write_array(tmp_path / "client_ids.npy", ids)
    write_array(tmp_path / "embeddings.npy", np.full((50, 2), np.nan))
    with pytest.raises(DataError, match="NaN"):
        UserEmbeddings.load(tmp_path)


def test_pairing_knows_which_row_is_whose() -> None:
    ids, vectors = some()
    order = np.random.default_rng(1).permutation(len(ids))
    same = pairing(ids, vectors)
    assert pairing(ids[order], vectors[order]) == same
    assert pairing(ids, np.asfortranarray(vectors)) == same
    changed = vectors.copy()
    changed.view(np.uint16)[3, 4] ^= 1
    swapped = vectors[np.r_[1, 0, 2 : len(ids)]]
    mirrored = vectors[:, ::-1]
    assert (
        len({same, *(pairing(ids, v) for v in (vectors[order], changed, swapped, mirrored))}) == 5
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (50, 1), (50, 9), (0, 4), (4, 0)])
def test_blocks_cover_a_matrix_once(tmp_path: Path, shape: tuple[int, int], order: str) -> None:
    array = np.asarray(np.random.default_rng(0).normal(size=shape), order=order)  # type: ignore[call-overload]
    write_array(tmp_path / "a.npy", array)
    mapped = open_array(tmp_path / "a.npy")
    for matrix in (array, mapped, mapped[1:], mapped[:, ::2], mapped.T, mapped[::-1]):
        seen = np.full(matrix.shape, np.nan)
        for rows, columns, block in blocks(matrix, size=100):
            assert np.isnan(seen[rows, columns]).all()
            assert block.size <= max(13, *shape)
            seen[rows, columns] = block
        assert np.array_equal(seen, matrix)


class Bomb:
    """A pickle that leaves a file when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "exploded")
    np.save(tmp_path / "object.npy", np.array([bomb], object), allow_pickle=True)
    np.save(
        tmp_path / "field.npy",
        np.array([(1, bomb)], [("a", int), ("b", object)]),
        allow_pickle=True,
    )
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(bomb))
    np.savez(tmp_path / "zip.npz", allow_pickle=True, a=np.array([bomb], object))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    for name, says in (
        ("object", "Python objects"),
        ("field", "Python objects"),
        ("raw", "pickle"),
        ("zip", "npz"),
    ):
        with pytest.raises(DataError, match=says):
            open_array(tmp_path / f"{name}.npy")
    assert not bomb.file.exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").chmod(0)
    with pytest.raises(DataError, match=r"a\.npy: cannot be read .*permissions"):
        open_array(tmp_path / "a.npy")


def test_seal_reads_the_folder_as_it_is(tmp_path: Path) -> None:
    """For exporters that write the arrays themselves."""
    ids, vectors = some()
    UserEmbeddings(ids, vectors).save(tmp_path / "saved")
    for name, array in (("client_ids", ids), ("embeddings", np.asfortranarray(vectors))):
        write_array(_made(tmp_path / "streamed") / f"{name}.npy", array)
    seal(tmp_path / "streamed")
    texts = [(tmp_path / folder / "entry.json").read_text() for folder in ("saved", "streamed")]
    assert texts[0] == texts[1]


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
