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
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from pydantic import Field

from behavegpt.config import Settings
from behavegpt.data.prepare import prepare
from behavegpt.data.reencode import schema_difference
from behavegpt.data.sources import find_logs
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import PAD, UNKNOWN
from behavegpt.embeddings.assemble import Asked, assemble
from behavegpt.embeddings.pooling import BEHAVIORS, NAMES, user_vectors, widths
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.history_batches import memory_columns_of
from behavegpt.io import (
    check_output,
    discard,
    lock,
    put_in_place,
    read_json,
    remove_stale,
    target,
    write_json,
)
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.options import Real
from behavegpt.paths import local_path
from behavegpt.ragged import ranges
from behavegpt.user_embeddings import write_array

MOST_DIMENSIONS = 2048  # of an entry to the challenge

Advance = Callable[[int, int], None]  # users done, of how many


class ExportSettings(Settings):
    """What a vector is made of; part of the fingerprint by which a run is continued."""

    pool: tuple[str, ...] = Field(
        ("last", "mean"), min_length=1, description="parts of a vector: " + ", ".join(NAMES)
    )
    half_life: Annotated[Real, Field(gt=0)] = Field(
        7.0, description="days after which an event counts half, for the decayed parts"
    )
    scale: Literal["standard", "unit", "none"] = Field(
        "standard",
        description="standard: every dimension has mean 0 and variance 1 over the users with events; "
        "unit: every part of a user's vector has length 1",
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
        8192, ge=1, description="users worked on, and kept when the run is killed, at a time"
    )


def export(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    events: Sequence[str | Path],
    out: str | Path,
    settings: ExportSettings | None = None,
    *,
    clients: pa.Array | np.ndarray | None = None,
    overwrite: bool = False,
    state: PartialState | None = None,
    progress: Advance | None = None,
    encoding: str | None = None,
) -> dict[str, Any]:
    """Write the vectors of `clients` (default: all users, in the store's order) to the folder
    `out`.

    `events`: a prepared folder, or raw logs with the training log's columns. Continues what a
    killed run left in OUT.work. `encoding` is that of raw logs that are text. Returns what
    export.json tells. Raises BehaveGPTError.
    """
    settings, out, state = (
        settings or ExportSettings(),
        target(local_path(out)),
        state or PartialState(cpu=True),
    )
    if sum(widths(model, settings.pool)) > MOST_DIMENSIONS:
        raise ConfigError(
            f"--pool {' '.join(settings.pool)}: {sum(widths(model, settings.pool)):,} dimensions, "
            "an entry has at most "
            f"{MOST_DIMENSIONS:,}; name fewer parts."
        )
    check_output(out, "whole")
    out.parent.mkdir(parents=True, exist_ok=True)
    # a second export would write into the same OUT.work
    with lock(out) if state.is_main_process else nullcontext():
        work = _work_folder(out, overwrite, state)
        store = _open(events, tokenizer, work, state, encoding)
        asked = _ask(store, clients)
        facts = _facts(model, tokenizer, store, asked, settings)
        _begin_or_continue(work, facts, state, overwrite)

        reader = open_reader(model, tokenizer, store, settings)
        blocks = _write_blocks(reader, asked, work, state, progress)
        if state.is_main_process:
            entry = work / "entry"
            shutil.rmtree(entry, ignore_errors=True)  # what a killed run left
            assemble(blocks, asked, facts, reader.empty_history(), entry)
            put_in_place(entry, out)
            discard(work)  # whole: half of it would be taken for an export to go on with
        state.wait_for_everyone()
    return facts


def _work_folder(out: Path, overwrite: bool, state: PartialState) -> Path:
    """OUT.work, where finished blocks wait for the others."""
    work = out.with_name(f"{out.name}.work")
    if state.is_main_process:
        for path in (out, work):
            remove_stale(path.parent, path.name)
    if out.exists() and not overwrite:
        raise ConfigError(
            f"{out} exists already; choose another folder, or replace it with --overwrite."
        )
    work.mkdir(exist_ok=True)
    return work


def _write_blocks(
    reader: Reader, asked: Asked, work: Path, state: PartialState, progress: Advance | None
) -> list[Path]:
    """Write this process's share of the blocks that are not there yet; returns all of them once
    everyone is done."""
    size = reader.settings.block_users
    starts = range(0, len(asked.users), size)
    blocks = [work / f"block_{first:012d}.npy" for first in starts]
    for i in range(state.process_index, len(blocks), state.num_processes):
        if progress:
            progress(starts[i], len(asked.users))
        if not blocks[i].exists():
            write_array(blocks[i], reader.vectors(asked.users[starts[i] : starts[i] + size]))
    state.wait_for_everyone()
    return blocks


def _open(
    events: Sequence[str | Path],
    tokenizer: EventTokenizer,
    work: Path,
    state: PartialState,
    encoding: str | None,
) -> EventStore:
    """The prepared folder `events`, or raw logs prepared by the model's schema; they need not tell
    the behavior."""
    schema = tokenizer.event_schema
    first = local_path(events[0])
    prepared = first if len(events) == 1 and (first / "dataset.json").is_file() else None
    if prepared is None:
        prepared = work / "events"
        logs = find_logs(list(events), encoding)
        if schema.behavior and not logs.has(schema.behavior):
            schema = schema.model_copy(update={"behavior": None})
        if state.is_main_process and not (prepared / "dataset.json").is_file():
            prepare(logs, prepared, schema, split="time:1,0,0")
        state.wait_for_everyone()
    store = open_store(prepared)
    # of no matter to a vector
    classes = {name: getattr(store.schema, name) for name in ("event", "behavior")}
    lines = schema_difference(schema.model_copy(update=classes), store.schema)
    if lines:
        raise CheckpointError(
            f"{prepared}: not the kind of data this model reads: {'; '.join(lines)}. Prepare the "
            "logs by the model's "
            "schema (event_schema in its preprocessor_config.json), or give the raw logs."
        )
    return store


def _ask(store: EventStore, clients: pa.Array | np.ndarray | None) -> Asked:
    """Where each vector comes from. Raises DataError for a client that is asked for twice."""
    users = store.users()
    if clients is None:
        every = np.arange(len(users))
        return Asked(users, every, every)
    labels = pa.array(clients).cast(pa.string())
    if len(labels) != len(pc.unique(labels)):
        twice = pc.value_counts(labels).filter(
            pc.greater(pc.value_counts(labels).field("counts"), 1)
        )
        raise DataError(
            f"--clients: client {twice[0]['values'].as_py()} is listed twice; list each one once."
        )
    found = np.asarray(pc.fill_null(pc.index_in(labels, value_set=users), -1), np.int64)
    chosen = np.unique(found[found >= 0])
    return Asked(labels, np.where(found >= 0, np.searchsorted(chosen, found), -1), chosen)


def _facts(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    store: EventStore,
    asked: Asked,
    settings: ExportSettings,
) -> dict[str, Any]:
    """What the vectors are made of: export.json, and what must be the same for a killed run to be
    continued."""
    weights, who = hashlib.sha256(), hashlib.sha256(asked.row.tobytes())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for start in range(0, len(asked.labels), 1 << 16):
        who.update("\0".join(asked.labels[start : start + (1 << 16)].to_pylist()).encode())
    sizes = widths(model, settings.pool)
    return {
        "vectors": len(asked.labels),
        "missing": int(asked.missing.sum()),
        "parts": {
            name: [sum(sizes[:i]), sum(sizes[: i + 1])] for i, name in enumerate(settings.pool)
        },  # name -> dimensions from, to
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
    if state.is_main_process and overwrite and manifest.exists() and _differences(manifest, facts):
        for block in work.glob("block_*.npy"):
            block.unlink()
        manifest.unlink()
    if state.is_main_process and not manifest.exists():
        write_json(manifest, facts)
    state.wait_for_everyone()
    different = _differences(manifest, facts)
    if different:
        raise ConfigError(
            f"{work} holds an unfinished export that differs in its {different[0]}: finish it, or "
            "begin anew with "
            "--overwrite."
        )


def _differences(manifest: Path, facts: dict[str, Any]) -> list[str]:
    begun = read_json(manifest, ConfigError, "remove the folder it is in")
    return [name for name in facts if begun.get(name) != facts[name]]


def _lookups(store: EventStore, tokenizer: EventTokenizer) -> dict[str, np.ndarray]:
    """For each field whose ids differ: the model's id of each of the store's, by label."""
    shared = {
        f: (v, store.vocabulary[f])
        for f, v in tokenizer.vocabulary.items()
        if f in store.vocabulary
    }
    return {
        field: np.concatenate([[PAD, UNKNOWN], ours.encode(theirs.values)])
        for field, (ours, theirs) in shared.items()
        if ours.hash != theirs.hash
    }


def open_reader(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    store: EventStore,
    settings: ExportSettings,
) -> Reader:
    """Vectors of a store's users, whatever ids its labels have there."""
    return Reader(model, store, _lookups(store, tokenizer), settings)


@dataclass(frozen=True)
class Reader:
    """A model that reads users of a store."""

    model: BehaveGPTForBehaviorPrediction
    store: EventStore
    # field -> the model's id of each of the store's, where they differ
    lookup: Mapping[str, np.ndarray]
    settings: ExportSettings

    @property
    def columns(self) -> set[str]:
        """What the model and pooling need."""
        return {*self.model.config.columns, *memory_columns_of(self.model), "time"}

    @property
    def reads_all(self) -> bool:
        """Whether a vector depends on events before the window: the probabilities of a model with
        memory do."""
        return self.model.counts is not None and BEHAVIORS in self.settings.pool

    def vectors(self, users: np.ndarray) -> np.ndarray:
        """Vectors (n, D) float32 of users (n,); only the events that the model reads are taken
        up."""
        store = self.store
        end = store.offsets[users + 1]
        length = end - store.offsets[users]
        if not self.reads_all:
            length = np.minimum(length, self.model.config.max_length)
        source = ranges(end - length, length)

        columns = {}
        for name in self.columns:
            stored = "event" if name == "behavior" and store.schema.behavior_is_event else name
            held = store.columns.get(stored)
            ids = np.full(len(source), UNKNOWN, np.uint8) if held is None else held[source]
            columns[name] = self.lookup[stored][ids] if stored in self.lookup else ids
        if self.model.counts is not None:  # what was counted before is told by the date
            columns["time"] = columns["time"].astype(np.int64) + store.manifest.time_origin
        after = np.cumsum(length)
        return self._pooled(columns, after - length, after)

    def empty_history(self) -> np.ndarray:
        """Vector (D,) of a history of one unknown event at the time of the store's last one."""
        held = self.store.columns
        last = int(np.argmax(held["time"]))
        known = ("time", "weekday", "slot")
        columns = {
            n: held[n][last : last + 1] if n in known else np.full(1, UNKNOWN) for n in self.columns
        }
        one = np.ones(1, np.int64)
        return self._pooled(columns, one - 1, one)[0]

    def _pooled(
        self, columns: Mapping[str, np.ndarray], begin: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        settings = self.settings
        return user_vectors(self.model, columns, begin, end, settings.pool, settings.half_life)
