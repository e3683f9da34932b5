"""Time gaps set right where the gap head is known to be wrong: by the hour, and for each user.

A head trained for a few epochs blurs how the gap depends on the hour (whoever checks in at noon is
seldom asleep five hours later), and the model sees weekdays and slots, not how long a user waits
between events. So the odds of a gap bucket b are multiplied, once for the slot of the last event
and once for the user, by

    (observed(b) + w * expected(b)) / ((n + w) * expected(b))

over n events: of training with that slot, then of the user's window. `observed` counts how often b
happened, `expected` is its mean predicted probability at those events. Few events change little (w
= 5). No weight is trained.

Shapes: N rows, R events, V buckets.
"""

from __future__ import annotations

import numpy as np
import torch

from behavegpt.data.collate import GAP_BUCKETS, BatchFields, collate
from behavegpt.data.loader import columns_of, row_length_for
from behavegpt.data.pack import evaluation_windows, pack_rows
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.evaluate import hidden_states

WEIGHT = 5.0  # events
WINDOWS = 1000  # of training that are looked at
ROWS = 64  # at once


def log_odds(happened: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """What is added to the logits (N, V), from how often each bucket happened (N, V) and was
    expected (N, V)."""
    count = happened.sum(1, keepdim=True)
    # the floor keeps a bucket that the head rules out from infinite odds
    share = (expected / count.clamp(min=1)).clamp(min=1e-6)

    return torch.where(
        count > 0, (happened + WEIGHT * share) / ((count + WEIGHT) * share), 1.0
    ).log()


def log_odds_of_users(
    probability: torch.Tensor, observed: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """(N, V) from predictions (N, R, V), what followed (N, R) and where that is known (N, R)."""
    weight = real.to(probability)
    expected = (probability * weight[..., None]).sum(1)

    # (N, V) how often each bucket followed
    return log_odds(torch.zeros_like(expected).scatter_add(1, observed, weight), expected)


@torch.no_grad()
def log_odds_of_slots(model: BehaveGPTForBehaviorPrediction, store: EventStore) -> torch.Tensor:
    """(slots, V) from a sample of the training events, the same one whatever was drawn before."""
    config, device = model.config, model.device
    windows = evaluation_windows(store, TRAIN, config.max_length)
    chosen = np.sort(np.random.default_rng(0).permutation(len(windows))[:WINDOWS])
    row = row_length_for(config.max_length)
    plan = pack_rows(windows.take(chosen), row)
    columns, rows = columns_of(store), np.arange(plan.rows)
    fields = BatchFields(config.columns, next=("gap",))
    batches = (
        collate(columns, plan, rows[first : first + ROWS], row, fields)
        for first in range(0, plan.rows, ROWS)
    )

    happened = torch.zeros(store.schema.slots, GAP_BUCKETS, device=device)
    expected = torch.zeros_like(happened)
    for batch, hidden in hidden_states(model, batches):
        followed = batch.next_fields["gap"]  # (B, R) bucket, below 0 where nothing follows
        known = followed >= 0
        state, slot = hidden[known], batch.inputs["slot_ids"][known]
        expected.index_add_(0, slot, model.next_heads["gap"](state).float().softmax(-1))
        once = torch.ones_like(slot, dtype=torch.float32)
        happened.index_put_((slot, followed[known]), once, accumulate=True)

    return log_odds(happened, expected).cpu()
