"""Prepared folders behind fsspec: fetched once, checked, and the same rows and runs as from a local
folder."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load_file

from behavegpt.data.digest import hash_folder
from behavegpt.data.store import EventStore, open_store
from behavegpt.datasets.synthetic import small_log
from behavegpt.errors import DataError
from behavegpt.ingest.prepare import prepare
from behavegpt.pretrain import PretrainSettings, pretrain
from tests.runs import tiny_settings


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("remote")
    return prepare(small_log(users=40, events=2000, seed=1), folder / "data")


@pytest.fixture
def address(local: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder in fsspec's memory, and an empty cache."""
    monkeypatch.setenv("BEHAVEGPT_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.put(str(local.path), "/bucket/data", recursive=True)
    yield "memory://bucket/data"
    files.rm("/bucket", recursive=True)


def same(one: EventStore, two: EventStore) -> bool:
    return (
        one.manifest == two.manifest
        and one.columns.keys() == two.columns.keys()
        and all(np.array_equal(one.columns[name], two.columns[name]) for name in one.columns)
        and one.users().equals(two.users())
    )


def test_the_same_store_from_anywhere(local: EventStore, address: str, tmp_path: Path) -> None:
    far = open_store(address)
    assert same(far, local) and isinstance(far.columns["event"], np.memmap)
    assert far.path == tmp_path / "cache" / "data" / local.manifest.content_hash
    # Path takes a slash away
    for name in (f"file://{local.path}", Path(f"file://{local.path}"), Path(address)):
        assert same(open_store(name), local)
    assert [
        p.name for p in (tmp_path / "cache" / "data").iterdir() if not p.name.endswith(".lock")
    ] == [local.manifest.content_hash]


def test_the_hash_is_that_of_prepare(local: EventStore, tmp_path: Path) -> None:
    manifest = local.manifest
    columns, vocabulary = list(manifest.columns), dict(manifest.vocabulary)
    assert (
        hash_folder(local.path, manifest.event_schema, vocabulary, columns) == manifest.content_hash
    )
    copy = shutil.copytree(local.path, tmp_path / "copy")
    for name in columns:
        values = np.load(copy / "columns" / f"{name}.npy")
        changed = values.copy()
        changed[-1] ^= 1
        np.save(copy / "columns" / f"{name}.npy", changed)
        assert (
            hash_folder(copy, manifest.event_schema, vocabulary, columns) != manifest.content_hash
        ), name
        np.save(copy / "columns" / f"{name}.npy", values)
    assert hash_folder(copy, manifest.event_schema, vocabulary, columns) == manifest.content_hash


def test_it_is_fetched_once(
    local: EventStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By several ranks at a time, and never again."""
    fetched: list[str] = []
    lock, get_file = threading.Lock(), MemoryFileSystem.get_file

    def counted(self: Any, source: str, target: str, **options: Any) -> None:
        with lock:
            fetched.append(source)
        get_file(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, [address] * 4))
    assert all(same(store, local) for store in stores)
    assert (
        len(fetched)
        == len(set(fetched))
        == 2 + len(local.manifest.columns) + len(local.manifest.vocabulary)
    )


@pytest.mark.parametrize(
    "what", ["column", "cut", "users", "vocabulary", "missing", "manifest", "path"]
)
def test_damaged_data_are_refused_and_nothing_stays(
    address: str, tmp_path: Path, what: str
) -> None:
    files = fsspec.filesystem("memory")
    name = {
        "users": "users.parquet",
        "vocabulary": "vocabulary/event.parquet",
        "missing": "columns/time.npy",
    }.get(what, "dataset.json" if what in ("manifest", "path") else "columns/event.npy")
    data = bytearray(files.cat_file(f"/bucket/data/{name}"))
    if what == "missing":
        files.rm_file(f"/bucket/data/{name}")
    elif what == "path":
        tree = json.loads(data)
        tree["columns"]["../../outside"] = "uint8"
        files.pipe_file(f"/bucket/data/{name}", json.dumps(tree).encode())
    else:
        data[-1 if what != "users" else len(data) // 8] ^= 1
        files.pipe_file(f"/bucket/data/{name}", bytes(data[:-5] if what == "cut" else data))
    with pytest.raises(DataError, match="memory://bucket/data"):
        open_store(address)
    cache = tmp_path / "cache" / "data"
    assert (
        not cache.exists()
        or [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []
    )


def test_a_fetch_that_was_killed_is_begun_again(
    local: EventStore, address: str, tmp_path: Path
) -> None:
    half = tmp_path / "cache" / "data" / f".{local.manifest.content_hash}.part" / "columns"
    half.mkdir(parents=True)
    (half / "event.npy").write_bytes(b"half")
    assert same(open_store(address), local)
    assert not half.exists()


def test_bad_addresses_are_named(address: str) -> None:
    with pytest.raises(DataError, match=r"no dataset\.json"):
        open_store("memory://bucket/elsewhere")
    with pytest.raises(DataError, match="nothing://"):
        open_store("nothing://bucket/data")
    with pytest.raises(DataError, match="not a prepared folder"):
        open_store("C:/data")


def test_training_and_resuming_are_the_same(
    local: EventStore, address: str, tmp_path: Path
) -> None:
    """A run from the local folder; one from memory://, stopped half way and resumed with an empty
    cache."""
    straight = tiny_settings(local.path, tmp_path / "straight", select="last", keep=3)
    pretrain(PretrainSettings.model_validate(straight))
    far = tiny_settings(Path("unused"), tmp_path / "far", select="last", keep=3)
    far["data"]["path"] = address
    pretrain(PretrainSettings.model_validate(far))
    ckpt = tmp_path / "far" / "ckpt"
    shutil.rmtree(ckpt / "step_00000012")  # as if it had been killed then
    assert ckpt.is_dir() and any(ckpt.iterdir())
    shutil.rmtree(tmp_path / "cache")
    pretrain(PretrainSettings.model_validate(far), resume=True)
    one, two = (
        load_file(tmp_path / run / "model" / "model.safetensors") for run in ("straight", "far")
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("straight", "far")]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in logs]
    assert losses[0] == losses[1]
