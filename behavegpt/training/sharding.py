"""FSDP2: weights, gradients and AdamW's moments sharded over the ranks, where accelerate's profile
asks for it.

accelerate's own `prepare` for FSDP2 wants model and optimizer together and does nothing on a CPU,
so `fully_shard` is applied here, on GPUs and on gloo alike: each block by itself, and the rest of
the model as the root. A checkpoint's shards are written by torch.distributed.checkpoint as
safetensors files, never as pickles.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.training.storage import REMEDY, Tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

Model = TypeVar("Model", bound=torch.nn.Module)


def sharding_asked() -> bool:
    """Whether accelerate was launched for FSDP. Raises ConfigError for its first version."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "accelerate's profile asks for the first version of FSDP; launch with fsdp_version: 2, "
            "for example --config_file configs/accelerate/fsdp2.yaml."
        )
    return True


def spread(model: Model, accelerator: Accelerator) -> tuple[torch.nn.Module, Model]:
    """The model as it is trained on the ranks, and one that can be saved: the same, or rank 0's
    copy of a sharded one."""
    # a single process may be launched as one rank
    if not (sharding_asked() and dist.is_initialized()):
        prepared: torch.nn.Module = accelerator.prepare_model(model)
        return prepared, model

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # a whole copy on the CPU of rank 0, made before the weights are sharded
    whole = copy.deepcopy(model) if accelerator.is_main_process else model
    torch.nn.Module.to(model, accelerator.device)

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))  # one axis
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    # blocks first: the root takes what is left, embeddings and prediction layer
    for module in blocks:
        fully_shard(module, mesh=mesh, reshard_after_forward=_reshards())
    fully_shard(model, mesh=mesh)
    return model, whole


def _reshards() -> bool:
    """Whether a block's weights are freed after its forward and gathered again in the backward."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"


def is_part(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of FSDP's, of which each rank holds a part."""
    return hasattr(tensor, "full_tensor")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a model's weights are sharded over the ranks."""
    return any(is_part(parameter) for parameter in model.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every rank; all ranks must ask."""
    dtensor: Any = tensor
    full: torch.Tensor = dtensor.full_tensor() if is_part(tensor) else tensor
    return full


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a whole tensor on the CPU; of it, this rank's part if `like` is sharded. No rank
    waits for another."""
    if not is_part(like) or not tensor.ndim:
        return tensor.clone()  # the one read from a file is a window into it
    from torch.distributed.tensor import distribute_tensor

    # no source rank: all have read the same file, so each takes its part without communication
    dtensor: Any = like
    return distribute_tensor(
        tensor.to(dtensor.device), dtensor.device_mesh, dtensor.placements, src_data_rank=None
    )


def whole_state(model: torch.nn.Module) -> Tensors:
    """The whole weights on the CPU, for every rank."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in model.state_dict().items()}


def no_sync(model: torch.nn.Module, accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Within it gradients stay on their rank: for all micro-batches of a step but the last."""
    # FSDP2 and DDP switch it in different ways
    if hasattr(model, "set_requires_gradient_sync"):
        return _no_reduction(model)
    return accelerator.no_sync(model)


@contextmanager
def _no_reduction(model: Any) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


@contextmanager
def _gathered(model: torch.nn.Module) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    root = sharded[0]
    # the root would be sharded again after the first forward, and the next one gather it anew
    root.set_reshard_after_forward(False)
    for module in sharded:
        module.unshard()

    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
        root.set_reshard_after_forward(_reshards())


def gathered(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Whole weights on every rank, so that ranks may run the model on different numbers of
    batches."""
    return _gathered(model) if is_sharded(model) else nullcontext()


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Each rank writes its parts into a folder that all see; returns when all have."""
    import torch.distributed.checkpoint as dcp

    # its default writer leaves a pickle beside the tensors (docs/log.md)
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)
    dist.barrier()


def read_shards(folder: Path) -> Tensors:
    """The whole tensors of shards that any number of ranks wrote, on the CPU. Raises
    CheckpointError."""
    import torch.distributed.checkpoint as dcp

    try:
        # empty tensors of the whole shapes; the loader fills them from whatever shards there are
        reader = dcp.HuggingFaceStorageReader(str(folder))
        entries: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a single process loads
            dcp.load(
                tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True
            )
    except Exception as error:  # torch raises whatever its parts raise
        raise CheckpointError(
            f"{folder}: not shards of ours ({str(error).splitlines()[0]}); {REMEDY}."
        ) from None
    return tensors
