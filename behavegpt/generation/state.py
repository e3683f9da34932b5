"""The state of a rollout: each row's window of events, its clock and its random numbers.

A row is one sample of one user. When its window is full, it restarts from its last `keep` events.
Shapes: N rows, L window (the model's max_length).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from behavegpt.data.collate import gap_buckets
from behavegpt.data.memory_counts import Counts
from behavegpt.data.memory_live import LiveMemory
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import parse_date
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.generation.own_past import OwnPast
from behavegpt.generation.sampling import Uniforms, time_grid
from behavegpt.generation.settings import GenerationSettings
from behavegpt.ingest.plan import TIME_RANGE
from behavegpt.model import BehaveGPTConfig


@dataclass
class RowState:
    """N rows on their way; `take` keeps some of them, `append` moves all of them one event on."""

    schema: EventSchema
    keep: int  # events that stay when a window restarts
    ids: dict[str, Tensor]  # field -> (N, L) int64
    length: Tensor  # (N,) events in the window
    restarted: Tensor  # (N,) bool: windows that no cache holds
    gaps: np.ndarray  # (N, L - 1) buckets of the gaps in the given window
    user: np.ndarray  # (N,) index of the user
    sample: np.ndarray  # (N,)
    time: np.ndarray  # (N,) epoch seconds of the last event
    horizon: np.ndarray  # (N,) epoch seconds of the last one that may be drawn
    grid: np.ndarray  # (N,) seconds that the user's times are multiples of
    uniforms: Uniforms
    own: OwnPast | None  # the given history, where a policy draws from it
    memory: LiveMemory | None  # counts of the whole past, of a model with memory

    @classmethod
    def start(
        cls,
        config: BehaveGPTConfig,
        schema: EventSchema,
        encoded: EncodedHistories,
        rows: tuple[np.ndarray, np.ndarray],
        settings: GenerationSettings,
        needs_own_past: bool,
        counts: Counts | None = None,
    ) -> RowState:
        """The state before the first step; `rows`: user and sample of each, (N,); `counts`: a
        memory's tables."""
        user, sample = rows
        begin, end = encoded.offsets[user], encoded.offsets[user + 1]
        limit = config.max_length
        names = dict.fromkeys((*config.columns, *schema.input_fields, "behavior"))

        # (N, L): the newest events first to last; behind them the last again, which nobody reads
        length = np.minimum(end - begin, limit)
        index = np.minimum((end - length)[:, None] + np.arange(limit), end[:, None] - 1)
        window = {name: encoded.columns[name].astype(np.int64)[index] for name in names}

        times = encoded.columns["time"]
        now = times[end - 1].astype(np.int64)
        memory = None
        if counts is not None:
            memory = LiveMemory(encoded.columns, begin, end, counts, settings.steps)
        own = None
        if needs_own_past:
            own = OwnPast({name: encoded.columns[name] for name in (*names, "time")}, begin, end)

        users = zip(begin, end, strict=True)
        return cls(
            schema=schema,
            keep=min(settings.keep or max(1, limit // 2), limit),
            ids={name: torch.from_numpy(ids) for name, ids in window.items()},
            length=torch.from_numpy(length),
            restarted=torch.ones(len(user), dtype=torch.bool),
            gaps=gap_buckets(np.diff(times[index].astype(np.int64), axis=1)),
            user=user,
            sample=sample,
            time=now,
            horizon=horizon_of(now, settings),
            grid=np.array([time_grid(times[low:high], schema) for low, high in users]),
            uniforms=Uniforms(settings.seed, encoded.users.take(user).to_pylist(), sample),
            own=own,
            memory=memory,
        )

    @property
    def limit(self) -> int:
        """L."""
        return self.ids["behavior"].shape[1]

    def last(self, field: str) -> Tensor:
        """Ids (N,) of a field at each row's last event."""
        return self.ids[field].gather(1, (self.length - 1)[:, None])[:, 0]

    def own_hours(self) -> np.ndarray:
        """Weights (N, slots) of the time of day: how often the row's window shows each slot or one
        beside it."""
        real = (torch.arange(self.limit) < self.length[:, None]).double()  # (N, L)
        counts = real.new_zeros(len(real), self.schema.slots).scatter_add(1, self.ids["slot"], real)
        # half a count from each neighbor: midnight is no border; a little everywhere, as none is
        # ruled out
        return (counts + 0.5 * (counts.roll(1, 1) + counts.roll(-1, 1)) + 0.1).numpy()

    def append(self, new: Mapping[str, np.ndarray]) -> None:
        """Add one event (N,) a row; a full window keeps its last `keep` events, the new one
        included."""
        self.restarted = self.length == self.limit
        if self.restarted.any():
            begin = self.limit - self.keep + 1  # the new event is one of the `keep`
            for ids in self.ids.values():
                ids[self.restarted, : self.keep - 1] = ids[self.restarted, begin:]
        self.length = torch.where(self.restarted, self.keep - 1, self.length)

        rows = torch.arange(len(self.length))
        new = {**new, "time": self.time}
        for name, ids in self.ids.items():
            ids[rows, self.length] = torch.from_numpy(new[name].astype(np.int64))
        self.length = self.length + 1
        if self.memory is not None:
            self.memory.append(new)

    def take(self, rows: np.ndarray) -> None:
        """Keep the rows (n,) only."""
        index = torch.from_numpy(rows)
        self.ids = {name: ids[index] for name, ids in self.ids.items()}
        self.length, self.restarted = self.length[index], self.restarted[index]
        for name in ("user", "sample", "time", "horizon", "grid"):
            setattr(self, name, getattr(self, name)[rows])
        self.uniforms.take(rows)
        for kept in (self.own, self.memory):
            if kept is not None:
                kept.take(rows)


def horizon_of(now: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """The last moment (N,) at which an event may be drawn after `now` (N,), in epoch seconds."""
    # the times that a store can hold, or the span that was asked for
    horizon = np.full(len(now), parse_date(TIME_RANGE[1]) - 1)
    if settings.span is not None:
        horizon = np.minimum(horizon, now + settings.span)
    return horizon
