"""User vectors for any number of users: a model and events -> a folder of UserEmbeddings, in
bounded memory.

events (a prepared folder, or raw logs, which are prepared first) -> the users asked for, in blocks
-> pooling.py -> OUT.work/block_000012.npy -> one pass that scales the blocks and puts them into the
asked order -> OUT, renamed.

A block is a pure function of its users: a run that was killed, or that ran as several processes,
ends with the bytes of any other. Shapes: N vectors asked for, U users with events among them, D
vector width.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from pydantic import Field

from behavegpt.arrays import write_array
from behavegpt.config import Settings
from behavegpt.data.store import EventStore
from behavegpt.embeddings.assemble import Asked, assemble
from behavegpt.embeddings.pooling import NAMES, widths
from behavegpt.embeddings.reader import Reader, lookups_of, open_events
from behavegpt.errors import ConfigError, DataError
from behavegpt.ingest.sources import Logs
from behavegpt.io import discard, put_in_place, read_json, remove_stale, write_json
from behavegpt.locks import lock
from behavegpt.option_types import Real
from behavegpt.outputs import check_output
from behavegpt.paths import local_path, target
from behavegpt.training.model_folder import Trained

MOST_DIMENSIONS = 2048  # of an entry to the challenge

Advance = Callable[[int, int], None]  # users done, of how many


class ExportSettings(Settings):
    """What a vector is made of; part of the fingerprint by which a run is continued."""

    pool: tuple[str, ...] = Field(
        ("last", "mean"), min_length=1, description="parts of a vector: " + ", ".join(NAMES)
    )
    half_life: Annotated[Real, Field(gt=0)] = Field(
        7.0, description="half-life of the decayed parts, in days"
    )
    scale: Literal["standard", "unit", "none"] = Field(
        "standard",
        description="standard: every dimension has mean 0 and variance 1 over the users with "
        "events; unit: every part of a user's vector has length 1",
    )
    fill: Literal["mean", "zeros", "empty-history"] = Field(
        "mean",
        description=(
            "users without events: the mean vector, zeros, or what the model makes of one unknown "
            "event"
        ),
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="of embeddings.npy; an entry has float16"
    )
    block_users: int = Field(
        8192, ge=1, description="users per block; finished blocks survive a kill"
    )


def export(
    trained: Trained,
    events: Sequence[str | Path] | Logs,
    out: str | Path,
    settings: ExportSettings | None = None,
    *,
    clients: pa.Array | np.ndarray | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> dict[str, Any]:
    """Write the vectors of `clients` (default: all users, in the store's order) to the folder
    `out`.

    `trained`: what `open_model` gives. `events`: a prepared folder, or raw logs with the training
    log's columns. Continues what a killed run left in OUT.work. Returns what export.json tells.
    Raises BehaveGPTError.
    """
    settings, out = settings or ExportSettings(), target(local_path(out))
    model, tokenizer = trained

    # mistakes before the work, which may take hours
    _check_width(sum(widths(model, settings.pool)), settings)
    check_output(out, "whole")
    out.parent.mkdir(parents=True, exist_ok=True)

    state = PartialState(cpu=True)  # the one that is there, if a command made it
    # a second export would write into the same OUT.work
    with lock(out) if state.is_main_process else nullcontext():
        work = _work_folder(out, overwrite, state)

        # prepared inside OUT.work where logs are given, so that a run that goes on finds it
        store = open_events(events, tokenizer, work, state)
        asked = _ask(store, clients)
        facts = _facts(trained, store, asked, settings)
        _begin_or_continue(work, facts, state, overwrite)

        # labels of another vocabulary, translated once and not in each block
        lookups = lookups_of(store, tokenizer)
        reader = Reader(model, store, lookups, settings.pool, settings.half_life)
        starts = range(0, len(asked.users), settings.block_users)
        blocks = _write_blocks(reader, asked.users, starts, work, progress)

        if state.is_main_process:
            entry = work / "entry"
            shutil.rmtree(entry, ignore_errors=True)  # what a killed run left
            assemble(blocks, asked, facts, reader.empty_history(), entry)
            put_in_place(entry, out)
            discard(work)  # whole: half of it would be taken for an export to go on with
        state.wait_for_everyone()
    return facts


def _check_width(width: int, settings: ExportSettings) -> None:
    """Raise ConfigError for vectors wider than an entry of the challenge may be."""
    if width > MOST_DIMENSIONS:
        raise ConfigError(
            f"--pool {' '.join(settings.pool)}: {width:,} dimensions, an entry has at most "
            f"{MOST_DIMENSIONS:,}; name fewer parts."
        )


def _work_folder(out: Path, overwrite: bool, state: PartialState) -> Path:
    """OUT.work, where finished blocks wait for the others."""
    work = out.with_name(f"{out.name}.work")
    if state.is_main_process:
        # what dead processes left; living ones are kept out by the lock
        for path in (out, work):
            remove_stale(path.parent, path.name)

    if out.exists() and not overwrite:
        raise ConfigError(
            f"{out} already exists; choose another folder, or replace it with --overwrite."
        )

    work.mkdir(exist_ok=True)
    return work


def _write_blocks(
    reader: Reader, users: np.ndarray, starts: range, work: Path, progress: Advance | None
) -> list[Path]:
    """Write this process's share of the blocks that are not there yet, each from one of `starts`
    on; returns all of them once everyone is done."""
    state = PartialState()
    blocks = [work / f"block_{first:012d}.npy" for first in starts]
    # every n-th block: all processes progress at about the same rate
    for i in range(state.process_index, len(blocks), state.num_processes):
        if progress:
            progress(starts[i], len(users))
        if not blocks[i].exists():
            write_array(blocks[i], reader.vectors(users[starts[i] : starts[i] + starts.step]))
    state.wait_for_everyone()
    return blocks


def _ask(store: EventStore, clients: pa.Array | np.ndarray | None) -> Asked:
    """Where each vector comes from. Raises DataError for a client that is asked for twice."""
    users = store.users()
    if clients is None:
        every = np.arange(len(users))
        return Asked(users, every, every)

    # as text: ids of a challenge are numbers, those of a log are labels
    labels = pa.array(clients).cast(pa.string())
    if len(labels) != len(pc.unique(labels)):
        counts = pc.value_counts(labels)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        raise DataError(
            f"--clients: client {twice[0]['values'].as_py()} is listed twice; list each one once."
        )

    # users of the store in its order, which is that of the memory map, whatever was asked for
    user = np.asarray(pc.fill_null(pc.index_in(labels, value_set=users), -1), np.int64)  # (N,)
    chosen = np.unique(user[user >= 0])
    return Asked(labels, np.where(user >= 0, np.searchsorted(chosen, user), -1), chosen)


def _facts(
    trained: Trained, store: EventStore, asked: Asked, settings: ExportSettings
) -> dict[str, Any]:
    """What the vectors are made of: export.json, and what must be the same for a killed run to be
    continued."""
    model, tokenizer = trained
    weights, who = hashlib.sha256(), hashlib.sha256(asked.row.tobytes())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        # the bytes: two models of one shape differ in nothing else
        weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for start in range(0, len(asked.labels), 1 << 16):
        who.update("\0".join(asked.labels[start : start + (1 << 16)].to_pylist()).encode())

    # name -> dimensions from, to
    parts: dict[str, list[int]] = {}
    first = 0
    for name, width in zip(settings.pool, widths(model, settings.pool), strict=True):
        parts[name] = [first, first + width]
        first += width

    return {
        "vectors": len(asked.labels),
        "missing": int(asked.missing.sum()),
        "parts": parts,
        "settings": settings.model_dump(mode="json"),
        "max_length": model.config.max_length,
        "model": weights.hexdigest(),
        "tokenizer": tokenizer.hash,
        "events": store.manifest.content_hash,
        "clients": who.hexdigest(),
    }


def _begin_or_continue(
    work: Path, facts: dict[str, Any], state: PartialState, overwrite: bool
) -> None:
    """Leave a manifest in the work folder; blocks of another export are refused, or with
    `overwrite` deleted."""

    manifest = work / "manifest.json"
    if state.is_main_process:
        # only then: finished blocks of the same export are kept even with --overwrite
        if overwrite and manifest.exists() and _differences(manifest, facts):
            for block in work.glob("block_*.npy"):
                block.unlink()
            manifest.unlink()
        if not manifest.exists():
            write_json(manifest, facts)
    state.wait_for_everyone()

    # on all ranks: each read the model and the events by itself
    different = _differences(manifest, facts)
    if different:
        raise ConfigError(
            f"{work} contains an unfinished export whose {different[0]} differ; finish that one, "
            "or start over with --overwrite."
        )


def _differences(manifest: Path, facts: dict[str, Any]) -> list[str]:
    """Names of the facts that an export was begun with otherwise."""
    begun = read_json(manifest, ConfigError, "remove the folder it is in")
    return [name for name in facts if begun.get(name) != facts[name]]
