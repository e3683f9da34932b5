"""Tensor files without pickle; tied weights are stored once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from behavegpt.checksums import Damage
from behavegpt.errors import CheckpointError

REMEDY = "use another checkpoint, or start a new run with another out="
DAMAGE = Damage(CheckpointError, REMEDY)

Tensors = dict[str, torch.Tensor]


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name; names of the same memory (tied weights) are stored once, the others as
    `shared`."""
    # safetensors refuses tensors that share memory; sorted, so that equal tensors give equal bytes
    stored: Tensors = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}

    for name, tensor in sorted(tensors.items()):
        # views of one memory with one shape are one tensor: tied weights
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
            names = file.keys()  # the file is no mapping
            tensors = {name: file.get_tensor(name) for name in names}
            shared = json.loads((file.metadata() or {})["shared"])

        return tensors | {name: tensors[kept] for name, kept in shared.items()}
    except (
        OSError,
        SafetensorError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file of ours ({error}); {REMEDY}."
        ) from None
