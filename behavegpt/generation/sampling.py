"""Random draws of generation: a pure function of (seed, user, sample, step), whatever else is in
the batch.

Shapes: N rows (a user's sample each), V ids, M pieces of a time bucket.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from behavegpt.data.schema import EventSchema
from behavegpt.data.times import DAY, calendar, zone

BLOCK = 16  # steps whose numbers are made at once
PIECES = 48  # of a time bucket, of at most half an hour each
GRIDS = (DAY, 3600, 60)  # seconds


class Uniforms:
    """Counter-based uniform numbers (Philox) for N rows; the key is a hash of seed, user and
    sample."""

    def __init__(self, seed: int, users: list[str], samples: np.ndarray) -> None:
        self.keys = []
        for user, sample in zip(users, samples.tolist(), strict=True):
            text = f"{seed}\0{sample}\0{user}".encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(text, digest_size=16).digest()
            self.keys.append(np.frombuffer(digest, np.uint64))
        self._block = (-1, np.empty(0))  # index, (N, BLOCK, width)

    def __call__(self, step: int, width: int) -> np.ndarray:
        """`width` numbers in [0, 1) for each row at a step, (N, width) float64."""
        index, inside = divmod(step, BLOCK)
        if self._block[0] != index:
            # the counter is the step's, so a row's numbers do not depend on how it got here
            counter = [0, index, 0, 0]
            generators = (
                np.random.Generator(np.random.Philox(key=key, counter=counter)) for key in self.keys
            )
            numbers = [generator.random((BLOCK, width)) for generator in generators]
            self._block = (index, np.stack(numbers))
        return self._block[1][:, inside]

    def take(self, rows: np.ndarray) -> None:
        """Keep the rows (n,) only."""
        self.keys = [self.keys[row] for row in rows]
        self._block = self._block[0], self._block[1][rows]


def choose(
    logits: torch.Tensor, u: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> torch.Tensor:
    """One id (N,) for each row of logits (N, V) by uniform numbers (N,); temperature 0 takes the
    most probable.

    `top_p` < 1 draws from the smallest set of ids that holds at least this probability (nucleus
    sampling).
    """
    if temperature == 0:
        return logits.argmax(-1)

    probability = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, ids = probability.sort(dim=-1, descending=True, stable=True)
        # the first id that passes top_p is still in: some id always is
        before = ordered.cumsum(-1) - ordered
        probability = torch.zeros_like(probability).scatter(1, ids, ordered * (before < top_p))
    return pick(probability, u)


def pick(weight: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The first index (N,) where the running share of weights (N, V) >= 0 exceeds u (N,); never one
    of weight 0.

    In two stages, over blocks and inside one: many times faster than a running sum of V.
    """
    # padding has weight 0, which is never drawn
    side = 64
    weight = torch.nn.functional.pad(weight, (0, -weight.shape[1] % side)).unflatten(1, (-1, side))
    totals = weight.sum(-1, dtype=torch.float64).cumsum(-1)  # (N, blocks)
    block, rest = _locate(totals, u.double() * totals[:, -1])

    # the chosen block of each row, (N, side)
    inside = weight.gather(1, block[:, None, None].expand(-1, 1, side))[:, 0].double().cumsum(-1)
    return block * side + _locate(inside, rest)[0]


def _locate(running: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where target (N,) falls in running sums (N, V): the index, and how far inside its part."""
    # rounding must not put the target at or behind the last sum
    target = torch.minimum(target, running[:, -1] * (1 - 1e-12))[:, None]
    index = torch.searchsorted(running, target, right=True)
    index = index.clamp(max=running.shape[1] - 1)  # where all weights are 0
    before = torch.where(index > 0, running.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index[:, 0], (target - before)[:, 0]


def time_grid(seconds: np.ndarray, schema: EventSchema) -> int:
    """The coarsest of day, hour, minute and second that all wall-clock times (N,) of a history
    stand on."""
    wall = zone(schema.tz).wall(seconds)
    return next((grid for grid in GRIDS if not (wall % grid).any()), 1)


def bucket_edges(bucket: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First second of buckets (N,) of 2 * log2(1 + seconds), and the first one behind them, each
    (N,) int64."""
    low = np.ceil(np.exp2(bucket / 2) - 1).astype(np.int64)
    return low, np.maximum(np.ceil(np.exp2((bucket + 1) / 2) - 1).astype(np.int64), low + 1)


def time_in_bucket(
    bucket: np.ndarray,
    after: np.ndarray,
    grid: np.ndarray,
    slots: np.ndarray,
    u: np.ndarray,
    schema: EventSchema,
) -> np.ndarray:
    """Seconds (N,) int64 from the instants `after` (N,) to the next event, inside its bucket (N,).

    A bucket of many hours is a coarse clock, so the day is drawn evenly and the time of the day by
    the weights `slots` (N, slots of a day); the result stands on the user's `grid` (N,) in seconds.
    `u` (N, 3).
    """
    # where in the bucket a day, or the whole of a shorter bucket, begins
    low, high = bucket_edges(bucket)
    width = np.minimum(high - low, DAY)
    start = low + np.floor(u[:, 0] * (high - low - width + 1)).astype(np.int64)

    # each piece by the slot of the local day in which its middle lies
    edges = start[:, None] + width[:, None] * np.arange(PIECES + 1) / PIECES  # (N, M + 1)
    middle = after[:, None] + ((edges[:, :-1] + edges[:, 1:]) / 2).astype(np.int64)
    slot = calendar(middle.ravel(), schema)[1].reshape(middle.shape).astype(np.int64)
    # hours that the weights rule out stay possible where a bucket holds no others
    weight = np.take_along_axis(slots, slot, axis=1) + 1e-9
    piece = pick(torch.from_numpy(weight), torch.from_numpy(u[:, 1])).numpy()

    rows = np.arange(len(bucket))
    seconds = edges[rows, piece] + u[:, 2] * width / PIECES
    return _on_grid(seconds, low, high, after, grid, schema)


def agree(
    gap: torch.Tensor, slot: torch.Tensor, now: torch.Tensor, rounds: int = 12
) -> torch.Tensor:
    """Weights (N, slots) of the time of day inside a gap bucket, such that gap and slot both keep
    their probabilities.

    `gap` (N, buckets) and `slot` (N, slots): what two heads say of the same next event; `now` (N,):
    the present slot. A gap of an hour settles the slot, a gap of a day hardly: so the slots that
    short gaps reach anyway must weigh less within long ones. Iterative proportional fitting
    (Sinkhorn) of the joint distribution.
    """
    overlap = _overlap(gap.shape[1], slot.shape[1]).to(gap)  # (buckets, slots ahead)
    ahead = torch.arange(slot.shape[1], device=gap.device)
    wanted = slot.gather(1, (now[:, None] + ahead) % slot.shape[1])  # (N, slots ahead)

    weight = wanted
    for _ in range(rounds):
        share = gap / (weight @ overlap.T).clamp(min=1e-12)  # (N, buckets)
        # the two marginals in turn: that of the gaps, then that of the slots
        weight = wanted / (share @ overlap).clamp(min=1e-12)

    weight = weight / weight.sum(1, keepdim=True)
    return torch.zeros_like(weight).scatter(1, (now[:, None] + ahead) % slot.shape[1], weight)


@lru_cache(maxsize=4)
def _overlap(buckets: int, slots: int) -> torch.Tensor:
    """(buckets, slots) float32: the share of a bucket's time that lies so many slots ahead, around
    the clock."""
    low, high = bucket_edges(np.arange(buckets))
    length = DAY / slots
    edges = np.stack([low, high]) / length  # in slots from the middle of the present one

    table = np.zeros((buckets, slots))
    for bucket, (begin, end) in enumerate(edges.T + 0.5):
        # a long bucket goes round the clock again and again; two rounds tell its shares
        whole = np.arange(np.floor(begin), min(np.ceil(end), np.floor(begin) + 2 * slots))
        part = np.minimum(whole + 1, end) - np.maximum(whole, begin)
        np.add.at(table[bucket], whole.astype(np.int64) % slots, part)

    return torch.from_numpy(table / table.sum(1, keepdims=True)).float()


def _on_grid(
    seconds: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    after: np.ndarray,
    grid: np.ndarray,
    schema: EventSchema,
) -> np.ndarray:
    """The nearest time of the grid on the wall clock, in [low, high) seconds from `after` if there
    is one."""
    clock = zone(schema.tz)
    # on the wall clock, as people see it: a time zone's offset need not be a multiple of the grid
    near = clock.wall(after + np.floor(seconds).astype(np.int64))
    wall = np.floor(near / grid + 0.5).astype(np.int64) * grid
    nearest = clock.instant(wall) - after

    # one step of the grid further in where the nearest time is outside the bucket
    inward = (nearest < low).astype(np.int64) - (nearest >= high)
    beside = clock.instant(wall + grid * inward) - after
    return np.where((beside >= low) & (beside < high), beside, np.maximum(nearest, 0))
