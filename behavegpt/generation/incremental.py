"""Incremental inference: what the model says of each row's next event, from a KV cache of the
windows.

A window that restarts is read again as a whole. So what a hidden state has seen depends on the
row's own events alone, and the cache gives the logits of running every prefix again.

Shapes: N rows, R events read, K behaviors, C width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from behavegpt.data.collate import argument_name
from behavegpt.data.given import given_fields
from behavegpt.generation.calibration import log_odds_of_users
from behavegpt.generation.state import RowState
from behavegpt.model import BehaveGPTForBehaviorPrediction, EventCache
from behavegpt.model.head import Predicted
from behavegpt.model.mixer import Memory


class Next(NamedTuple):
    """What the model says of the next event of N rows."""

    # (N, K) of the behavior; None where it is given what is drawn first, see `logits_given`
    logits: Tensor | None
    heads: dict[str, Tensor]  # of the auxiliary heads, each (N, ids)
    hidden: Tensor  # (N, C)

    def parts(self) -> list[Tensor]:
        """All tensors, each (N, ...), in a fixed order."""
        logits = [] if self.logits is None else [self.logits]
        return [*logits, *self.heads.values(), self.hidden]


class IncrementalModel:
    """A model with the cache and the gap calibration of the rows that it reads."""

    def __init__(
        self,
        model: BehaveGPTForBehaviorPrediction,
        *,
        use_cache: bool = True,
        personal: bool = True,
        gap_odds: Tensor | None = None,
    ) -> None:
        """`personal`, `gap_odds` (slots, buckets): how gaps are calibrated, see calibration.py."""
        self.model, self.use_cache = model, use_cache
        self.cache: EventCache | None = None
        self.personal = personal and "gap" in model.next_heads
        # (N, buckets) log odds of the users' gaps, made by the first forward
        self.rates: Tensor | None = None
        self.gap_odds = None if gap_odds is None else gap_odds.to(model.device)

    def following(self, state: RowState, heads: Collection[str]) -> Next:
        """What follows each row's last event; `heads`: the auxiliary heads to evaluate."""
        # the first step, and one in which all windows restart, read whole windows into a new cache
        if not self.use_cache:
            following = self._read_without_cache(state, heads)
        elif self.cache is None or state.restarted.all():
            following, self.cache = self._read(state, torch.ones_like(state.restarted), heads)
        else:
            following = self._read_last(state, self.cache, heads)

        # odds multiply, so their logarithms add: by the slot, then by the user
        if "gap" in following.heads:
            gap = self._gap_logits(following.heads["gap"], state.last("slot"))
            following.heads["gap"] = gap if self.rates is None else gap + self.rates
        return following

    def logits_given(
        self, following: Next, state: RowState, new: Mapping[str, np.ndarray]
    ) -> Tensor:
        """Logits (N, K) of the behavior, given what is drawn of the next event: ids (N,) by
        field."""
        device = self.model.device
        fields = given_fields(self.model.config.given or ())
        given = {
            field: torch.from_numpy(new[field].astype(np.int64)).to(device) for field in fields
        }

        past = None
        if state.memory is not None:
            # what the counts say at the drawn time and place
            state.memory.ask({**new, "time": state.time})
            past = Memory(**(self._memory(state, torch.ones_like(state.restarted)) or {}))
        return self.model.logits(Predicted(following.hidden, past, told=self.model.told(given)))

    def take(self, rows: np.ndarray) -> None:
        """Keep the rows (n,) only."""
        index = torch.from_numpy(rows)
        if self.rates is not None:
            self.rates = self.rates[index.to(self.rates.device)]
        if self.cache is not None:
            self.cache.take(index.to(self.model.device))

    def _read_last(self, state: RowState, cache: EventCache, heads: Collection[str]) -> Next:
        """Read the new event of each row, and the whole windows that have restarted."""
        device = self.model.device
        restarted = state.restarted.to(device)
        cache.forget(restarted)

        # one new event a row; the rows that restart are read too, and overwritten below
        new = {
            argument_name(name): state.last(name)[:, None].to(device)
            for name in self.model.config.columns
        }

        memory = self._memory_now(state, torch.ones_like(state.restarted))
        out = self.model(**new, past_key_values=cache, heads=heads, memory=memory)
        logits = None if out.logits is None else out.logits[:, 0]
        following = Next(logits, out.next_logits or {}, out.last_hidden_state[:, 0])

        if state.restarted.any():
            # their windows moved, so positions and keys of all their events changed
            again, fresh = self._read(state, state.restarted, heads)
            cache.put(restarted.nonzero()[:, 0], fresh)
            for stale, right in zip(following.parts(), again.parts(), strict=True):
                stale[restarted] = right
        return following

    def _read(
        self, state: RowState, rows: Tensor, heads: Collection[str]
    ) -> tuple[Next, EventCache]:
        """Read the whole windows of the rows (N,) bool into a new cache."""
        cache = EventCache(self.model.config)
        inputs, mask = self._window(state, rows)

        memory = self._memory_now(state, rows)
        out = self.model(
            **inputs, attention_mask=mask, past_key_values=cache, heads=heads, memory=memory
        )

        # at the first call, when all rows are read
        self._learn_rates(state, out.last_hidden_state)
        hidden = out.last_hidden_state[torch.arange(len(mask), device=mask.device), cache.step.last]
        logits = None if out.logits is None else out.logits[:, 0]
        return Next(logits, out.next_logits or {}, hidden), cache

    def _read_without_cache(self, state: RowState, heads: Collection[str]) -> Next:
        """Read all windows again, for comparison."""
        everybody = torch.ones_like(state.restarted)
        inputs, mask = self._window(state, everybody)
        last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1

        # without what is given there are no logits yet: the encoder alone
        if self.model.config.given:
            states = self.model.model(**inputs, attention_mask=mask).last_hidden_state
            self._learn_rates(state, states)
            hidden = states[last]
            return Next(None, self.model.next_logits(hidden, heads) or {}, hidden)

        memory = self._memory(state, everybody)
        out = self.model(**inputs, attention_mask=mask, select=last, heads=heads, memory=memory)
        self._learn_rates(state, out.last_hidden_state)
        return Next(out.logits, out.next_logits or {}, out.last_hidden_state[last])

    def _memory_now(self, state: RowState, rows: Tensor) -> dict[str, Tensor] | None:
        """What the counts say, where nothing that is still to be drawn is given."""
        return None if self.model.config.given else self._memory(state, rows)

    def _memory(self, state: RowState, rows: Tensor) -> dict[str, Tensor] | None:
        """What the counts of the whole past say at the last events of the rows (N,) bool, with
        memory."""
        if state.memory is None:
            return None
        arrays = state.memory.tensors(np.flatnonzero(rows.numpy()))
        return {name: values.to(self.model.device) for name, values in arrays.items()}

    def _window(self, state: RowState, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs (n, R) of the rows (N,) bool and their mask (n, R), 0 behind the last event."""
        length = state.length[rows]
        width = int(length.max())
        device = self.model.device
        inputs = {
            argument_name(c): state.ids[c][rows, :width].to(device)
            for c in self.model.config.columns
        }
        # histories end at different places of their windows
        return inputs, (torch.arange(width) < length[:, None]).long().to(device)

    def _learn_rates(self, state: RowState, states: Tensor) -> None:
        """At the first forward, from hidden states (N, R, C): how the users' gaps differ from what
        the head expects."""
        if not self.personal or self.rates is not None:
            return

        # each event but the last of a window is followed by a known gap
        before = states.shape[1] - 1
        real = (torch.arange(before) < state.length[:, None] - 1).to(states.device)
        logits = self._gap_logits(
            self.model.next_heads["gap"](states[:, :before]), state.ids["slot"][:, :before]
        )
        followed = torch.from_numpy(state.gaps[:, :before]).to(states.device)
        self.rates = log_odds_of_users(logits.softmax(-1), followed, real)

    def _gap_logits(self, logits: Tensor, slot: Tensor) -> Tensor:
        """The gap head's logits (..., buckets), corrected for the slot (...) of the event
        before."""
        if self.gap_odds is None:
            return logits.float()
        return logits.float() + self.gap_odds[slot.to(logits.device)]
