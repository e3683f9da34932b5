"""Histories -> packed batches whose memory is bounded by positions and by cells: logits, or pairs
of positions.

Shape letters: U users, T events of all of them, B rows, R positions, K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from behavegpt.batch import PADDING, PackedBatch
from behavegpt.data.basket_batches import collate_basket_inputs
from behavegpt.data.baskets import NUMBER, Baskets, baskets_of
from behavegpt.data.collate import ReadsMemory, collate_inputs
from behavegpt.data.given import Moment
from behavegpt.data.loader import row_length_for
from behavegpt.data.memory_baskets import history_memory
from behavegpt.data.memory_counts import history_source
from behavegpt.data.pack import RowPlan, Windows, pack_rows
from behavegpt.errors import DataError
from behavegpt.model import BehaveGPTForBehaviorPrediction

# a GPU is done with a small one before the next is made
POSITIONS_PER_BATCH = {"cpu": 16_384, "cuda": 131_072}
CELLS_PER_BATCH = 1 << 24  # of float32: 64 MiB; softmax and sorting hold a few times as much


class Histories(NamedTuple):
    """Histories of users that lie one after the other in flat columns, none empty, ascending."""

    columns: Mapping[str, np.ndarray]  # field -> ids (T,), and `time` in seconds
    begin: np.ndarray  # (U,) first event of each
    end: np.ndarray  # (U,) one behind the last


class HistoryBatch(NamedTuple):
    """Rows of whole histories."""

    users: np.ndarray  # (n,) whose they are, row by row
    inputs: PackedBatch  # on the model's device, without targets
    last: torch.Tensor  # (B, R) bool: each history's last event, n in all
    time: torch.Tensor | None  # (B, R) int64 seconds, where asked for


def history_batches(
    model: BehaveGPTForBehaviorPrediction,
    histories: Histories,
    *,
    cells_per_user: int,
    with_time: bool = False,
    memory: ReadsMemory | None = None,
    asked: Moment | None = None,
) -> Iterator[HistoryBatch]:
    """The last `max_length` events, or baskets, of each history (U,), in rows packed for a model.

    What `memory` says at the last events, of the whole histories, stands beside them, row by row; a
    model with memory needs it wherever logits are asked for. So does what is given of the events to
    come, `asked` (U,) by field. A batch holds at most POSITIONS_PER_BATCH positions, and users
    times `cells_per_user` up to CELLS_PER_BATCH, but at least one row.
    """
    config = model.config
    row_length = row_length_for(config.max_length)
    baskets = _baskets(histories) if config.baskets else None
    plan, user_of = _plan(histories, baskets, config.max_length, row_length)
    collate: Callable[..., PackedBatch] = partial(collate_inputs, histories.columns)
    if baskets is not None:
        collate = partial(collate_basket_inputs, histories.columns, baskets)

    time_field = ("time",) if with_time else ()
    # a model may read the time itself: a column is collated once
    fields = tuple(dict.fromkeys((*config.columns, *time_field)))
    most_positions = POSITIONS_PER_BATCH.get(model.device.type, POSITIONS_PER_BATCH["cpu"])
    most_users = CELLS_PER_BATCH // max(1, cells_per_user)
    for first, stop in _pieces(plan, most_positions // row_length, most_users):
        batch = collate(plan, np.arange(first, stop), row_length, fields)
        held = slice(plan.pointer[first], plan.pointer[stop])  # windows of these rows
        users = user_of[held]
        if memory is not None:
            after = (plan.windows.start + plan.windows.length)[held]
            newest = (after if baskets is None else baskets.begin[after]) - 1
            batch = batch._replace(memory=memory.at(newest))
        if asked is not None:
            given = {field: torch.from_numpy(ids[users]) for field, ids in asked.items()}
            batch = batch._replace(given=given)
        batch = batch.to(model.device)

        time = batch.inputs["time_ids"] if with_time else None
        if "time" not in config.columns:
            batch.inputs.pop("time_ids", None)  # the model would refuse it

        yield HistoryBatch(users, batch, _last_events(batch.document), time)


def _plan(
    histories: Histories, baskets: Baskets | None, window: int, row_length: int
) -> tuple[RowPlan, np.ndarray]:
    """Rows of the newest windows of histories (U,), and whose each window is, (U,)."""
    begin, end = histories.begin, histories.end
    if baskets is not None:
        # a basket is a position; the ends of histories are ends of baskets
        begin, end = (np.searchsorted(baskets.begin, edge) for edge in (begin, end))

    length = np.minimum(end - begin, window)
    # what follows the last event is all that is asked for
    plan = pack_rows(Windows(end - length, length, length - 1), row_length)
    # packing lays the windows in the order of the rows
    return plan, np.searchsorted(end, plan.windows.start, side="right")


def _last_events(document: torch.Tensor) -> torch.Tensor:
    """Where histories end in rows (B, R) of documents, (B, R) bool."""
    # another document follows; behind the row's end a number that is none, not even padding's
    following = torch.nn.functional.pad(document[:, 1:], (0, 1), value=PADDING - 1)
    return (document != following) & (document != PADDING)


def _baskets(histories: Histories) -> Baskets:
    """The baskets of histories, which end where these do. Raises DataError where the log tells of
    none."""
    if NUMBER not in histories.columns:
        raise DataError(
            "the model reads baskets, and nothing tells those of these histories; read the log "
            "with the group's column."
        )
    whole = np.array([0, len(histories.columns[NUMBER])])
    ends = np.concatenate([whole, histories.begin, histories.end])
    return baskets_of(histories.columns, np.unique(ends))


def memory_of_histories(
    model: BehaveGPTForBehaviorPrediction, histories: Histories, asked: Moment | None = None
) -> ReadsMemory | None:
    """Reads what a model's counts say of histories, `asked` about given fields (U,); None for a
    model without memory."""
    if model.counts is None:
        return None

    offsets = np.append(histories.begin, histories.end[-1:])
    if model.config.baskets:
        return history_memory(histories.columns, offsets, model.counts)
    return history_source(histories.columns, offsets, model.counts, asked)


def memory_columns_of(model: BehaveGPTForBehaviorPrediction) -> set[str]:
    """Columns that the memory of a model reads beside those of its config; none without memory."""
    if model.counts is None:
        return set()
    return {"event", "behavior", "location", "slot", "weekday", "time"}


def _pieces(plan: RowPlan, most_rows: int, most_users: int) -> Iterator[tuple[int, int]]:
    """First row and the one behind the last of each batch."""
    first = 0
    while first < plan.rows:
        # rows whose windows, one a user, are few enough; a row is never cut
        fit = int(np.searchsorted(plan.pointer, plan.pointer[first] + most_users, side="right")) - 1
        stop = min(max(fit, first + 1), first + max(1, most_rows), plan.rows)
        yield first, stop
        first = stop
