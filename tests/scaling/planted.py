"""Rows from a law that is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from behavegpt.scaling.law import Law

# the paper's exponents over the grid of configs/scaling/small.yaml; losses from 2.2 to 3.8 nats
TRUTH = Law(*map(np.array, (110.0, 8.3, 1.8, 0.51, 0.23)))
SIZES, EVENTS = np.geomspace(1e4, 1e6, 6), np.geomspace(1e4, 2e6, 5)


def planted_rows(
    seed: int,
    noise: float = 0.005,
    law: Law = TRUTH,
    sizes: Any = SIZES,
    events: Any = EVENTS,
    outliers: int = 0,
) -> list[dict[str, Any]]:
    """One row for each size and data size; `outliers` of them with a loss 20 % too high."""
    rng = np.random.default_rng(seed)
    n, d = (x.ravel() for x in np.meshgrid(sizes, events))
    loss = law.loss(n, d) * np.exp(rng.normal(0, noise, len(n)) if noise else 0)
    loss[rng.choice(len(n), outliers, replace=False)] *= 1.2
    return [
        {"params": float(a), "events": float(b), "loss": float(c)}
        for a, b, c in zip(n, d, loss, strict=True)
    ]
