"""Mixer: decides at each position how much each count expert is to be believed, for all classes alike.

    logit(b) = sum_j (w_j + g_j(c)) log P_j(b) + phi(x(b), psi(c))

c is what is known of the position (evidence behind each expert, its reliability so far, the moment),
x(b) what the experts say of class b. No parameter belongs to a class: permuting the classes permutes
the logits, and any number of them works, so that weights trained on one log can be asked about
another. The idea is context mixing, from data compression.

Shapes: N positions, M candidate classes of all of them, J experts, K classes, C context features, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

FLOOR = 1e-9  # of a probability


class Memory(NamedTuple):
    """What the count experts say at N positions; see data/memory_read.py, whose Readings these are as tensors."""

    owner: torch.Tensor  # (M,) int64 position of each candidate, ascending
    classes: torch.Tensor  # (M,) int64
    probability: torch.Tensor  # (M, J) float32; the last expert is the mixture of the others
    age: torch.Tensor  # (M, 2) float32 events and seconds since the class last occurred, -1 for never
    rest: torch.Tensor  # (N, J) float32: any other class b has the probability rest * prior(b)
    evidence: torch.Tensor  # (N, J - 1) float32
    reliability: torch.Tensor  # (N, J) float32
    context: torch.Tensor  # (N, 5) float32: events, classes, half hour, weekday, seconds since the event before


class Mixer(nn.Module):
    """Logits (N, K) from what the experts say; `state_size` > 0 lets hidden states (N, state_size) steer the gates.

    It starts as the last expert, the mixture whose shares were fitted to the log, and learns where that errs.
    """

    MOMENT = 8  # context features beside evidence and reliability

    def __init__(self, experts: int, hidden_size: int = 64, summary_size: int = 16, state_size: int = 0) -> None:
        super().__init__()
        context = 2 * experts - 1 + self.MOMENT
        self.weight = nn.Parameter(torch.eye(experts)[-1].clone())
        self.context = nn.Linear(context, hidden_size)
        self.state = nn.Linear(state_size, hidden_size, bias=False) if state_size else None
        self.gate = nn.Linear(hidden_size, experts)
        self.summary = nn.Linear(hidden_size, summary_size)
        self.candidate = nn.Linear(experts + 3, hidden_size)
        self.from_summary = nn.Linear(summary_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1)
        self.dropout = nn.Dropout(0.1)
        with torch.no_grad():
            self.gate.weight *= 0.1
            self.score.weight *= 0.1

    def forward(self, memory: Memory, log_prior: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        """`log_prior` (K,); returns logits (N, K) float32."""
        context = self.dropout(self.situation(memory, len(log_prior), state))
        gate = self.weight + self.gate(context)  # (N, J)
        summary = self.from_summary(self.summary(context))  # (N, H)
        log_rest = torch.log(memory.rest + FLOOR)
        others = gate.sum(1, keepdim=True) * log_prior  # (N, K), of the classes that are no candidates
        typical = log_rest + self._typical_prior(memory, log_prior)[:, None]
        never = torch.full((len(typical), 2), -1.0, device=typical.device)
        unseen = (gate * log_rest).sum(1) + self._judge(typical, never, summary)
        log_chance = torch.log(memory.probability + FLOOR)
        seen = (gate[memory.owner] * log_chance).sum(1)
        seen = seen + self._judge(log_chance, memory.age, summary[memory.owner])
        base = gate.sum(1)[memory.owner] * log_prior[memory.classes] + unseen[memory.owner]
        logits = others + unseen[:, None]
        return logits.index_put((memory.owner, memory.classes), seen - base, accumulate=True)

    def situation(self, memory: Memory, classes: int, state: torch.Tensor | None = None) -> torch.Tensor:
        """The hidden units (N, H) that decide which experts are believed; they know no label."""
        context: torch.Tensor = self.context(context_features(memory, classes))
        if self.state is not None and state is not None:
            context = context + self.state(state)
        return F.gelu(context, approximate="tanh")

    def _judge(self, log_chance: torch.Tensor, age: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
        """phi: (n, J), (n, 2) and (n, H) -> (n,)."""
        never = (age[:, :1] < 0).float()
        since = torch.log1p(age.clamp(min=0)) / torch.tensor([4.0, 16.0], device=age.device)
        x = self.candidate(torch.cat([log_chance / 4, since, never], 1)) + summary
        judged: torch.Tensor = self.score(F.gelu(x, approximate="tanh"))[:, 0]
        return judged

    def _typical_prior(self, memory: Memory, log_prior: torch.Tensor) -> torch.Tensor:
        """Log of the mean prior (N,) of the classes that are no candidates."""
        zero = torch.zeros(len(memory.rest), device=log_prior.device)
        mass = zero.index_add(0, memory.owner, log_prior[memory.classes].exp())
        number = zero.index_add(0, memory.owner, torch.ones_like(memory.owner, dtype=zero.dtype))
        return torch.log(((1 - mass) / (len(log_prior) - number).clamp(min=1)).clamp(min=FLOOR))


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
