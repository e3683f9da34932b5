"""Files that survive a crash: tensors without pickle, JSON, a manifest that tells a damaged folder from a good one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from behavegpt.errors import CheckpointError

MANIFEST = "MANIFEST.json"
FORMAT = 1
TEMPORARY = re.compile(r"\.tmp-.*-([0-9]{1,9})")
REMEDY = "use another checkpoint, or start a new run with another out="

Tensors = dict[str, torch.Tensor]


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name; names of the same memory (tied weights) are stored once, the others as `shared`."""
    stored: Tensors = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in sorted(tensors.items()):
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in first:
            shared[name] = first[memory]
            continue
        first[memory] = name
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        # a part of a larger storage is copied: safetensors would refuse to guess who owns the rest
        stored[name] = (tensor if whole else tensor.clone()).detach().cpu().contiguous()
    save_file(stored, path, metadata={"shared": json.dumps(shared)})


def read_tensors(path: Path) -> Tensors:
    """Read what `write_tensors` wrote, on the CPU; raises CheckpointError naming the file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            shared = json.loads((file.metadata() or {})["shared"])
        return tensors | {name: tensors[kept] for name, kept in shared.items()}
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file of ours ({error}); {REMEDY}.") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON; floats are read back exactly."""
    path.write_text(_dumps(value), encoding="utf-8", newline="\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON mapping; raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); {REMEDY}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, not a mapping; {REMEDY}.")
    return value


def seal(folder: Path, files: Collection[str], step: int) -> None:
    """Write the manifest of a folder's files and wait until all of it is on the disk."""
    write_json(folder / MANIFEST, _manifest(folder, files, step))
    sync(*(folder / name for name in (*files, MANIFEST)), folder)


def verify(folder: Path, files: Collection[str], step: int) -> None:
    """Raise CheckpointError, naming the file, unless `folder` is byte for byte what `seal` left."""
    for path, is_right in ((folder, stat.S_ISDIR), *((folder / name, stat.S_ISREG) for name in (*files, MANIFEST))):
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise CheckpointError(f"{path}: missing ({error.strerror}); {REMEDY}.") from None
        if not is_right(mode):  # a link could lead anywhere, a pipe would never end
            raise CheckpointError(f"{path}: a link or special file, which no checkpoint holds; {REMEDY}.")
    try:
        found = _manifest(folder, files, step)
        with open(folder / MANIFEST, "rb") as stream:
            text = stream.read(1 << 16)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); {REMEDY}.") from None
    if text != _dumps(found).encode():
        wrong = [name for name in files if found["files"][name]["sha256"].encode() not in text] or [MANIFEST]
        raise CheckpointError(f"{folder / wrong[0]}: damaged or changed, {MANIFEST} does not fit; {REMEDY}.")


def sync(*paths: Path) -> None:
    """Wait until files, or the entries of directories, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(path: Path, purpose: str) -> Path:
    """A name beside `path`, on the same disk, that tells which process made it."""
    return path.with_name(f".tmp-{purpose}-{path.name}-{os.getpid()}")


def discard(path: Path) -> None:
    """Delete a folder; renamed first, so that a crash on the way leaves no half of it under its name."""
    doomed = temporary_name(path, "old")
    os.rename(path, doomed)
    _remove(doomed)


def remove_stale(folder: Path) -> None:
    """Delete what dead processes left behind; one with our own number is dead too (containers count from 1)."""
    for path in folder.iterdir():
        matched = TEMPORARY.fullmatch(path.name)
        if matched and (int(matched[1]) == os.getpid() or not _alive(int(matched[1]))):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # somebody else's
    except ProcessLookupError:
        return False
    return True


def _manifest(folder: Path, files: Collection[str], step: int) -> dict[str, Any]:
    """Step, and size and SHA-256 of the files, as they are now."""
    entries = {}
    for name in files:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries[name] = {"sha256": digest, "size": file.tell()}
    return {"format": FORMAT, "step": step, "files": entries}


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
