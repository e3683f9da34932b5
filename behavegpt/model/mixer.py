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
    # (N, J) float32: of J - 1 experts, and the weight of the events it was judged by
    reliability: torch.Tensor
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

        # evidence of J - 1 experts, reliability of J, and the moment
        context = 2 * experts - 1 + self.MOMENT
        # starts as the last expert alone: the mixture, whose shares were fitted to the log
        self.weight = nn.Parameter(torch.eye(experts)[-1].clone())
        self.context = nn.Linear(context, hidden_size)
        self.gate = nn.Linear(hidden_size, experts)
        self.summary = nn.Linear(hidden_size, summary_size)
        # per candidate: what J experts say, two ages, and whether it never occurred
        self.candidate = nn.Linear(experts + 3, hidden_size)
        self.from_summary = nn.Linear(summary_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1)

        self.dropout = nn.Dropout(dropout)

        self.network = Network(state_size, hidden_size) if state_size else None

        # phi and the gates say little at first, so that the mixture decides
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
        network_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`log_prior` (K,); hidden states (N, C) and logits (N, K) of the network, if it is
        an expert.

        Returns logits (N, K) float32.
        """
        context = self.dropout(self.situation(memory, len(log_prior), state))
        gate = self.weight + self.gate(context)  # (N, J)
        summary = self.from_summary(self.summary(context))  # psi(c), (N, H)

        # a class that is no candidate, for all of them alike: its own prior is added at the end
        log_rest = _log(memory.rest)  # (N, J)
        typical = log_rest + _typical(memory, log_prior.expand(log_rest.shape[0], -1))[1][:, None]

        # (N, K) of all classes as if none were a candidate; each expert says rest_j * prior(b)
        owner, classes = memory.owner, memory.classes
        others = gate.sum(1, keepdim=True) * log_prior

        already = others[owner, classes]  # (M,) what stands there of the candidates

        of_typical, of_candidate = summary, summary.index_select(0, owner)
        if self.network is not None and network_logits is not None:
            heard = self.network.hear(context, memory, network_logits)
            others = others + heard.logits
            already = already + heard.apart
            of_typical = of_typical + heard.of_typical
            of_candidate = of_candidate + heard.of_candidate

        # (N,) what is added to all classes, by sum_j (w_j + g_j) log rest_j + phi
        never = torch.full((typical.shape[0], 2), -1.0, device=typical.device)
        unseen = (gate * log_rest).sum(1) + self._judge(typical, never, of_typical)

        # (M,) the logits of the candidates, by their own probabilities
        log_chance = _log(memory.probability)  # (M, J)
        seen = (gate.index_select(0, owner) * log_chance).sum(1) + self._judge(
            log_chance, memory.age, of_candidate
        )

        # put over what stands at the candidates, so that nothing of size N * K * J is ever made
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
        """phi: log-probabilities (n, J), ages (n, 2) and context (n, H) -> scores (n,)."""
        never = (age[:, :1] < 0).float()
        # events and seconds differ by orders of magnitude: both end at about 1
        since = torch.log1p(age.clamp(min=0)) / torch.tensor([4.0, 16.0], device=age.device)

        # one layer in two products: concatenating (n, J + 3) inputs would copy the candidates
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
            # zero: the gates and phi are those of the counts alone until training moves these
            # weights
            self.state.weight.zero_()
            self.gate.weight *= 0.1
            # believed as it stands, at a gate of 1
            self.gate.bias.fill_(1)
            self.candidate.weight.zero_()

    def hear(self, context: torch.Tensor, memory: Memory, logits: torch.Tensor) -> Heard:
        """What the network's logits (N, K) add, at positions of context (N, H)."""
        even = math.log(logits.shape[1])

        log_p = torch.log_softmax(logits, 1)
        together, typical = _typical(memory, log_p)  # each (N,)
        of_candidate = log_p[memory.owner, memory.classes]  # (M,)

        trust = self.gate(context)  # (N, 1)
        # how far a candidate is from the candidates' mean, which phi may listen to
        apart = trust[:, 0].index_select(0, memory.owner) * (
            of_candidate - together.index_select(0, memory.owner)
        )

        # relative to even odds: 0 where the network knows nothing, however many classes there are
        return Heard(
            trust * (log_p + even),
            apart,
            self._opinion(typical + even),
            self._opinion(of_candidate + even),
        )

    def _opinion(self, relative: torch.Tensor) -> torch.Tensor:
        """Relative log-probabilities (n,) -> (n, H)."""
        # clamped: a class that the network rules out must not outshout all counts
        opinion: torch.Tensor = self.candidate(relative.clamp(-10, 10)[:, None] / 4)
        return opinion


def _log(probability: torch.Tensor) -> torch.Tensor:
    """Logarithms of probabilities that may be 0."""
    if torch.compiler.is_exporting():
        # the same in other words: ONNX's optimizer takes such a small addend for 0 and drops it
        return torch.log(probability / FLOOR + 1) + math.log(FLOOR)
    return torch.log(probability + FLOOR)


def _typical(memory: Memory, log_probability: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the mean probability (N,) of the candidates, and of the other classes, from
    log-probabilities (N, K)."""
    classes = log_probability.shape[1]
    zero = torch.zeros(memory.rest.shape[0], device=log_probability.device)  # (N,)

    # sums over the candidates of a position, and what is left for the other classes
    held = zero.index_add(0, memory.owner, log_probability[memory.owner, memory.classes].exp())
    number = zero.index_add(0, memory.owner, torch.ones_like(memory.owner, dtype=zero.dtype))
    of_others = (1 - held) / (classes - number).clamp(min=1)

    # floors: rounding can leave less than nothing
    of_candidates = (held / number.clamp(min=1)).clamp(min=FLOOR).log()
    return of_candidates, of_others.clamp(min=FLOOR).log()


def part_of(memory: Memory, rows: slice) -> Memory:
    """The memory of some positions, those of a slice without step."""
    first, stop, _ = rows.indices(len(memory.rest))

    # owners ascend, so a slice of positions owns a slice of candidates
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

    # the clock as a point on a circle: 23:30 and 0:00 are neighbors; slots are half hours here
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

    # decayed mean log-probabilities, at least -8; the last is the decayed number of events they
    # are means of, at most 1 / (1 - 0.92) = 12.5 (data/memory_past.py)
    judged = torch.cat([memory.reliability[:, :-1] / 4, memory.reliability[:, -1:] / 12], 1)
    return torch.cat([torch.log1p(memory.evidence) / 4, judged, torch.stack(moment, 1)], 1)
