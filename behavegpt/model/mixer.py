"""Mixer: decides at each position how much each count expert is to be believed, for all classes
alike.

    logit(b) = sum_j (w_j + g_j(c)) log P_j(b) + phi(x(b), psi(c))

c is what is known of the position (evidence behind each expert, its reliability so far, the
moment), x(b) what the experts say of class b. No parameter belongs to a class: permuting the
classes permutes the logits, and any number of them works, so that weights trained on one log can be
asked about another. The idea is context mixing, from data compression.

Shapes: N positions, M candidate classes of all of them, J experts, K classes, C context features, H
hidden units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

FLOOR = 1e-9  # of a probability


class Memory(NamedTuple):
    """What the count experts say at N positions; see data/memory_read.py, whose Readings these are
    as tensors."""

    owner: torch.Tensor  # (M,) int64 position of each candidate, ascending
    classes: torch.Tensor  # (M,) int64
    probability: torch.Tensor  # (M, J) float32; the last expert is the mixture of the others
    # (M, 2) float32 events and seconds since the class last occurred, -1 for never
    age: torch.Tensor
    rest: torch.Tensor  # (N, J) float32: any other class b has the probability rest * prior(b)
    evidence: torch.Tensor  # (N, J - 1) float32
    reliability: torch.Tensor  # (N, J) float32
    # (N, 5) float32: events, classes, half hour, weekday, seconds since the event before
    context: torch.Tensor


class Mixer(nn.Module):
    """Logits (N, K) from what the experts say; `state_size` > 0 lets hidden states (N, state_size)
    steer the gates.

    It starts as the last expert, the mixture whose shares were fitted to the log, and learns where
    that errs.
    """

    MOMENT = 8  # context features beside evidence and reliability
    DROPOUT = 0.1

    def __init__(
        self,
        experts: int,
        hidden_size: int = 64,
        summary_size: int = 16,
        state_size: int = 0,
        dropout: float = DROPOUT,
    ) -> None:
        """`state_size` > 0: a network is one more expert, and its hidden states steer the gates."""
        super().__init__()
        self.shape = (experts, hidden_size, summary_size, state_size, dropout)
        context = 2 * experts - 1 + self.MOMENT
        self.weight = nn.Parameter(torch.eye(experts)[-1].clone())
        self.context = nn.Linear(context, hidden_size)
        self.gate = nn.Linear(hidden_size, experts)
        self.summary = nn.Linear(hidden_size, summary_size)
        self.candidate = nn.Linear(experts + 3, hidden_size)
        self.from_summary = nn.Linear(summary_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1)
        self.dropout = nn.Dropout(dropout)
        self.network = Network(state_size, hidden_size) if state_size else None
        with torch.no_grad():
            self.gate.weight *= 0.1
            self.score.weight *= 0.1

    def fresh(self) -> Mixer:
        """Another one of this shape, with new weights."""
        return Mixer(*self.shape)

    def forward(
        self,
        memory: Memory,
        log_prior: torch.Tensor,
        state: torch.Tensor | None = None,
        told: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`log_prior` (K,); hidden states (N, C) and logits `told` (N, K) of the network, if it is
        an expert.

        Returns logits (N, K) float32.
        """
        context = self.dropout(self.situation(memory, len(log_prior), state))
        gate = self.weight + self.gate(context)  # (N, J)
        summary = self.from_summary(self.summary(context))  # (N, H)
        owner, classes = memory.owner, memory.classes
        log_rest = torch.log(memory.rest + FLOOR)
        typical = log_rest + _typical(memory, log_prior.expand(log_rest.shape[0], -1))[1][:, None]
        # (N, K), of the classes that are no candidates
        others = gate.sum(1, keepdim=True) * log_prior
        already = others[owner, classes]  # (M,) what stands there of the candidates
        of_typical, of_candidate = summary, summary.index_select(0, owner)
        if self.network is not None and told is not None:
            heard = self.network.hear(context, memory, told)
            others = others + heard.logits
            already = already + heard.apart
            of_typical, of_candidate = (
                of_typical + heard.of_typical,
                of_candidate + heard.of_candidate,
            )
        never = torch.full((typical.shape[0], 2), -1.0, device=typical.device)
        unseen = (gate * log_rest).sum(1) + self._judge(typical, never, of_typical)
        log_chance = torch.log(memory.probability + FLOOR)
        seen = (gate.index_select(0, owner) * log_chance).sum(1) + self._judge(
            log_chance, memory.age, of_candidate
        )
        change = seen - already - unseen.index_select(0, owner)
        return (others + unseen[:, None]).index_put((owner, classes), change, accumulate=True)

    def situation(
        self, memory: Memory, classes: int, state: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The hidden units (N, H) that decide which experts are believed; they know no label."""
        context: torch.Tensor = self.context(context_features(memory, classes))
        if self.network is not None:
            context = context + self.network.state(state)
        return F.gelu(context, approximate="tanh")

    def _judge(
        self, log_chance: torch.Tensor, age: torch.Tensor, summary: torch.Tensor
    ) -> torch.Tensor:
        """phi: (n, J), (n, 2) and (n, H) -> (n,)."""
        never = (age[:, :1] < 0).float()
        since = torch.log1p(age.clamp(min=0)) / torch.tensor([4.0, 16.0], device=age.device)
        of_chance, of_age = self.candidate.weight.split([log_chance.shape[1], 3], 1)
        x = F.linear(log_chance, of_chance / 4, self.candidate.bias) + summary
        x = x + F.linear(torch.cat([since, never], 1), of_age)
        judged: torch.Tensor = self.score(F.gelu(x, approximate="tanh"))[:, 0]
        return judged


class Heard(NamedTuple):
    """What a network's opinion adds."""

    logits: torch.Tensor  # (N, K)
    apart: torch.Tensor  # (M,) what of it would tell the candidates from each other
    of_typical: torch.Tensor  # (N, H) to what judges a class that is no candidate
    of_candidate: torch.Tensor  # (M, H) to what judges a candidate


class Network(nn.Module):
    """A network as one more expert, by its log-probabilities relative to even ones: at first it
    says nothing.

    It tells the classes that are no candidates from each other, and how probable the candidates are
    together. Which candidate it is, it tells only as far as phi learns to listen: there its logits
    are mostly noise beside the counts.
    """

    def __init__(self, state_size: int, hidden_size: int) -> None:
        super().__init__()
        self.state = nn.Linear(state_size, hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, 1)
        self.candidate = nn.Linear(1, hidden_size, bias=False)
        with torch.no_grad():
            self.state.weight.zero_()
            self.gate.weight *= 0.1
            self.gate.bias.fill_(1)
            self.candidate.weight.zero_()

    def hear(self, context: torch.Tensor, memory: Memory, told: torch.Tensor) -> Heard:
        """`context` (N, H), logits `told` (N, K)."""
        even = math.log(told.shape[1])
        told = torch.log_softmax(told, 1)
        together, typical = _typical(memory, told)
        of_candidate = told[memory.owner, memory.classes]
        trust = self.gate(context)
        apart = trust[:, 0].index_select(0, memory.owner) * (
            of_candidate - together.index_select(0, memory.owner)
        )
        return Heard(
            trust * (told + even),
            apart,
            self._opinion(typical + even),
            self._opinion(of_candidate + even),
        )

    def _opinion(self, told: torch.Tensor) -> torch.Tensor:
        """Relative log-probabilities (n,) -> (n, H)."""
        opinion: torch.Tensor = self.candidate(told.clamp(-10, 10)[:, None] / 4)
        return opinion


def _typical(memory: Memory, log_probability: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of log-probabilities (N, K) the log of the mean probability (N,) of the candidates, and of
    the other classes."""
    classes = log_probability.shape[1]
    zero = torch.zeros(memory.rest.shape[0], device=log_probability.device)
    held = zero.index_add(0, memory.owner, log_probability[memory.owner, memory.classes].exp())
    number = zero.index_add(0, memory.owner, torch.ones_like(memory.owner, dtype=zero.dtype))
    of_others = (1 - held) / (classes - number).clamp(min=1)
    return torch.log((held / number.clamp(min=1)).clamp(min=FLOOR)), torch.log(
        of_others.clamp(min=FLOOR)
    )


def part_of(memory: Memory, rows: slice) -> Memory:
    """The memory of some positions, those of a slice without step."""
    first, stop, _ = rows.indices(len(memory.rest))
    ends = torch.searchsorted(
        memory.owner, torch.tensor([first, stop], device=memory.owner.device)
    ).tolist()
    of_candidates = {"owner", "classes", "probability", "age"}
    pieces = {
        name: values[slice(*ends)] if name in of_candidates else values[first:stop]
        for name, values in memory._asdict().items()
    }
    return Memory(**{**pieces, "owner": pieces["owner"] - first})


def context_features(memory: Memory, classes: int) -> torch.Tensor:
    """(N, C) of about unit size, none of which knows a label."""
    known, different, slot, weekday, gap = memory.context.unbind(1)
    angle = slot * (2 * torch.pi / 48)
    moment = [
        torch.log1p(known) / 4,
        torch.log1p(different) / 2,
        torch.sin(angle),
        torch.cos(angle),
        (weekday >= 5).float(),
        torch.log1p(gap.clamp(min=0)) / 10,
        (gap <= 0).float(),
        torch.full_like(gap, float(torch.log(torch.tensor(float(classes)))) / 6),
    ]
    judged = torch.cat([memory.reliability[:, :-1] / 4, memory.reliability[:, -1:] / 12], 1)
    return torch.cat([torch.log1p(memory.evidence) / 4, judged, torch.stack(moment, 1)], 1)
