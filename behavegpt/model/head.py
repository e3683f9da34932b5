"""Prediction layer (eq. 3): MLP to the behaviors, and optionally the user's own history and the
event embedding.

Shape letters: B rows, R positions, N positions that are predicted, C hidden width, K behaviors, J
history counts, D different behaviors in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.model.config import SPECIAL_IDS, BehaveGPTConfig
from behavegpt.model.mixer import Memory, Mixer
from behavegpt.model.mixer import part_of as part_of_memory

NOWHERE = -2  # a document that no position has
# logits held at once while training; more are made and differentiated piece by piece. Each piece
# adds to the whole gradient of the projection, so that with many classes small pieces cost more
# than they save in memory
CHUNK_ELEMENTS = {"cpu": 3 << 20, "cuda": 1 << 27}


class History(NamedTuple):
    """What the predicted positions know of the user's past, without any parameter."""

    # (N, D, J) of D different behaviors of the row; 0 for those of other histories
    counts: torch.Tensor
    classes: torch.Tensor  # (N, D) int64 their classes


def part_of(past: History | Memory, rows: slice) -> History | Memory:
    """What some of the predicted positions know."""
    if isinstance(past, Memory):
        return part_of_memory(past, rows)
    return History(past.counts[rows], past.classes[rows])


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
        # (B, R of t, R of s)
        before = (document[:, :, None] == document[:, None, :]) & (index[:, None] >= index)
        known = behavior >= SPECIAL_IDS
        equal = (behavior[:, :, None] == behavior[:, None]) & known[:, None]  # (B, R, R)
        # a behavior is shown once, where it first occurs; D = the most different ones in a row
        first = known & ~(equal & before & (index[:, None] > index)).any(-1)
        # (B, D)
        place = torch.argsort(~first, dim=1, stable=True)[:, : max(1, int(first.sum(1).max()))]
        column = place[:, None].expand(-1, len(index), -1)
        shown = before.gather(2, column) & first.gather(1, place)[:, None]
        equal = equal.gather(2, column).float()  # (B, R of s, D)
        with _exact(equal.device.type):
            counts = [(weight @ equal)[select] for weight in self._weights(past, before)]
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
        at = last[:, None]
        after = inside & (torch.arange(inside.shape[1], device=at.device) > 0)  # has one before it
        ago = torch.arange(inside.shape[1], device=at.device) - at
        weights = [inside, inside * torch.exp(ago.clamp(max=0) / self.DECAY), ago == 0]
        weights.append(
            inside & self._same_hour(past.slot.gather(1, at), past.slot, past.slots)[:, 0]
        )
        weights += [
            after & _alike(ids.gather(1, at), _shifted(ids, -1))
            for ids in (past.event, past.behavior, past.location)
        ]
        weights.append(
            after
            & self._same_hour(past.slot.gather(1, at), _shifted(past.slot, 0), past.slots)[:, 0]
        )
        known = past.behavior >= SPECIAL_IDS
        # (B, S, J)
        found = torch.stack([weight.float() for weight in weights], dim=-1) * known[..., None]
        counts = torch.zeros_like(found).scatter_add(1, first[..., None].expand_as(found), found)
        return History(counts, (past.behavior - SPECIAL_IDS).clamp(min=0))

    def _weights(self, past: Past, before: torch.Tensor) -> Iterator[torch.Tensor]:
        """The J weights (B, R of t, R of s) with which a behavior at s counts at t."""
        index = torch.arange(before.shape[1], device=before.device)
        yield before.float()
        yield before * torch.exp((index - index[:, None]).clamp(max=0) / self.DECAY)
        yield (before & (index == index[:, None])).float()
        yield (before & self._same_hour(past.slot, past.slot, past.slots)).float()
        # s has one before it
        after = before & (_shifted(past.document, NOWHERE) == past.document)[:, None]
        for ids in (past.event, past.behavior, past.location):
            yield (after & _alike(ids[:, :, None], _shifted(ids, -1)[:, None])).float()
        yield (after & self._same_hour(past.slot, _shifted(past.slot, 0), past.slots)).float()

    def _same_hour(self, slot: torch.Tensor, other: torch.Tensor, slots: int) -> torch.Tensor:
        """(B, R) and (B, R) slots -> (B, R, R): at most an hour apart on the clock."""
        day = (slot[:, :, None] - other[:, None]).abs().float() / slots
        return torch.minimum(day, 1 - day) <= self.HOUR + 1e-6


def _exact(device: str) -> AbstractContextManager[None]:
    """No autocast: it would round the counts' products to bf16, which has no odd numbers beyond
    256."""
    # without autocast nothing at all, so that an exported graph holds no such region
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


def _alike(ids: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Equal and known: two unknown events need not be the same one."""
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


class MemoryHead(nn.Module):
    """Mixes a network's logits with what the counts of the whole past say; without blocks the
    counts alone."""

    HIDDEN, SUMMARY = 32, 16  # of the mixer: those of the universal one, whose weights fit

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        experts = len(config.memory_experts or ()) + 1  # and their mixture
        state = config.hidden_size if config.num_hidden_layers else 0
        self.mixer = Mixer(
            experts, self.HIDDEN, self.SUMMARY, state, min(Mixer.DROPOUT, config.dropout)
        )
        self.log_prior: torch.Tensor
        self.register_buffer(
            "log_prior", torch.full((config.num_behaviors,), -math.log(config.num_behaviors))
        )

    def forward(
        self, hidden: torch.Tensor, logits: torch.Tensor | None, memory: Any
    ) -> torch.Tensor:
        """hidden (N, C), logits (N, K) of the network, if there is one -> logits (N, K) float32 of
        the mixture."""
        # shapes, not len(): that would fix their sizes in an exported graph
        if not isinstance(memory, Memory) or memory.rest.shape[0] != hidden.shape[0]:
            given = "none" if not isinstance(memory, Memory) else f"those of {len(memory.rest):,}"
            raise ValueError(
                f"a model with memory needs the counts at its {len(hidden):,} predicted "
                f"positions, {given} are given; "
                "open it by behavegpt.load, which makes them (docs/universal.md)"
            )
        with _exact(hidden.device.type):
            told = None if logits is None else logits.float()
            mixed: torch.Tensor = self.mixer(memory, self.log_prior, hidden.float(), told)
        return mixed


class GradientSink(NamedTuple):
    """Where the projection's gradients are added up while a step's logits come in chunks."""

    weight: torch.Tensor  # (K, hidden units)
    bias: torch.Tensor  # (K,)


class _SinkingLinear(torch.autograd.Function):
    """x @ weight.T + bias, whose backward adds the parameters' gradients to a sink instead of
    making new ones."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, sink: GradientSink
    ) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.sink = sink
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        sink = ctx.sink
        # under autocast: its product, 10 x as fast
        if gradient.is_cuda and gradient.dtype != sink.weight.dtype:
            sink.weight.add_(gradient.T @ x.to(gradient.dtype))
        else:
            wide = gradient.to(sink.weight.dtype)
            sink.weight.addmm_(wide.T, x.to(wide.dtype))
        sink.bias.add_(gradient.sum(0, dtype=sink.bias.dtype))
        return gradient @ weight.to(gradient.dtype), None, None, None


class PredictionHead(nn.Module):
    """m = W2 gelu(W1 h + e1) + e2 (eq. 3), plus the optional history and embedding terms."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.head_size or config.hidden_size
        self.dense = nn.Linear(width, hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.projection = nn.Linear(hidden, config.num_behaviors)
        self.history_gate: HistoryGate | None = HistoryGate(config) if config.history_head else None
        self.tied_projection = nn.Linear(width, config.embedding_size) if config.tied_head else None
        self.memory = MemoryHead(config) if config.memory else None

    def forward(
        self,
        hidden: torch.Tensor,
        past: History | Memory | None = None,
        event_embedding: torch.Tensor | None = None,
        sink: GradientSink | None = None,
    ) -> torch.Tensor:
        """hidden (N, C) -> logits (N, K). `event_embedding` (ids, d): the events' table, for the
        tied head."""
        if self.memory is not None and self.memory.mixer.network is None:
            return self.memory(hidden, None, past)
        x = self.activation(self.dense(hidden))
        if sink is None:
            logits = self.projection(x)
        else:
            logits = _SinkingLinear.apply(x, self.projection.weight, self.projection.bias, sink)
        if self.tied_projection is not None and event_embedding is not None:
            logits = logits + self.tied_projection(hidden) @ event_embedding[SPECIAL_IDS:].T
        if self.history_gate is not None and isinstance(past, History):
            logits = logits.scatter_add(
                1, past.classes, self.history_gate(hidden, past).to(logits.dtype)
            )
        if self.memory is not None:
            logits = self.memory(hidden, logits, past)
        return logits

    @torch.no_grad()
    def set_prior(self, counts: torch.Tensor) -> None:
        """Start from the training frequencies (K,): bias of the logits, and what the history is
        compared with."""
        smoothed = counts.to(self.projection.bias) + 0.5
        log_prior = torch.log(smoothed / smoothed.sum())
        self.projection.bias.copy_(log_prior)
        if self.memory is not None:
            self.projection.bias.zero_()  # the counts tell the frequencies
            self.memory.log_prior.copy_(log_prior)
        if self.history_gate is not None:
            self.history_gate.log_prior.copy_(log_prior)


class HeadLoss(NamedTuple):
    """A loss sum with what the loss's state is updated from."""

    total: torch.Tensor  # () weighted sum over the N positions
    class_loss: torch.Tensor  # (K,) detached sum of unweighted losses per class
    class_count: torch.Tensor  # (K,) positions per class


def head_loss(
    head: PredictionHead,
    event_embedding: torch.Tensor | None,
    criterion: Any,
    hidden: torch.Tensor,
    target: torch.Tensor,
    past: History | Memory | None,
    classes: int,
) -> HeadLoss:
    """Loss of N predicted positions under `criterion` (behavegpt.losses.Loss); `target` (N,) holds
    no ignored one.

    With many classes the logits are made, and differentiated, in chunks: the peak memory is one
    chunk instead of (N, K), and the weights are known beforehand, so DRO costs nothing extra.
    `event_embedding` (ids, d), if tied.
    """
    class_count = torch.bincount(target, minlength=classes).float()
    rows = max(1, CHUNK_ELEMENTS["cpu" if hidden.device.type == "cpu" else "cuda"] // classes)
    if hidden.shape[0] <= rows or not torch.is_grad_enabled():
        per_event = criterion.per_event(head(hidden, past, event_embedding), target)
        total = (criterion.weight(target) * per_event).sum()
        return HeadLoss(total, _by_class(per_event, target, classes), class_count)
    parameters = [*head.parameters(), *([] if event_embedding is None else [event_embedding])]
    total, class_loss = _ChunkedLoss.apply(
        head, event_embedding, criterion, target, past, classes, rows, hidden, *parameters
    )
    return HeadLoss(total, class_loss, class_count)


def _by_class(per_event: torch.Tensor, target: torch.Tensor, classes: int) -> torch.Tensor:
    zero = torch.zeros(classes, dtype=torch.float32, device=target.device)
    return zero.index_add(0, target, per_event.detach().float())


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward, chunk by chunk, and scaled in the backward, which can run
    once."""

    @staticmethod
    def forward(
        ctx: Any,
        head: PredictionHead,
        event_embedding: torch.Tensor | None,
        criterion: Any,
        target: torch.Tensor,
        past: History | Memory | None,
        classes: int,
        rows: int,
        hidden: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros((), device=hidden.device)
        class_loss = torch.zeros(classes, device=hidden.device)
        gradients = {id(p): torch.zeros_like(p) for p in parameters if p.requires_grad}
        sink = _sink_of(head, gradients)
        apart = () if sink is None else (id(head.projection.weight), id(head.projection.bias))
        wanted = [p for p in parameters if p.requires_grad and id(p) not in apart]
        hidden_gradient = torch.empty_like(hidden)
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            with torch.enable_grad():
                piece = hidden[part].detach().requires_grad_()
                known = None if past is None else part_of(past, part)
                per_event = criterion.per_event(
                    head(piece, known, event_embedding, sink), target[part]
                )
                loss = (criterion.weight(target[part]) * per_event).sum()
            hidden_gradient[part], *found = torch.autograd.grad(
                loss, [piece, *wanted], allow_unused=True
            )
            for parameter, new in zip(wanted, found, strict=True):
                if new is not None:
                    gradients[id(parameter)] += new
            total += loss.detach()
            class_loss += _by_class(per_event, target[part], classes)
        # not saved_tensors: the backward scales these in place and gives them away, so that no
        # second copy is made
        ctx.gradients = [hidden_gradient, *(gradients.get(id(p)) for p in parameters)]
        ctx.mark_non_differentiable(class_loss)
        return total, class_loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once; call the model again")
        return (None,) * 7 + tuple(None if g is None else g.mul_(scale) for g in gradients)


def _sink_of(head: PredictionHead, gradients: dict[int, torch.Tensor]) -> GradientSink | None:
    """Where the projection's gradients go; None if it is frozen, or no plain linear layer (as under
    an adapter)."""
    found = [gradients.get(id(p)) for p in head.projection.parameters()]
    if (
        type(head.projection) is not nn.Linear
        or len(found) != 2
        or found[0] is None
        or found[1] is None
    ):
        return None
    return GradientSink(found[0], found[1])
