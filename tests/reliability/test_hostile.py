"""Folders of strangers: nothing they hold is run, and nothing outside of them is read or
written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from behavegpt.checksums import MANIFEST, seal
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.errors import CheckpointError, DataError
from behavegpt.trained_folder import load
from behavegpt.training.model_folder import open_model
from tests.reliability.makers import make_adapter, make_model, make_store, read_model

CODE = 'import pathlib\npathlib.Path("CANARY").touch()\n\n\nclass Evil:\n    pass\n'
AUTO_CLASSES = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForTokenClassification",
    "AutoFeatureExtractor",
)
AUTO_MAP = dict.fromkeys(AUTO_CLASSES, "evil.Evil")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FOREIGN: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown type with code": lambda c: c.update(model_type="evil", auto_map=AUTO_MAP),
    "another library's type": lambda c: c.update(model_type="gpt2"),
    "another library's type with code": lambda c: c.update(model_type="gpt2", auto_map=AUTO_MAP),
    "no type": lambda c: c.pop("model_type"),
    "no type, but code": lambda c: (c.pop("model_type"), c.update(auto_map=AUTO_MAP)),
    "type is a list": lambda c: c.update(model_type=["behavegpt"]),
    "type is a path": lambda c: c.update(model_type="../evil"),
    "attention from the Hub": lambda c: c.update(
        attn_implementation="evil/kernel", _attn_implementation="evil/kernel"
    ),
    "quantized": lambda c: c.update(
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    ),
    "huge": lambda c: c.update(embedding_size=10**9),
    "shape that does not fit": lambda c: c.update(num_hidden_layers=3),
    "width is text": lambda c: c.update(embedding_size="wide"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_models_config_runs_nothing(
    model: Path, tmp_path: Path, what: str, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("nobody is asked whether to trust it")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "evil.py").write_text(CODE)
    changed(folder / "config.json", FOREIGN[what])
    (folder / MANIFEST).unlink()
    if sealed:  # the attacker does that too
        seal(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not Path("CANARY").exists()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_our_own_type_stays_ours_whatever_code_is_named(
    model: Path, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "evil.py").write_text(CODE)
    changed(folder / file, lambda c: c.update(auto_map=AUTO_MAP))
    seal(folder)
    found, _ = open_model(folder)
    assert type(found).__module__.startswith("behavegpt.") and not Path("CANARY").exists()


def test_an_adapters_config_runs_nothing_and_pickles_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_adapter(tmp_path / "made")
    expected = read_model(folder)
    (folder / "evil.py").write_text(CODE)
    auto = {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}
    changed(folder / "adapter_config.json", lambda c: c.update(auto))
    seal(folder)
    assert read_model(folder) == expected and not Path("CANARY").exists()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        load(folder)


NAMES = ["../../x", "/etc/x", "a/b", "..", ".", ".hidden", "", "a\\b", "a\0b", "x" * 300]


@pytest.mark.parametrize("part", ["columns", "vocabulary"])
@pytest.mark.parametrize("name", NAMES)
def test_a_stores_manifest_names_files_of_its_own_alone(
    store: Path, tmp_path: Path, part: str, name: str
) -> None:
    folder = shutil.copytree(store, tmp_path / "a" / "b")
    np.save(tmp_path / "x.npy", np.load(store / "columns" / "event.npy", allow_pickle=False))
    changed(folder / "dataset.json", lambda c: c[part].update({name: c[part]["event"]}))
    seal(folder)
    with pytest.raises(DataError, match=r"dataset\.json: damaged") as caught:
        open_store(folder)
    assert "is no name that" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "columns/event.npy",
        "vocabulary/event.parquet",
        "users.parquet",
        "dataset.json",
        "columns",
        "vocabulary",
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_links_out_of_a_store_are_refused(
    store: Path, tmp_path: Path, name: str, sealed: bool
) -> None:
    folder = shutil.copytree(store, tmp_path / "data")
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    (folder / MANIFEST).unlink()
    if sealed:
        seal(folder)
    with pytest.raises(DataError, match="a link that leads out of the folder"):
        open_store(folder)
    (tmp_path / "link").symlink_to(store)
    assert open_store(tmp_path / "link").manifest.events == open_store(store).manifest.events


HEADERS = {
    "object": b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "shape of 2^60": b"{'descr': '|u1', 'fortran_order': False, 'shape': (1152921504606846976,), }",
    "negative": b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }",
    "expression": (
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (__import__('os').system('touch "
        b"CANARY'),), }"
    ),
    "nested": b"(" * 5000 + b")" * 5000,
}


@pytest.mark.parametrize("header", HEADERS)
def test_hostile_array_headers_are_refused(
    store: Path, tmp_path: Path, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(store, tmp_path / "data")
    text = HEADERS[header] + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 100
    (folder / "columns" / "event.npy").write_bytes(content)
    seal(folder)
    with pytest.raises(DataError, match=r"event\.npy"):
        open_store(folder)
    assert not Path("CANARY").exists()


def test_a_column_that_cannot_be_a_file_is_refused_before_the_work() -> None:
    with pytest.raises(ValueError, match="extra column 'a/b' cannot be the name of a file"):
        EventSchema(user="u", time="t", event="e", extra=("a/b",))


def test_a_manifest_that_names_files_elsewhere_is_refused(store: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(store, tmp_path / "data")
    for name in ("../log.parquet", "/etc/passwd", "a/../../x", ""):
        entry = {"sha256": "0" * 64, "size": 1}
        manifest = json.loads((store / MANIFEST).read_text())
        manifest["files"][name] = entry
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        with pytest.raises(DataError, match=r"MANIFEST\.json: damaged or changed"):
            open_store(folder)
    shutil.copy(store / MANIFEST, folder / MANIFEST)
    assert open_store(folder).manifest.users
