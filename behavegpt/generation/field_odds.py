"""How the numbers of an event depend on its behavior: a flight costs more than a coffee.

The heads predict behavior and number side by side from one hidden state. So the odds of a range v,
once the behavior b is drawn, are multiplied by

    (n(b, v) + w P(v)) / ((n(b) + w) P(v)),        near P(v | b) / P(v)

over training events, w = 5, which gives P(v | history, b) where behavior and history tell of the
number independently. No weight is trained.

Shapes: N rows, V ids of a numeric field.
"""

from __future__ import annotations

import numpy as np
import torch

from behavegpt.data.loader import columns_of
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.generation.calibration import log_odds
from behavegpt.model import BehaveGPTForBehaviorPrediction

PREFIX = "odds."  # of their names in links.safetensors


def odds_of_fields(
    model: BehaveGPTForBehaviorPrediction, store: EventStore
) -> dict[str, torch.Tensor]:
    """Numeric field with a head -> what is added to its logits, (ids of behaviors, V) float32."""
    columns = columns_of(store)
    train = np.asarray(columns["split"]) == TRAIN
    behavior = torch.from_numpy(columns["behavior"][train].astype(np.int64))

    found = {}
    for field in set(store.schema.numeric).intersection(model.config.next_heads or ()):
        value = torch.from_numpy(columns[field][train].astype(np.int64))
        happened = torch.zeros(len(store.behaviors), len(store.vocabulary[field]))
        once = torch.ones(len(value))
        happened.index_put_((behavior, value), once, accumulate=True)
        share = happened.sum(0) / happened.sum().clamp(min=1)
        found[field] = log_odds(happened, happened.sum(1, keepdim=True) * share)
    return found


def odds_given(odds: torch.Tensor, behavior: np.ndarray) -> torch.Tensor:
    """What is added to logits (N, V) where these behaviors (N,) were drawn; 0 of those that came
    after the odds were counted."""
    known = behavior < len(odds)
    return odds[np.where(known, behavior, 0)] * torch.from_numpy(known)[:, None]
