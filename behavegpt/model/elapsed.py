"""Time between events, as the network reads it: the gap to the user's event before, and rotary
positions that a gap moves on.

Gaps are cut into half octaves of 1 + seconds, as the gap head's targets are, in whole numbers: the
same in any packing, cache and runtime. Rotary encoding looks at differences of positions alone, so
positions add the logarithms of the gaps up: an event is one step behind the one before, and a
further step for every SCALE half octaves of the gap.

Shape letters: B rows, R positions, S slots of a cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from behavegpt.model.config import GAP_BUCKETS
from behavegpt.model.inputs import Events

GAP_IDS = GAP_BUCKETS + 1  # 0: the first event of a window, before which no time is known
SCALE = 8  # an hour is 3 steps, a day 4, a year 6; a power of two, so that no step is rounded
# the least whole seconds s of each bucket from 1 on: 2 log2(1 + s) >= bucket
EDGES = [math.isqrt((1 << bucket) - 1) for bucket in range(1, GAP_BUCKETS)]


class Elapsed(NamedTuple):
    """What the time tells of events (B, R)."""

    gap: torch.Tensor  # (B, R) int64 in [0, GAP_IDS)
    position: torch.Tensor  # (B, R) float32 steps within the history


def elapsed(events: Events) -> Elapsed:
    """Gaps and positions of events whose `time` (B, R) is given in seconds. Raises ValueError
    without it."""
    time = events.ids.get("time")
    if time is None:
        raise ValueError("the model reads the time between events: give time_ids, in seconds")

    if events.cache is not None:
        # of all events so far, at whose slots the new ones stand
        known = events.cache.remember_times(time)  # (B, S)
        index = torch.arange(known.shape[1], device=time.device).expand_as(known)
        slot = events.cache.step.position
        return Elapsed(*(values.gather(1, slot) for values in _over(known, index)))
    return _over(time, events.position)


def _over(time: torch.Tensor, index: torch.Tensor) -> Elapsed:
    """Gaps and positions of whole histories (B, R), with the index of each event in its history."""
    gap = torch.where(index > 0, 1 + half_octaves(time.diff(dim=1, prepend=time[:, :1])), 0)

    # half octaves up to each event, without those of the histories before it in the row
    buckets = (gap - 1).clamp(min=0).cumsum(1)
    first = torch.arange(time.shape[1], device=time.device) - index
    buckets = buckets - buckets.gather(1, first)
    return Elapsed(gap, index + buckets.float() / SCALE)


def half_octaves(seconds: torch.Tensor) -> torch.Tensor:
    """Buckets (B, R) int64 in [0, GAP_BUCKETS) of seconds (B, R) int64; less than 0 counts as 0."""
    # comparisons: the logarithms of two runtimes may differ at an edge
    edges = torch.tensor(EDGES, device=seconds.device)
    return (seconds[..., None] >= edges).sum(-1)
