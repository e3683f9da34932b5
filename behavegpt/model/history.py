"""The history head's counts: how often a user showed each behavior before, and what they add to its
logit.

Shape letters: B rows, R positions, S positions of a cache, N positions that are predicted, C hidden
width, K behaviors, J history counts, D different behaviors in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from behavegpt.model.config import SPECIAL_IDS, BehaveGPTConfig

NOWHERE = -2  # a document that no position has


class History(NamedTuple):
    """What the predicted positions know of the user's past, without any parameter."""

    # (N, D, J) of D different behaviors of the row; 0 for those of other histories
    counts: torch.Tensor
    classes: torch.Tensor  # (N, D) int64 their classes


class Past(NamedTuple):
    """Ids of the events of packed rows, each (B, R), and how many time slots a day has."""

    event: torch.Tensor
    behavior: torch.Tensor
    location: torch.Tensor
    slot: torch.Tensor
    document: torch.Tensor
    slots: int


class HistoryFeatures(nn.Module):
    """Counts of the user's own past behaviors (a pointer head: repetition dominates real behavior).

    For a position t and a behavior b that the user showed at positions s <= t of the same history,
    J = 8 counts: of b so far; the same, decayed by exp(-(t - s) / 8); at t itself; within an hour
    of the day around that of t; and right after an event, a behavior, a location, or an hour of the
    day like the one at t (unknown ones are like none). Only (t, s) pairs are formed, so the cost
    does not depend on K.
    """

    COUNTS = 8
    DECAY = 8.0  # events
    HOUR = 1 / 24  # of a day

    @torch.no_grad()
    def forward(self, past: Past, select: torch.Tensor) -> History:
        """Counts at the selected positions (B, R) bool of packed rows."""
        behavior, document = past.behavior, past.document

        index = torch.arange(behavior.shape[1], device=behavior.device)
        # which positions s a position t may count: its own and earlier ones of the same history
        # (B, R of t, R of s)
        before = (document[:, :, None] == document[:, None, :]) & (index[:, None] >= index)
        known = behavior >= SPECIAL_IDS
        equal = (behavior[:, :, None] == behavior[:, None]) & known[:, None]  # (B, R, R)

        # a behavior is shown once, where it first occurs; D = the most different ones in a row
        first = known & ~(equal & before & (index[:, None] > index)).any(-1)

        # (B, D)
        place = torch.argsort(~first, dim=1, stable=True)[:, : max(1, int(first.sum(1).max()))]
        column = place[:, None].expand(-1, len(index), -1)
        shown = before.gather(2, column) & first.gather(1, place)[:, None]  # (B, R of t, D)

        equal = equal.gather(2, column).float()  # (B, R of s, D)

        # weights times occurrences: one product (B, R, R) @ (B, R, D) for each of the J counts
        with exact(equal.device.type):
            counts = [(weight @ equal)[select] for weight in self._weights(past, before)]

        # padding and unknown have no class; their counts are 0, so it does not matter where they go
        classes = (behavior.gather(1, place) - SPECIAL_IDS).clamp(min=0)
        classes = classes[:, None].expand(-1, len(index), -1)[select]

        return History(torch.stack(counts, dim=-1) * shown[select][..., None], classes)

    @torch.no_grad()
    def at_last(self, past: Past, first: torch.Tensor, last: torch.Tensor) -> History:
        """Counts at the last event (B,) of rows (B, S) that hold one history each; document 0, and
        -1 behind it.

        `first` (B, S): where the behavior of each event first occurs. Costs S a row instead of S *
        S.
        """
        inside = past.document == 0

        newest = last[:, None]  # (B, 1)
        index = torch.arange(inside.shape[1], device=newest.device)  # (S,)
        after = inside & (index > 0)  # has an event before it
        ago = index - newest  # (B, S) events, 0 at the last one, negative before

        # the J counts in the order of `_weights`, each (B, S)
        weights = [inside, inside * torch.exp(ago.clamp(max=0) / self.DECAY), ago == 0]
        weights.append(
            inside & self._same_hour(past.slot.gather(1, newest), past.slot, past.slots)[:, 0]
        )
        weights += [
            after & _alike(ids.gather(1, newest), _shifted(ids, -1))
            for ids in (past.event, past.behavior, past.location)
        ]
        weights.append(
            after
            & self._same_hour(past.slot.gather(1, newest), _shifted(past.slot, 0), past.slots)[:, 0]
        )

        known = past.behavior >= SPECIAL_IDS
        shown = torch.stack([weight.float() for weight in weights], dim=-1) * known[..., None]
        # a behavior's counts come together where it first occurs; elsewhere they stay 0
        counts = torch.zeros_like(shown).scatter_add(1, first[..., None].expand_as(shown), shown)

        return History(counts, (past.behavior - SPECIAL_IDS).clamp(min=0))

    def _weights(self, past: Past, before: torch.Tensor) -> Iterator[torch.Tensor]:
        """The J weights (B, R of t, R of s) with which a behavior at s counts at t."""
        # so far; decayed; at t itself; around the same hour
        index = torch.arange(before.shape[1], device=before.device)
        yield before.float()
        # clamped: the exponential of a later s would overflow, and inf * False is NaN
        yield before * torch.exp((index - index[:, None]).clamp(max=0) / self.DECAY)
        yield (before & (index == index[:, None])).float()
        yield (before & self._same_hour(past.slot, past.slot, past.slots)).float()

        # the first event of a history follows none, not the last one of its neighbor in the row
        after = before & (_shifted(past.document, NOWHERE) == past.document)[:, None]
        for ids in (past.event, past.behavior, past.location):
            yield (after & _alike(ids[:, :, None], _shifted(ids, -1)[:, None])).float()
        yield (after & self._same_hour(past.slot, _shifted(past.slot, 0), past.slots)).float()

    def _same_hour(self, slot: torch.Tensor, other: torch.Tensor, slots: int) -> torch.Tensor:
        """(B, R) and (B, R) slots -> (B, R, R): at most an hour apart on the clock."""
        day = (slot[:, :, None] - other[:, None]).abs().float() / slots  # distance, in days
        # midnight is no border; the tolerance is for rounding, an hour itself counts
        return torch.minimum(day, 1 - day) <= self.HOUR + 1e-6


def exact(device: str) -> AbstractContextManager[None]:
    """No autocast: it would round the counts' products to bf16, which has no odd numbers beyond
    256."""
    # entered only where autocast is on: an exported graph shall not hold an empty region
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


def _alike(ids: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Equal and known, (B, R, R) or (B, R): two unknown events need not be the same one."""
    return (ids == others) & (ids >= SPECIAL_IDS)


def _shifted(x: torch.Tensor, fill: int) -> torch.Tensor:
    """x (B, R) moved one position to the right."""
    return torch.cat([x.new_full((x.shape[0], 1), fill), x[:, :-1]], dim=1)


class HistoryGate(nn.Module):
    """What the user's counts c_j(b) add to the logit of b: sum_j g_j(h) * log(1 + c_j(b) * exp(a_j)
    / prior(b)).

    With one gate at 1 and the others at 0 this is the smoothed frequency (c + w * prior) / (n + w),
    w = exp(-a), of a count model; the gates, linear in the hidden state, say which counts matter
    now.
    """

    START = 1 / HistoryFeatures.COUNTS  # of each gate: their geometric mean
    PSEUDO_EVENTS = 10.0  # w at the start

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, HistoryFeatures.COUNTS)
        self.log_prior: torch.Tensor
        self.log_scale = nn.Parameter(torch.empty(HistoryFeatures.COUNTS))
        self.register_buffer("log_prior", torch.empty(config.num_behaviors))

    def forward(self, hidden: torch.Tensor, history: History) -> torch.Tensor:
        """hidden (N, C) -> (N, D) to be added to the logits of `history.classes`."""
        scale = torch.exp(self.log_scale - self.log_prior[history.classes][..., None])  # (N, D, J)
        return (torch.log1p(history.counts * scale) * self.gate(hidden)[:, None]).sum(-1)

    def add_to(self, logits: torch.Tensor, hidden: torch.Tensor, history: History) -> torch.Tensor:
        """logits (N, K) and hidden (N, C) -> logits (N, K) with what the counts add."""
        return logits.scatter_add(1, history.classes, self(hidden, history).to(logits.dtype))


def class_prior(counts: torch.Tensor) -> torch.Tensor:
    """Frequencies (K,) of classes with so many training events, half an event added to each."""
    # a class without training events still has a logarithm
    smoothed = counts + 0.5
    return smoothed / smoothed.sum()


def log_shares(counts: torch.Tensor) -> torch.Tensor:
    """Log frequencies (K,) of classes with so many training events, half an event added to each."""
    return class_prior(counts).log()
