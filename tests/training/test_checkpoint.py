"""Checkpoints: exact, complete or absent, and never trusted before they are checked."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from behavegpt.checksums import MANIFEST, seal
from behavegpt.errors import CheckpointError
from behavegpt.io import temporary_name
from behavegpt.training.checkpoint import (
    FILES,
    Checkpoint,
    Snapshot,
    load_checkpoint,
    load_latest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from behavegpt.training.record import refuse_mismatch


class Tied(nn.Module):
    """An output layer that is its embedding, a buffer, and a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.arange(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.body(self.embedding(ids)))) * self.scale


def trained(steps: int = 3) -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model: Tied, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.arange(7)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, step: int, **options: object) -> Path:
    model, optimizer = trained()
    loss = {"class_loss": torch.linspace(0, 1, 7), "steps": torch.tensor(step)}
    trainer = {"progress": {"step": step, "best_value": 0.1 + 0.2}}
    tensors = optimizer_tensors(optimizer, model)
    snapshot = Snapshot(step, model.state_dict(), tensors, loss, trainer)
    return save_checkpoint(folder, snapshot, **options)  # type: ignore[arg-type]


def latest(folder: Path) -> Checkpoint:
    checkpoint = load_latest(folder)
    assert checkpoint is not None
    return checkpoint


def bitwise(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in ((one[name], other[name]) for name in one)
    )


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    model, optimizer = trained()
    odd = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "half": torch.randn(3, 4).bfloat16().t().contiguous(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3, dtype=torch.int64),
    }
    state = optimizer_tensors(optimizer, model)
    trainer = {"float": 0.1 + 0.2, "tiny": 5e-324, "none": None, "list": [1, "é", True]}
    snapshot = Snapshot(12, model.state_dict(), state, odd, trainer)
    path = save_checkpoint(tmp_path / "ckpt", snapshot)
    read = latest(tmp_path / "ckpt")
    assert (read.step, read.path, read.trainer) == (12, path, trainer)
    assert bitwise(read.model, model.state_dict()) and bitwise(read.optimizer, state)
    half = read.loss.pop("half"), odd.pop("half")
    assert torch.equal(*(tensor.view(torch.int16) for tensor in half))
    assert bitwise(read.loss, odd)
    assert not list((tmp_path / "ckpt").glob(".tmp-*"))


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 1), save(tmp_path / "b", 1)
    for name in (*FILES, MANIFEST):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_tied_and_overlapping_tensors(tmp_path: Path) -> None:
    model, _ = trained()
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"row": whole[1], "column": whole[:, 2], "transposed": whole.t(), "whole": whole}
    save_checkpoint(tmp_path, Snapshot(1, model.state_dict(), {}, views, {}))
    read = latest(tmp_path)
    assert bitwise(read.model, model.state_dict())
    assert all(torch.equal(read.loss[name], view) for name, view in views.items())
    size = (tmp_path / "step_00000001" / "model.safetensors").stat().st_size
    stored = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    # tied weights once: the rest is the header
    assert size < stored + model.embedding.weight.nbytes + 1000
    fresh = Tied()
    fresh.load_state_dict(read.model)
    assert fresh.out.weight is fresh.embedding.weight


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_state_goes_by_name(tmp_path: Path, fused: bool) -> None:
    model, optimizer = trained()
    tensors = optimizer_tensors(optimizer, model)
    save_checkpoint(tmp_path, Snapshot(1, model.state_dict(), tensors, {}, {}))
    read = latest(tmp_path)
    other = Tied()
    other.load_state_dict(read.model)
    matrices = [p for p in other.parameters() if p.ndim == 2]
    rest = [p for p in other.parameters() if p.ndim < 2]
    groups = [{"params": rest[::-1]}, {"params": matrices[::-1]}]
    reordered = torch.optim.AdamW(groups, lr=1e-2, fused=fused)
    restore_optimizer(reordered, other, read.optimizer)
    assert bitwise(optimizer_tensors(reordered, other), optimizer_tensors(optimizer, model))
    shutil.rmtree(tmp_path / "step_00000001")  # nothing may still live in the file
    advance(model, optimizer, 4)
    advance(other, reordered, 4)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6 if fused else 0, atol=1e-7 if fused else 0)


def test_optimizer_of_another_model_is_refused() -> None:
    model, optimizer = trained()
    tensors = optimizer_tensors(optimizer, model)
    tensors["exp_avg/body.weight"] = torch.zeros(5, 6)
    with pytest.raises(CheckpointError, match=r"exp_avg/body\.weight.*\[5, 6\].*\[5, 5\] here"):
        restore_optimizer(optimizer, model, tensors)
    with pytest.raises(CheckpointError, match=r"'lost\.weight' is not trained here"):
        restore_optimizer(optimizer, model, {"exp_avg/lost.weight": torch.zeros(5, 5)})


def test_rotation_keeps_the_latest_and_the_protected(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2, protect=[5])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{s:08d}" for s in (5, 15, 20)]
    save(tmp_path, 25, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000025"]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, Snapshot(5, {"w": torch.ones(2)}, {}, {}, {"second": True}))
    assert latest(tmp_path).trainer == {"second": True}
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"]


def test_order_is_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert latest(tmp_path).step == 100_000_000


def test_empty_or_absent_folder(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend"])
def test_damage_at_200_places_is_found(
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    rng = random.Random(damage)
    good, victim = save(tmp_path, 5), save(tmp_path, 10)
    sizes = {name: (victim / name).stat().st_size for name in (*FILES, MANIFEST)}
    found = 0
    for index in range(200):
        # every file in turn: a manifest of some 500 bytes would else hardly be met
        name = (*FILES, MANIFEST)[index % (len(FILES) + 1)]
        original = (victim / name).read_bytes()
        at = rng.randrange(sizes[name])
        changed = bytearray(original)
        if damage == "flip":
            changed[at] ^= 1 << rng.randrange(8)
        (victim / name).write_bytes(
            {"flip": bytes(changed), "truncate": original[:at], "extend": original + original[at:]}[
                damage
            ]
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read = load_latest(tmp_path)
        assert read is not None and read.path == good
        [warning] = caplog.messages
        assert "\n" not in warning and str(victim) in warning
        # a changed digest in the manifest accuses the file it stands for
        assert str(victim / name) in warning or name == MANIFEST
        found += 1
        (victim / name).write_bytes(original)
    record_property("damage found", found)
    assert found == 200 and latest(tmp_path).path == victim


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 5)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing"):
        load_checkpoint(path)


def test_renamed_folder_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    with pytest.raises(CheckpointError, match="MANIFEST"):
        load_checkpoint(path.rename(tmp_path / "step_00000900"))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint((tmp_path / "step_00000900").rename(tmp_path / "best"))


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "size", [0, 1, 100, 450, 5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000]
)
def test_full_disk_leaves_the_last_good_one(size: int, tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.ones(5000)},
        "optimizer": {"m": torch.ones(10000)},
        "loss": {"l": torch.ones(2500)},
    }
    first = Snapshot(5, **state, trainer={"text": "x" * 30000})
    save_checkpoint(tmp_path / "ckpt", first, keep=1)
    with (
        pytest.raises(CheckpointError, match=r"(?s)could not be written.*File too large"),
        file_limit(size),
    ):
        second = Snapshot(10, **state, trainer={"text": "y" * 30000})
        save_checkpoint(tmp_path / "ckpt", second, keep=1)
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["step_00000005"]
    assert latest(tmp_path / "ckpt").step == 5


def test_unwritable_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "file" / "ckpt", 1)


def test_stale_temporaries_are_cleaned(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = temporary_name(tmp_path / "step_00000004", "new")
    # a process that ended, and one that had our number
    owners = (f"{dead.pid}-12345", f"{os.getpid()}-1")
    gone = [
        tmp_path / f".tmp-{what}-step_00000005-{owner}"
        for what in ("new", "gone")
        for owner in owners
    ]
    foreign = tmp_path / ".tmp-notes"
    for folder in (living, foreign, *gone):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"torn")
    gone[0].joinpath("deeper").mkdir()
    save(tmp_path, 5)
    assert living.exists() and foreign.exists() and not any(folder.exists() for folder in gone)
    assert latest(tmp_path).step == 5


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


class Canary:
    """Pickle that writes a file when it is opened."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch CANARY",)


DEEP = b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ENTRY = b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]},"__metadata__":{"shared":"%s"}}'
MALICIOUS = {
    "pickle": pickle.dumps(Canary()),
    "empty": b"",
    "header of 2^63 bytes": header(b"{}", 1 << 63),
    "header of 4 GiB": header(b"{}", 1 << 32),
    "shape of 2^62": header(ENTRY % (b"4611686018427387904", b"4", b"{}")) + b"\0\0\0\0",
    "overflowing shape": header(ENTRY % (b"4294967296,4294967296,4294967296", b"4", b"{}"))
    + b"\0\0\0\0",
    "negative shape": header(ENTRY % (b"-1", b"4", b"{}")) + b"\0\0\0\0",
    "offsets past the end": header(ENTRY % (b"1000000", b"4000000", b"{}")) + b"\0\0\0\0",
    "deep header": header(DEEP),
    "not JSON": header(b"\xff\xfe!!"),
    "no metadata": header(b"{}"),
    "shared is no JSON": header(ENTRY % (b"1", b"4", b"nonsense")) + b"\0\0\0\0",
    "shared is a list": header(ENTRY % (b"1", b"4", b"[1]")) + b"\0\0\0\0",
    "shared with what is not there": header(ENTRY % (b"1", b"4", rb"{\"a\":\"../../etc/passwd\"}"))
    + b"\0\0\0\0",
    "shared deep": header(ENTRY % (b"1", b"4", b"[" * 100_000)) + b"\0\0\0\0",
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_malicious_tensor_files_are_refused(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a manifest that fits: the attacker made that too."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 5)
    for name in FILES[:3]:
        kept = (path / name).read_bytes()
        (path / name).write_bytes(MALICIOUS[what])
        seal(path, FILES, step=5)
        with pytest.raises(CheckpointError, match=name) as caught:
            load_checkpoint(path)
        assert len(str(caught.value)) < 1000
        (path / name).write_bytes(kept)
    assert not Path("CANARY").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"null", b"{", b"\xff", b"[" * 200_000, pickle.dumps(Canary())],
    ids=lambda x: x[:8].hex(),
)
def test_malicious_trainer_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, 5)
    (path / "trainer.json").write_bytes(content)
    seal(path, FILES, step=5)
    with pytest.raises(CheckpointError, match=r"trainer\.json"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"../../outside": {"sha256": "0" * 64, "size": 1}}),
        lambda m: m["files"].update({"/etc/passwd": {"sha256": "0" * 64, "size": 1}}),
        lambda m: m["files"].pop("model.safetensors"),
        lambda m: m["files"]["loss.safetensors"].update(size=1 << 60),
        lambda m: m.update(step=6),
        lambda m: m.update(format=2),
        lambda m: m.update(files=[]),
        lambda m: m.update(more="x" * 1_000_000),
    ],
)
def test_malicious_manifest_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    path = save(tmp_path, 5)
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    with pytest.raises(CheckpointError, match="damaged or changed"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_links_and_pipes_are_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "ckpt", 5)
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: a link or special file"):
        load_checkpoint(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: a link or special file"):
        load_checkpoint(path)


def test_linked_checkpoint_is_refused_and_rotation_does_not_follow_it(tmp_path: Path) -> None:
    path = save(tmp_path / "elsewhere", 5)
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / path.name).symlink_to(path)
    assert load_latest(folder) is None
    save(folder, 6, keep=1)
    assert [p.name for p in folder.iterdir()] == ["step_00000006"] and load_checkpoint(
        path
    ).step == 5


def test_foreign_names_are_no_checkpoints(tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", 5)
    for name in (
        "step_5",
        "step_0000000a",
        "step_٠٠٠٠٠٠٠٩",
        "step_00000009.bak",
        ".tmp-new-step_00000009-1",
        "..step",
    ):
        shutil.copytree(path, path.with_name(name))
    assert latest(tmp_path / "ckpt").step == 5
    for name in ("../ckpt", "..", "step_00000005/..", "/"):
        with pytest.raises(CheckpointError):
            load_checkpoint(f"{path.parent}/{name}")


def test_mismatch_lists_every_difference() -> None:
    saved = {
        "data": {"content_hash": "a" * 64, "vocabulary": {"event": "b" * 64}},
        "model": {"dropout": 0.1, "heads": 4},
    }
    same = json.loads(json.dumps(saved))
    refuse_mismatch(saved, same)
    refuse_mismatch({"fields": ["a", "b"]}, {"fields": ("a", "b")})
    now = {
        "data": {"content_hash": "c" * 64, "vocabulary": {"event": "b" * 64}},
        "model": {"dropout": 0.2},
        "seed": 1,
    }
    with pytest.raises(CheckpointError) as caught:
        refuse_mismatch(saved, now)
    message = str(caught.value)
    for line in (
        "data.content_hash: checkpoint aaaaaaaaaaaa…, now cccccccccccc…",
        "model.dropout: checkpoint 0.1, now 0.2",
        "model.heads: checkpoint 4, now absent",
        "seed: checkpoint absent, now 1",
        "start a new run with another out=",
    ):
        assert line in message
    assert "vocabulary" not in message
