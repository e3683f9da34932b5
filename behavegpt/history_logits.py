"""Logits of what follows each of many histories, in pieces whose memory is bounded.

Shape letters: U users, B rows, R positions, K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from behavegpt.batch import PackedBatch
from behavegpt.data.given import Moment
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.history_batches import CELLS_PER_BATCH, Histories, ReadsMemory, history_batches
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.mixer import Memory, part_of
from behavegpt.model.precision import autocast


@torch.no_grad()
def history_logits(
    model: BehaveGPTForBehaviorPrediction,
    encoded: EncodedHistories,
    memory: ReadsMemory | None,
    interrupt: Callable[[], None],
    asked: Moment | None = None,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Users (n,) and their logits (n, K) float32 on the CPU, each user once.

    `memory` and `asked` (U,) by field as for `history_batches`; `interrupt` is called before each
    piece, and what it raises stops the work.
    """
    classes = model.config.num_behaviors
    step = max(1, CELLS_PER_BATCH // classes)  # users whose logits fit
    histories = Histories(encoded.columns, encoded.offsets[:-1], encoded.offsets[1:])

    for users, batch, last, _ in history_batches(
        model, histories, cells_per_user=classes, memory=memory, asked=asked
    ):
        at = last.nonzero()  # (n, 2) row and position, in the order of `users`
        # more than once only where one row is too much already
        for first in range(0, len(at), step):
            interrupt()

            # the whole rows again, with the logits of some of their histories
            piece = slice(first, first + step)
            select = torch.zeros_like(last)
            select[tuple(at[piece].T)] = True
            with autocast(model.device):
                output: Any = model(**_part(batch, piece).arguments, select=select)
            yield users[piece], output.logits.float().cpu()


def _part(batch: PackedBatch, piece: slice) -> PackedBatch:
    """The batch with what is said at some of its predicted positions; the rows stay whole."""
    if batch.memory is not None:
        batch = batch._replace(memory=part_of(Memory(**batch.memory), piece)._asdict())
    if batch.given is not None:
        batch = batch._replace(given={field: ids[piece] for field, ids in batch.given.items()})
    return batch
