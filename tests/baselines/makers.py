"""Baselines made on the spot, with weights large enough that every part matters."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from behavegpt.baselines.architectures import ARCHITECTURES, baseline_config
from behavegpt.baselines.layout import Layout
from behavegpt.baselines.network import BaselineForBehaviorPrediction, start_baseline
from behavegpt.batch import PADDING
from behavegpt.data.store import EventStore
from tests.helpers import random_store

FREE = [name for name in ARCHITECTURES if name != "lift"]  # lift needs a base
SHAPE = {
    "embedding_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_length": 64,
    "dropout": 0.0,
}
STORES: dict[bool, EventStore] = {
    True: random_store(users=12, behaviors=None),  # the classes are the events
    False: random_store(users=12, behaviors=5),
}
SIZES = {"event": 14, "location": 6, "weekday": 7, "slot": 48, "behavior": 7}


def make(architecture: str, is_event: bool = True, **more: Any) -> BaselineForBehaviorPrediction:
    """A baseline on a random log, in evaluation mode."""
    torch.manual_seed(0)
    store = STORES[is_event]
    model = start_baseline(
        baseline_config({"architecture": architecture, **SHAPE, **more}, store), store
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def histories(
    lengths: list[int], seed: int = 0, is_event: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Random histories, each tensor (1, length); `behavior` differs from the events unless those
    are the classes."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for length in lengths:
        ids = {
            n: torch.randint(size, (1, length), generator=generator) for n, size in SIZES.items()
        }
        ids["time"] = torch.randint(200_000, (1, length), generator=generator).cumsum(1)
        if is_event:
            ids.pop("behavior")
        parts.append({"input_ids" if n == "event" else f"{n}_ids": v for n, v in ids.items()})
    return parts


def packed(
    parts: list[dict[str, torch.Tensor]], row: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All histories in one row, with padding behind."""
    used = sum(p["input_ids"].shape[1] for p in parts)
    inputs = {n: F.pad(torch.cat([p[n] for p in parts], 1), (0, row - used)) for n in parts[0]}
    document = torch.cat([torch.full_like(p["input_ids"], i) for i, p in enumerate(parts)], 1)
    return inputs, F.pad(document, (0, row - used), value=PADDING)


def layout(length: int, **ids: torch.Tensor) -> Layout:
    """One history of `length` events."""
    return Layout(ids, torch.zeros(1, length, dtype=torch.long), torch.arange(length)[None])
