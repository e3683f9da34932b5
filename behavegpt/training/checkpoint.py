"""Training checkpoints: complete or absent, checked byte for byte when read, without pickle.

FOLDER/step_00000100/
    model.safetensors      the weights, tied ones stored once
    optimizer.safetensors  AdamW's moments by parameter name
    loss.safetensors       state of the loss
    trainer.json           progress, and the fingerprint of data and settings
    MANIFEST.json          the step, and size and SHA-256 of the other files

Of weights that are sharded over ranks (sharding.py), shards/ takes the place of the first two: a
file for each rank. Either kind is read whole, so a run goes on with any number of ranks.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from behavegpt.checksums import seal, sync, verify_exactly
from behavegpt.errors import CheckpointError
from behavegpt.io import discard, put_in_place, read_json, remove_stale, temporary_name, write_json
from behavegpt.paths import local_path
from behavegpt.training.sharding import part_like, read_shards, write_shards
from behavegpt.training.storage import DAMAGE, REMEDY, Tensors, read_tensors, write_tensors

TENSORS, TRAINER = ("model", "optimizer", "loss"), "trainer.json"
FILES = (*(f"{part}.safetensors" for part in TENSORS), TRAINER)
# eight digits sort as text up to 99,999,999 steps; more are fine, as they are compared as numbers
NAME = re.compile(r"step_([0-9]{8,})")
SHARDS, SHARD = "shards", re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds."""

    step: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]  # see optimizer_tensors
    loss: Tensors
    trainer: dict[str, Any]


# a class of its own: what is about to be written has no path yet
@dataclass(frozen=True)
class Checkpoint(Snapshot):
    """A checkpoint read back; tensors are on the CPU."""

    path: Path


def save_checkpoint(
    folder: Path, snapshot: Snapshot, keep: int = 2, protect: Collection[int] = ()
) -> Path:
    """Write `folder/step_XXXXXXXX` so that a crash leaves all of it or none; returns its path.

    Once it is complete, those older than the latest `keep` are deleted, except the steps in
    `protect`. Raises CheckpointError with the reason (say a full disk); the earlier checkpoints are
    then untouched.
    """
    final = folder / f"step_{snapshot.step:08d}"
    temporary = temporary_name(final, "new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)
        temporary.mkdir()

        for part in TENSORS:
            write_tensors(temporary / f"{part}.safetensors", getattr(snapshot, part))
        write_json(temporary / TRAINER, snapshot.trainer)

        # the manifest last: a folder without one is no checkpoint
        seal(temporary, FILES, step=snapshot.step)
        # one rename, so that a reader finds all of it or nothing
        put_in_place(temporary, final)
        sync(folder)
        # only now: until the new one is safe, the old ones are all there is
        tidy(folder, snapshot.step, keep, protect)
    except (OSError, SafetensorError) as error:
        raise _unwritten(temporary, final, error) from error
    return final


def save_sharded(
    folder: Path, snapshot: Snapshot, keep: int = 2, protect: Collection[int] = ()
) -> None:
    """As `save_checkpoint`, of tensors that are sharded over the ranks; called by all of them,
    `folder` is seen by all."""
    final = folder / f"step_{snapshot.step:08d}"
    main = dist.get_rank() == 0
    temporary = temporary_name(final, "new")

    # the temporary name holds rank 0's process id, so the others must be told
    names = [str(temporary)]
    try:
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale(folder)
            (temporary / SHARDS).mkdir(parents=True)

        # also a barrier: no rank writes before rank 0 has made the folder
        dist.broadcast_object_list(names)
        temporary = Path(names[0])

        tensors = {f"model/{name}": tensor for name, tensor in snapshot.model.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in snapshot.optimizer.items()}
        write_shards(temporary / SHARDS, tensors)

        # write_shards returns when all ranks have written, so rank 0 seals whole files
        if main:
            # the loss is the same on all ranks, and small
            write_tensors(temporary / "loss.safetensors", snapshot.loss)
            write_json(temporary / TRAINER, snapshot.trainer)
            seal(temporary, _shard_files(temporary), step=snapshot.step)
            sync(temporary / SHARDS)
            put_in_place(temporary, final)
            sync(folder)
            tidy(folder, snapshot.step, keep, protect)
    except (OSError, SafetensorError, CheckpointException) as error:
        raise _unwritten(temporary, final, error) from error


def _unwritten(temporary: Path, final: Path, error: BaseException) -> CheckpointError:
    """The error of a checkpoint that could not be written, once its half is cleared away."""
    shutil.rmtree(temporary, ignore_errors=True)
    folder = final.parent
    # a full disk is the usual cause, and libraries seldom say so
    free = shutil.disk_usage(folder).free >> 20 if folder.is_dir() else 0
    return CheckpointError(
        f"{final}: the checkpoint could not be written ({error}); only {free} MiB are "
        "free. Free some space, or move the run folder, and continue with --resume: the "
        "earlier checkpoints are intact."
    )


def _shard_files(path: Path) -> tuple[str, ...]:
    """The files of a checkpoint whose weights are sharded."""
    shards = sorted(name for name in os.listdir(path / SHARDS) if SHARD.fullmatch(name))
    return (*(f"{SHARDS}/{name}" for name in shards), "loss.safetensors", TRAINER)


def tidy(folder: Path, step: int, keep: int, protect: Collection[int] = ()) -> None:
    """Delete what crashes left behind, and of the checkpoints up to `step` all but the latest
    `keep` and `protect`."""
    remove_stale(folder)

    done = [path for path in _checkpoints(folder) if _step(path) <= step]
    # protected: the best one, which `best_model` reads at the end
    for path in done[:-keep]:
        if _step(path) not in protect:
            discard(path)


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints beyond `step`, damaged ones that a resumed run has passed over: they
    would count among the latest, in place of a sound one."""
    for path in _checkpoints(folder):
        if _step(path) > step:
            discard(path)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint of a folder, or None; warns in one line of each corrupted one
    that it skips."""
    # from the newest on: a torn one costs the steps since the one before
    for path in reversed(_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            log.warning("skipping corrupted checkpoint: %s", error)
    return None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; raises CheckpointError naming the file that is missing, damaged or not
    ours."""
    path = local_path(path)
    if not NAME.fullmatch(path.name):
        raise CheckpointError(
            f"{path}: not a checkpoint; give a folder step_00000000 of a run's ckpt folder."
        )

    # a link would lead out of the folder, to files that nobody sealed
    sharded = (path / SHARDS).is_dir() and not (path / SHARDS).is_symlink()
    verify_exactly(path, DAMAGE, _shard_files(path) if sharded else FILES, step=_step(path))

    trainer = read_json(path / TRAINER, CheckpointError, REMEDY)
    parts: dict[str, Tensors] = {"loss": read_tensors(path / "loss.safetensors")}
    for part in ("model", "optimizer"):
        parts[part] = {} if sharded else read_tensors(path / f"{part}.safetensors")
    if sharded:
        for name, tensor in read_shards(path / SHARDS).items():
            part, _, own_name = name.partition("/")  # as save_sharded joins them
            parts.setdefault(part, {})[own_name] = tensor

    return Checkpoint(
        _step(path), parts["model"], parts["optimizer"], parts["loss"], trainer, path=path
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Tensors:
    """The optimizer's state by name: `exp_avg/PARAMETER`, `exp_avg_sq/PARAMETER`,
    `step/PARAMETER`."""
    # by name: torch's own numbers change with the order and the grouping of the parameters
    return {
        f"{key}/{name}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give an optimizer over `model` the state that `optimizer_tensors` saved, whatever the order
    of its parameters.

    Raises CheckpointError for a parameter that the optimizer does not have, or has in another
    shape.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = {name: parameter for parameter, name in names.items()}

    # torch numbers the parameters through all groups; names survive another order or grouping
    current = optimizer.state_dict()
    known: dict[str, tuple[int, torch.Size]] = {}
    for group, numbered in zip(optimizer.param_groups, current["param_groups"], strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            known[names[parameter]] = number, parameter.shape

    state: dict[int, Tensors] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition("/")  # as optimizer_tensors joins them

        number, shape = known.get(name, (-1, None))
        # `step` is a scalar beside a parameter of any shape
        if shape is None or (tensor.ndim and tensor.shape != shape):
            # the message names what differs: a frozen parameter, or one of another size
            here = "not trained here" if shape is None else f"{list(shape)} here"
            raise CheckpointError(
                f"optimizer state {full!r} of shape {list(tensor.shape)}: {name!r} is {here}; "
                "resume with the model "
                "settings of the checkpoint, or start a new run with another out=."
            )

        state.setdefault(number, {})[key] = part_like(tensor, parameters[name])

    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    # by number: names of nine digits would sort before those of eight
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))
