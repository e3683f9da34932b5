"""Prediction layer (eq. 3): MLP to the behaviors, and optionally the user's own history, the counts
of the whole past, and the event embedding.

Shape letters: N positions that are predicted, C hidden width, K behaviors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from behavegpt.model.chunks import WHOLE, GradientSink, project
from behavegpt.model.config import SPECIAL_IDS, BehaveGPTConfig
from behavegpt.model.history import History, HistoryGate, exact, log_shares
from behavegpt.model.mixer import Memory, Mixer
from behavegpt.model.mixer import part_of as part_of_memory


class Predicted(NamedTuple):
    """What the head reads at N predicted positions."""

    hidden: torch.Tensor  # (N, C)
    past: History | Memory | None = None
    # what a baseline's encoder tells its head beside the hidden state, each (N, ...)
    side: dict[str, torch.Tensor] = {}
    # (N,) loss of the encoder's own, in training
    auxiliary: torch.Tensor | None = None
    # (N, C) what is given of the events that are predicted
    told: torch.Tensor | None = None
    # (N,) float32 what a target counts for among those of its basket
    share: torch.Tensor | None = None

    @property
    def asked(self) -> torch.Tensor:
        """Hidden states (N, C) from which the behavior is predicted."""
        return self.hidden if self.told is None else self.hidden + self.told

    def part(self, rows: slice) -> Predicted:
        """The same of some of the positions; without the encoder's own loss."""
        if rows == WHOLE:
            return self

        side = {name: value[rows] for name, value in self.side.items()}

        past = self.past
        if isinstance(past, Memory):
            past = part_of_memory(past, rows)
        elif past is not None:
            past = History(past.counts[rows], past.classes[rows])

        # no `auxiliary`: a part of it would be added once for each chunk
        told = None if self.told is None else self.told[rows]
        return Predicted(self.hidden[rows], past, side, told=told)


class MemoryHead(nn.Module):
    """Mixes a network's logits with what the counts of the whole past say; without blocks the
    counts alone."""

    HIDDEN, SUMMARY = 32, 16  # of the mixer: those of the universal one, whose weights fit

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        # the experts' mixture is one more of them
        experts = len(config.memory_experts or ()) + 1
        state = config.hidden_size if config.num_hidden_layers else 0

        # the universal mixer has no network, so a new one regularizes no more than the config asks
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

        # log-probabilities of rare classes differ by less than bf16 resolves
        with exact(hidden.device.type):
            own = None if logits is None else logits.float()
            mixed: torch.Tensor = self.mixer(memory, self.log_prior, hidden.float(), own)
        return mixed


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
        # the counts alone: the network would be computed for nothing
        if self.memory is not None and self.memory.mixer.network is None:
            return self.memory(hidden, None, past)

        logits = project(self.projection, self.activation(self.dense(hidden)), sink)  # (N, K)

        if self.tied_projection is not None and event_embedding is not None:
            # the classes are the events behind padding and unknown, (K, d)
            logits = logits + self.tied_projection(hidden) @ event_embedding[SPECIAL_IDS:].T

        if self.history_gate is not None and isinstance(past, History):
            logits = self.history_gate.add_to(logits, hidden, past)

        if self.memory is not None:
            logits = self.memory(hidden, logits, past)

        return logits

    @torch.no_grad()
    def set_prior(self, counts: torch.Tensor) -> None:
        """Start from the training frequencies (K,): bias of the logits, and what the history is
        compared with."""
        log_prior = log_shares(counts.to(self.projection.bias))

        self.projection.bias.copy_(log_prior)

        if self.memory is not None:
            self.projection.bias.zero_()  # the counts tell the frequencies
            self.memory.log_prior.copy_(log_prior)

        if self.history_gate is not None:
            self.history_gate.log_prior.copy_(log_prior)
