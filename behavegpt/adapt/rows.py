"""The rows of a generation on their way: each one's window of events, its clock and its random numbers.

Shapes: N rows (a row is one sample of one user), L window (the model's max_length), K behaviors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch

from behavegpt.adapt.draw import Uniforms, time_grid
from behavegpt.adapt.policies import OwnPast
from behavegpt.adapt.rates import log_odds_of_users
from behavegpt.data.memory_live import LiveMemory
from behavegpt.data.pack import argument_name, gap_buckets
from behavegpt.data.plan import TIME_RANGE
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import parse_date
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.model import BehaveGPTForBehaviorPrediction, EventCache


class Next(NamedTuple):
    """What the model says of the next event of N rows."""

    logits: torch.Tensor  # (N, K) of the behavior
    heads: dict[str, torch.Tensor]  # of the second heads, each (N, ids)
    hidden: torch.Tensor  # (N, C)

    def parts(self) -> list[torch.Tensor]:
        """All tensors, in a fixed order."""
        return [self.logits, *self.heads.values(), self.hidden]


class Rows:
    """The state of N rows."""

    def __init__(
        self,
        model: BehaveGPTForBehaviorPrediction,
        schema: EventSchema,
        encoded: EncodedHistories,
        user: np.ndarray,
        sample: np.ndarray,
        *,
        seed: int = 0,
        keep: int | None = None,
        cached: bool = True,
        span: int | None = None,
        look_back: bool = False,
        personal: bool = True,
        gap_odds: torch.Tensor | None = None,
        steps: int = 0,
    ) -> None:
        """`user`, `sample` (N,): whose future; `span`: seconds until a row ends; `steps`: events that may follow.

        `look_back`: whether a policy needs the past; `personal`, `gap_odds` (slots, buckets): see rates.py.
        """
        self.model, self.schema, self.cached = model, schema, cached
        self.user, self.sample = user, sample
        begin, end = encoded.offsets[user], encoded.offsets[user + 1]
        self.limit = model.config.max_length
        self.keep = min(keep or max(1, self.limit // 2), self.limit)
        names = dict.fromkeys((*model.config.columns, *schema.input_fields, "behavior"))
        length = np.minimum(end - begin, self.limit)
        index = np.minimum((end - length)[:, None] + np.arange(self.limit), end[:, None] - 1)
        self.ids = {name: torch.from_numpy(encoded.columns[name].astype(np.int64)[index]) for name in names}  # (N, L)
        self.length = torch.from_numpy(length)
        times = encoded.columns["time"]
        self.time = times[end - 1].astype(np.int64)
        self.horizon = np.full(len(user), parse_date(TIME_RANGE[1]) - 1)
        if span is not None:
            self.horizon = np.minimum(self.horizon, self.time + span)
        self.grid = np.array([time_grid(times[low:high], self.schema) for low, high in zip(begin, end, strict=True)])
        labels = encoded.users.take(user).to_pylist()
        self.uniforms = Uniforms(seed, labels, sample)
        columns = {name: encoded.columns[name] for name in (*names, "time")}
        self.own = OwnPast(columns, begin, end) if look_back else None
        self.memory: LiveMemory | None = None
        if model.counts is not None:
            self.memory = LiveMemory(encoded.columns, begin, end, model.counts, steps)
        self.cache: EventCache | None = None
        self.restarted = torch.ones(len(user), dtype=torch.bool)  # windows that the cache does not hold
        self.gaps = gap_buckets(np.diff(times[index].astype(np.int64), axis=1))  # (N, L - 1)
        self.personal = personal and "gap" in model.next_heads
        self.rates: torch.Tensor | None = None  # (N, buckets) log odds, made by the first forward
        self.gap_odds = None if gap_odds is None else gap_odds.to(model.device)

    def append(self, new: Mapping[str, np.ndarray]) -> None:
        """Add one event (N,) a row; a full window keeps its last `keep` events, the new one included."""
        self.restarted = self.length == self.limit
        rows = torch.arange(len(self.length))
        if self.restarted.any():
            for ids in self.ids.values():
                ids[self.restarted, : self.keep - 1] = ids[self.restarted, self.limit - self.keep + 1 :]
        self.length = torch.where(self.restarted, self.keep - 1, self.length)
        for name, ids in self.ids.items():
            ids[rows, self.length] = torch.from_numpy(new[name].astype(np.int64))
        self.length = self.length + 1
        if self.memory is not None:
            self.memory.append({**new, "time": self.time})

    def take(self, rows: np.ndarray) -> None:
        """Keep the rows (n,) only."""
        index = torch.from_numpy(rows)
        self.ids = {name: ids[index] for name, ids in self.ids.items()}
        self.length, self.restarted = self.length[index], self.restarted[index]
        self.user, self.sample, self.time = self.user[rows], self.sample[rows], self.time[rows]
        self.horizon, self.grid = self.horizon[rows], self.grid[rows]
        self.uniforms.take(rows)
        if self.rates is not None:
            self.rates = self.rates[index.to(self.rates.device)]
        for kept in (self.own, self.memory, self.cache):
            if isinstance(kept, OwnPast | LiveMemory):
                kept.take(rows)
            elif kept is not None:
                kept.take(index.to(self.model.device))

    def forward(self, heads: Collection[str]) -> Next:
        """What follows each row's last event."""
        everything = torch.ones_like(self.restarted)
        if not self.cached:
            found = self._run_again(heads)
        elif self.cache is None or self.restarted.all():
            found, self.cache = self._read(everything, heads)
        else:
            found = self._go_on(self.cache, heads)
        if "gap" in found.heads:
            now = self.ids["slot"].gather(1, (self.length - 1)[:, None])[:, 0]
            found.heads["gap"] = self._gap_logits(found.heads["gap"], now)
            if self.rates is not None:
                found.heads["gap"] = found.heads["gap"] + self.rates
        return found

    def _run_again(self, heads: Collection[str]) -> Next:
        """Without a cache: the windows of all rows."""
        inputs, mask = self._window(torch.ones_like(self.restarted))
        last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
        told = self._told(torch.ones_like(self.restarted))
        out = self.model(**inputs, attention_mask=mask, select=last, heads=heads, memory=told)
        self._learn_rates(out.last_hidden_state)
        return Next(out.logits, out.next_logits or {}, out.last_hidden_state[last])

    def _go_on(self, cache: EventCache, heads: Collection[str]) -> Next:
        """The new event of each row; the windows of rows that started anew."""
        device = self.model.device
        restarted = self.restarted.to(device)
        cache.forget(restarted)
        at = (self.length - 1)[:, None]
        new = {argument_name(c): self.ids[c].gather(1, at).to(device) for c in self.model.config.columns}
        told = self._told(torch.ones_like(self.restarted))
        out = self.model(**new, past_key_values=cache, heads=heads, memory=told)
        found = Next(out.logits[:, 0], out.next_logits or {}, out.last_hidden_state[:, 0])
        if self.restarted.any():
            again, fresh = self._read(self.restarted, heads)
            cache.put(restarted.nonzero()[:, 0], fresh)
            for old, right in zip(found.parts(), again.parts(), strict=True):
                old[restarted] = right
        return found

    def _learn_rates(self, states: torch.Tensor) -> None:
        """At the first forward, from hidden states (N, R, C)."""
        if not self.personal or self.rates is not None:
            return
        before = states.shape[1] - 1
        real = (torch.arange(before) < self.length[:, None] - 1).to(states.device)
        logits = self._gap_logits(self.model.next_heads["gap"](states[:, :before]), self.ids["slot"][:, :before])
        followed = torch.from_numpy(self.gaps[:, :before]).to(states.device)
        self.rates = log_odds_of_users(logits.softmax(-1), followed, real)

    def _gap_logits(self, logits: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """The gap head's logits (..., buckets), corrected for the slot (...) of the event before."""
        return logits.float() if self.gap_odds is None else logits.float() + self.gap_odds[slot.to(logits.device)]

    def own_hours(self) -> np.ndarray:
        """Weights (N, slots) of the time of day: how often the row's window shows each slot or one beside it."""
        real = (torch.arange(self.limit) < self.length[:, None]).double()
        counts = real.new_zeros(len(real), self.schema.slots).scatter_add(1, self.ids["slot"], real)
        return (counts + 0.5 * (counts.roll(1, 1) + counts.roll(-1, 1)) + 0.1).numpy()

    def _read(self, rows: torch.Tensor, heads: Collection[str]) -> tuple[Next, EventCache]:
        """The whole window of the rows (N,) bool, into a new cache."""
        cache = EventCache(self.model.config)
        inputs, mask = self._window(rows)
        out = self.model(**inputs, attention_mask=mask, past_key_values=cache, heads=heads, memory=self._told(rows))
        self._learn_rates(out.last_hidden_state)
        hidden = out.last_hidden_state[torch.arange(len(mask), device=mask.device), cache.step.last]
        return Next(out.logits[:, 0], out.next_logits or {}, hidden), cache

    def _told(self, rows: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """What the counts of the whole past say at the last events of the rows (N,) bool, with memory."""
        if self.memory is None:
            return None
        told = self.memory.tensors(np.flatnonzero(rows.numpy()))
        return {name: values.to(self.model.device) for name, values in told.items()}

    def _window(self, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs of the rows (N,) bool and their mask, 0 behind the last event."""
        length = self.length[rows]
        width = int(length.max())
        device = self.model.device
        inputs = {argument_name(c): self.ids[c][rows, :width].to(device) for c in self.model.config.columns}
        return inputs, (torch.arange(width) < length[:, None]).long().to(device)
