"""From packed rows to tensors: the inputs of their positions, and what is asked for there.

This is the one place where a target is made: at the position of event i it is event i + 1.

Shapes: B rows of R positions, W windows of E events in them, N positions with a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch

from behavegpt.batch import IGNORED, PADDING, PackedBatch
from behavegpt.data.given import given_fields
from behavegpt.data.pack import RowPlan
from behavegpt.data.vocabulary import FIRST
from behavegpt.ragged import positions, ranges

GAP_BUCKETS = 56  # half octaves of 1 + seconds: the last one begins at 6 years


class ReadsMemory(Protocol):
    """Says what a model's counts know at events (N,), as `MemorySource` does."""

    def at(self, positions: np.ndarray) -> dict[str, torch.Tensor]: ...


class BatchFields(NamedTuple):
    """The fields of a batch, by what they are to the model."""

    inputs: tuple[str, ...]
    next: tuple[str, ...] = ()  # of the next event, targets beside its behavior; `gap`: time to it
    given: tuple[str, ...] = ()  # of the target, known to the model: names of given.GIVEN


def collate(
    columns: Mapping[str, np.ndarray],
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: BatchFields,
    memory: ReadsMemory | None = None,
) -> PackedBatch:
    """Tensors of the given rows (B,) of a plan; row -1 is an empty row. One gather per column.

    `columns` are the store's, with `behavior` and (for `gap`) `time`. `memory` tells what the
    counts say at the positions with a target.
    """
    layout = layout_of(plan, rows, row_length)
    source = layout.source  # (E,)
    # of the next event: an input is never a user's last one
    behavior = columns["behavior"][source + 1].astype(np.int64)  # (E,) ids
    asked = layout.scored & (behavior >= FIRST)  # (E,)

    following: dict[str, torch.Tensor] = {}
    for name in fields.next:
        values = columns["time" if name == "gap" else name][source + 1].astype(np.int64)
        if name == "gap":
            values = gap_buckets(values - columns["time"][source].astype(np.int64))
        following[name] = layout.spread(np.where(asked, values, IGNORED), IGNORED)

    targets = source[asked] + 1  # (N,)
    known = {
        name: torch.from_numpy(columns[name][targets].astype(np.int64))
        for name in given_fields(fields.given)
    }
    return _inputs(columns, layout, fields.inputs)._replace(
        target=layout.spread(np.where(asked, behavior - FIRST, IGNORED), IGNORED),
        row=layout.spread(np.where(asked, source + 1, -1), -1),
        next_fields=following,
        memory=None if memory is None else memory.at(source[asked]),
        given=known or None,
    )


def collate_inputs(
    columns: Mapping[str, np.ndarray],
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: tuple[str, ...],
) -> PackedBatch:
    """As `collate`, where nothing is asked: no position has a target."""
    return _inputs(columns, layout_of(plan, rows, row_length), fields)


def argument_name(field: str) -> str:
    """The model's argument for a field: `input_ids` for the event (transformers' main input), else
    `FIELD_ids`."""
    return "input_ids" if field == "event" else f"{field}_ids"


class Layout(NamedTuple):
    """The E events of some rows; each array (E,)."""

    source: np.ndarray  # flat index in the columns
    place: np.ndarray  # in the batch, row by row
    position: np.ndarray  # in its window
    document: np.ndarray  # window of the row, from 0
    scored: np.ndarray  # bool: whether its target is asked for
    shape: tuple[int, int]  # of the batch

    def spread(self, values: np.ndarray, fill: int) -> torch.Tensor:
        """(B, R) int64 of the values (E,), `fill` where there is no event."""
        flat = np.full(self.shape[0] * self.shape[1], fill, np.int64)  # (B * R,)
        flat[self.place] = values
        return torch.from_numpy(flat.reshape(self.shape))


def layout_of(plan: RowPlan, rows: np.ndarray, row_length: int) -> Layout:
    """Where the events of rows (B,) of a plan stand in the columns and the batch; -1: none."""
    real = np.flatnonzero(rows >= 0)  # (b,) rows that are not empty
    count = plan.pointer[rows[real] + 1] - plan.pointer[rows[real]]  # windows of each row
    window = ranges(plan.pointer[rows[real]], count)  # (W,)
    begin = np.repeat(real, count) * row_length + plan.offset[window]  # of a window, in the batch

    length = plan.windows.length[window]  # (W,)
    position = positions(length)  # (E,)
    return Layout(
        source=np.repeat(plan.windows.start[window], length) + position,
        place=np.repeat(begin, length) + position,
        position=position,
        document=np.repeat(positions(count), length),
        scored=position >= np.repeat(plan.windows.score_from[window], length),
        shape=(len(rows), row_length),
    )


def _inputs(
    columns: Mapping[str, np.ndarray], layout: Layout, fields: tuple[str, ...]
) -> PackedBatch:
    """A batch without targets."""
    return PackedBatch(
        inputs={
            argument_name(name): layout.spread(columns[name][layout.source], 0) for name in fields
        },
        document=layout.spread(layout.document, PADDING),
        position=layout.spread(layout.position, 0),
        target=torch.full(layout.shape, IGNORED),
        row=torch.full(layout.shape, -1),
        next_fields={},
    )


def gap_buckets(seconds: np.ndarray) -> np.ndarray:
    """Buckets, int64 in [0, GAP_BUCKETS), of times between events in seconds (padding may make them
    negative)."""
    return half_octaves(seconds, GAP_BUCKETS)


def half_octaves(values: np.ndarray, buckets: int) -> np.ndarray:
    """Buckets of equal width on a logarithmic scale, two for each doubling of 1 + value; int64 in
    [0, buckets)."""
    return np.minimum((2 * np.log2(1 + np.maximum(values, 0))).astype(np.int64), buckets - 1)
