"""From packed rows of baskets to tensors: the events of all positions in one flat list, and what is
asked for after each basket.

Shapes: B rows of R positions, P baskets of E events in them, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from behavegpt.batch import PADDING, PackedBatch
from behavegpt.data.baskets import Baskets, asked_after
from behavegpt.data.collate import Layout, ReadsMemory, argument_name, layout_of
from behavegpt.data.pack import RowPlan
from behavegpt.data.vocabulary import FIRST
from behavegpt.ragged import ranges


def collate_baskets(
    columns: Mapping[str, np.ndarray],
    baskets: Baskets,
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: tuple[str, ...],
    memory: ReadsMemory | None = None,
) -> PackedBatch:
    """Tensors of the given rows (B,) of a plan of baskets; row -1 is an empty row.

    `memory` tells what the counts say where the N targets are asked for.
    """
    layout = layout_of(plan, rows, row_length)
    asked = asked_after(baskets, layout.source, layout.scored)

    batch = _inputs(columns, baskets, layout, fields)
    assert batch.baskets is not None
    last = baskets.begin[layout.source + 1] - 1  # (P,) last event of each basket
    return batch._replace(
        target=torch.from_numpy(columns["behavior"][asked.event].astype(np.int64) - FIRST),
        row=torch.from_numpy(asked.event),
        memory=None if memory is None else memory.at(last[asked.basket]),
        baskets={
            **batch.baskets,
            "asked": torch.from_numpy(layout.place[asked.basket]),
            "share": torch.from_numpy(asked.share),
        },
    )


def collate_basket_inputs(
    columns: Mapping[str, np.ndarray],
    baskets: Baskets,
    plan: RowPlan,
    rows: np.ndarray,
    row_length: int,
    fields: tuple[str, ...],
) -> PackedBatch:
    """As `collate_baskets`, where nothing is asked. `time_ids`, if among the fields, are those of
    the positions (B, R)."""
    layout = layout_of(plan, rows, row_length)
    of_events = tuple(name for name in fields if name != "time")
    batch = _inputs(columns, baskets, layout, of_events)
    if "time" in fields:
        time = columns["time"][baskets.begin[layout.source]]  # one of all its events
        batch.inputs["time_ids"] = layout.spread(time, 0)
    return batch


def _inputs(
    columns: Mapping[str, np.ndarray], baskets: Baskets, layout: Layout, fields: tuple[str, ...]
) -> PackedBatch:
    """A batch without targets: ids (E,) of the events, basket by basket."""
    size = baskets.begin[layout.source + 1] - baskets.begin[layout.source]  # (P,)
    event = ranges(baskets.begin[layout.source], size)  # (E,)
    none = torch.zeros(0, dtype=torch.int64)
    return PackedBatch(
        inputs={
            argument_name(name): torch.from_numpy(columns[name][event].astype(np.int64))
            for name in fields
        },
        document=layout.spread(layout.document, PADDING),
        position=layout.spread(layout.position, 0),
        target=none,
        row=none,
        next_fields={},
        baskets={"sizes": layout.spread(size, 0)},
    )
