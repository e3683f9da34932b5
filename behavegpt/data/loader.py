"""Batches of a prepared folder for one rank: training by (seed, step), evaluation in order.

There is no iterator state: which rows a step trains on is a pure function of (seed, step), whatever
the number of ranks and micro-batches, so that a resumed run sees exactly what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from behavegpt.batch import PackedBatch
from behavegpt.data.basket_batches import collate_baskets
from behavegpt.data.collate import BatchFields, ReadsMemory, collate
from behavegpt.data.given import moved
from behavegpt.data.memory_baskets import BasketMemory, store_memory
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_counts import Counts, MemorySource, dated_columns
from behavegpt.data.pack import RowPlan, evaluation_windows, pack_rows, training_windows
from behavegpt.data.store import EventStore


class Share(NamedTuple):
    """A process's part of some work: every `world`-th piece from `rank` on."""

    rank: int = 0
    world: int = 1


ALL = Share()


def columns_of(store: EventStore) -> Mapping[str, np.ndarray]:
    """The store's columns with `behavior` always present."""
    # where events are the classes it is no column of its own
    return {**store.columns, "behavior": store.column("behavior")}


def memory_of(
    store: EventStore, counts: Counts, *, leave_out: bool = False
) -> MemorySource | BasketMemory:
    """Reads the counts at events of a prepared folder; `leave_out`: at events that were counted."""
    if store.baskets is not None:
        return store_memory(store, counts, leave_out)

    columns = dated_columns(store)
    if counts.given:
        columns = Columns(**moved(columns._asdict(), store.offsets, counts.given))

    return MemorySource(columns, store.offsets, counts, leave_out)


@lru_cache(maxsize=1)
def _worker() -> ThreadPoolExecutor:
    # one thread: the counting loops release the interpreter's lock, and one is ahead of a training
    # step
    return ThreadPoolExecutor(1, thread_name_prefix="behavegpt-batches")


def row_length_for(max_length: int) -> int:
    """Positions of a row: the length cap rounded up to a multiple of 64, so that short windows fill
    the rest."""
    return -(-max_length // 64) * 64


class TrainingBatches:
    """Training rows of a store, step by step.

    A step trains on `rows_per_step` rows of one epoch's plan; the epoch's last step is filled up
    with empty rows, so that shapes never change. Rows are dealt to micro-batches and ranks in a
    fixed order.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        max_length: int,
        rows_per_step: int,
        seed: int,
        fields: BatchFields,
        counts: Counts | None = None,
    ) -> None:
        """`counts`: of the training split, for a model with memory."""
        self.store, self.max_length, self.seed = store, max_length, seed
        self.row_length = row_length_for(max_length)
        self.rows_per_step, self.fields = rows_per_step, fields

        self._columns = columns_of(store)
        self.memory = None if counts is None else memory_of(store, counts, leave_out=True)
        self._ahead: dict[tuple[int, ...], Future[list[PackedBatch]]] = {}
        self._plan = lru_cache(maxsize=1)(self._make_plan)  # of the epoch that is running

        # every epoch has as many rows: cut histories differ in where they are cut alone
        self.steps_per_epoch = max(1, -(-self._plan(0).rows // rows_per_step))

    def rows(self, step: int) -> tuple[RowPlan, np.ndarray]:
        """The epoch's plan and the rows (rows_per_step,) of a global step; -1 where an empty row
        fills up."""
        epoch, index = divmod(step, self.steps_per_epoch)
        plan = self._plan(epoch)

        rows = np.arange(index * self.rows_per_step, (index + 1) * self.rows_per_step)
        return plan, np.where(rows < plan.rows, rows, -1)

    def micro_batches(
        self, step: int, micro: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[PackedBatch]:
        """This rank's `micro` batches of a step; empty rows fill up the last ones, so that all have
        one shape.

        With memory the next step's are made meanwhile in another thread, where counting holds no
        lock.
        """
        if self.memory is None:
            return self._batches(step, micro, rank, world)

        # a step that was not made ahead, the first one say, is made here
        ready = self._ahead.pop((step, micro, rank, world), None)
        batches = ready.result() if ready else list(self._batches(step, micro, rank, world))

        following = step + 1, micro, rank, world
        self._ahead = {following: _worker().submit(self._listed, *following)}
        return iter(batches)

    def _listed(self, step: int, micro: int, rank: int, world: int) -> list[PackedBatch]:
        return list(self._batches(step, micro, rank, world))

    def _batches(self, step: int, micro: int, rank: int, world: int) -> Iterator[PackedBatch]:
        plan, rows = self.rows(step)
        # as many rows for every rank and micro-batch
        rows = np.pad(rows, (0, -len(rows) % (micro * world)), constant_values=-1)

        for part in rows.reshape(micro, world, -1)[:, rank]:
            yield _collate(
                self.store, self._columns, plan, part, self.row_length, self.fields, self.memory
            )

    def _make_plan(self, epoch: int) -> RowPlan:
        # seed and epoch alone: a resumed run packs the same rows
        rng = np.random.default_rng([self.seed, epoch])
        windows = training_windows(self.store.baskets or self.store, self.max_length, rng)
        return pack_rows(windows, self.row_length, rng)


def _collate(
    store: EventStore,
    columns: Mapping[str, np.ndarray],
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: BatchFields,
    memory: ReadsMemory | None,
) -> PackedBatch:
    """The batch of some rows (B,) of a plan of a store's events, or of its baskets."""
    if store.baskets is None:
        return collate(columns, plan, rows, row_length, fields, memory=memory)
    return collate_baskets(columns, store.baskets, plan, rows, row_length, fields.inputs, memory)


def evaluation_batches(
    store: EventStore,
    split: int,
    *,
    max_length: int,
    rows_per_batch: int,
    fields: BatchFields,
    counts: Counts | None = None,
    share: Share = ALL,
) -> Iterator[PackedBatch]:
    """A share of a split's targets; together the shares hold each target once.

    `counts`: those of the model's training log, for a model with memory.
    """
    row_length = row_length_for(max_length)
    windows = evaluation_windows(store.baskets or store, split, max_length)
    # not shuffled: the same targets stand in the same batches at each validation
    plan = pack_rows(windows, row_length)
    columns = columns_of(store)
    memory = None if counts is None else memory_of(store, counts)

    # every `world`-th row: rows are by length, so the shares cost about the same
    mine = np.arange(share.rank, plan.rows, share.world)
    for first in range(0, len(mine), rows_per_batch):
        rows = mine[first : first + rows_per_batch]
        yield _collate(store, columns, plan, rows, row_length, fields, memory)
