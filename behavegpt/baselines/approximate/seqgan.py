"""SeqGAN (Yu et al., AAAI 2017, arXiv:1609.05473): a generator rewarded for what a discriminator
takes for real.

    1  maximum likelihood   an LSTM over behaviors:  pi(y_t | history, y_<t)
    2  discriminator        D(history, y): convolutions, maximum over time, highway; real futures
                            against drawn ones
    3  policy gradient      grad J = E sum_t Q(y_<=t) grad log pi(y_t | y_<t),
                            Q(y_<=t) = mean of D over R completions of y_<=t by the roll-out policy,
                            a moving average of pi; Q(y_<=T) = D(y)
       then D learns again; repeated

Written from the formulas. Ours: conditional (the LSTM reads the user's last behaviors first, and D
sees them too, pooled apart from the future), Q minus its mean over the batch, 4 completions for 16,
fewer rounds, smaller widths. The budget of events is that of step 1; steps 2 and 3 come on top.

Shapes: B rows, P past, T steps, K classes, H hidden, M sequences to judge of each row, R
completions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.generators import Histories, blocks, dress, last_classes, seeded
from behavegpt.data.store import EventStore

State = tuple[torch.Tensor, torch.Tensor]
# history (B, P), futures (B, M, T) -> (B, M) in [0, 1]
Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FILTERS = (1, 2, 3, 5, 8, 12)


@dataclass(frozen=True)
class SeqGANSettings:
    """`events` are training events in step 1; `judge_steps` batches of D before step 3,
    `judge_again` in each round."""

    events: int = 524_288
    past: int = 90
    embedding: int = 32
    hidden: int = 64
    batch: int = 64
    lr: float = 5e-3
    rounds: int = 30
    completions: int = 4
    policy_batch: int = 32
    policy_lr: float = 1e-3
    average: float = 0.8
    judge_steps: int = 100
    judge_again: int = 5


class Policy(nn.Module):
    """pi: an LSTM; the class K stands before the first event."""

    def __init__(self, classes: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes + 1, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.out = nn.Linear(hidden, classes)

    def read(self, tokens: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """Log-probabilities of the class after the tokens (B, L) so far: (B, L, K), and the
        state."""
        hidden, state = self.lstm(self.embed(tokens), state)
        return F.log_softmax(self.out(hidden), dim=-1), state  # (B, L, H)

    def draw(self, history: torch.Tensor, steps: int) -> torch.Tensor:
        """Futures (B, steps) of histories (B, P)."""
        logs, state = self.read(history)

        drawn = []
        # the state goes on from the history: no step reads it again
        for _ in range(steps):
            drawn.append(torch.multinomial(logs[:, -1].exp(), 1))
            logs, state = self.read(drawn[-1], state)

        return torch.cat(drawn, dim=1)

    def score(self, history: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """log pi (B, T, K) at the steps of futures (B, T), which may be padded with K."""
        # teacher forcing: each step is predicted from the true ones before it
        logs, _ = self.read(torch.cat([history, future[:, :-1]], dim=1))
        return logs[:, history.shape[1] - 1 :]  # (B, T, K)


class Discriminator(nn.Module):
    """D: what convolutions find in the future, and in as many events before it."""

    def __init__(self, classes: int, embedding: int = 16, maps: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes + 1, embedding)
        self.filters = nn.ModuleList(
            nn.Conv1d(embedding, maps, width, padding=width // 2) for width in FILTERS
        )

        # D's features: the pooled filters of history and future side by side
        width = 2 * maps * len(FILTERS)
        self.gate, self.inner = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        self.dropout = nn.Dropout(0.25)

    def forward(self, history: torch.Tensor, futures: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) of futures (B, M, T) after histories (B, P)."""
        rows, many, steps = futures.shape
        # as many events of the history as of the future, or their pooled maxima would not compare
        before = self.pool(history[:, -steps:])[:, None].expand(-1, many, -1)  # (B, M, F)
        after = self.pool(futures.reshape(rows * many, steps)).view(rows, many, -1)
        x = torch.cat([before, after], dim=-1)

        # a highway layer
        gate = torch.sigmoid(self.gate(x))
        return self.out(self.dropout(gate * F.relu(self.inner(x)) + (1 - gate) * x))[..., 0]

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Greatest answer of each filter anywhere in the tokens (B, L)."""
        x = self.embed(tokens).transpose(1, 2)  # (B, E, L)
        return torch.cat([F.relu(conv(x)).amax(dim=2) for conv in self.filters], dim=1)


@torch.no_grad()
def rewards(
    policy: Policy, judge: Judge, history: torch.Tensor, future: torch.Tensor, many: int
) -> torch.Tensor:
    """Q (B, T): the judge's mean over `many` completions of each beginning of the futures (B,
    T)."""
    rows, steps = future.shape
    # [:, t]: completions of t + 1 steps
    completed = future[:, None, None].expand(rows, steps, many, steps).clone()  # (B, T, R, T)
    _, state = policy.read(history)
    logs, under_way = torch.empty(0), (torch.empty(0), torch.empty(0))

    for step in range(1, steps):
        new, state = policy.read(future[:, step - 1 : step], state)
        # one beginning more sets out from here; rows under way are ordered (beginning, row,
        # completion)
        new = new[:, -1].repeat_interleave(many, 0)
        parts = [part.repeat_interleave(many, 1) for part in state]
        if step > 1:
            new = torch.cat([logs, new])
            parts = [torch.cat(pair, 1) for pair in zip(under_way, parts, strict=True)]

        drawn = torch.multinomial(new.exp(), 1)  # one step of every completion under way
        completed[:, :step, :, step] = drawn.view(step, rows, many).transpose(0, 1)
        logs, under_way = policy.read(drawn, (parts[0], parts[1]))
        logs = logs[:, -1]

    return judge(history, completed.flatten(1, 2)).view(rows, steps, many).mean(2)


def policy_loss(logs: torch.Tensor, future: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
    """Its gradient is that of -J: log pi (B, T, K) at the drawn classes (B, T), times their worth
    (B, T)."""
    return -(logs.gather(2, future[..., None])[..., 0] * worth).sum(1).mean()


def pretrain(
    policy: Policy,
    store: EventStore,
    steps: int,
    settings: SeqGANSettings,
    rng: np.random.Generator,
) -> None:
    """Step 1: cross-entropy of training futures after their histories."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.lr)
    seen = 0

    while seen < settings.events:
        history, future = blocks(store, settings.past, steps, rng)
        for rows in torch.randperm(len(history)).split(settings.batch):
            # linearly down to a tenth over the budget
            rate = settings.lr * (1 - 0.9 * min(seen / settings.events, 1))
            optimizer.param_groups[0]["lr"] = rate
            padding = policy.out.out_features
            logs = policy.score(history[rows], future[rows])

            F.nll_loss(logs.flatten(0, 1), future[rows].flatten(), ignore_index=padding).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()

            seen += int((future[rows] != padding).sum())
            if seen >= settings.events:
                break


def _judge_step(
    judge: Discriminator,
    teacher: torch.optim.Optimizer,
    history: torch.Tensor,
    both: torch.Tensor,
) -> None:
    """One step of D on histories (B, P) and their real and drawn futures `both` (B, 2, T)."""
    logits = judge(history, both)  # (B, 2)
    real = torch.tensor([1.0, 0.0]).expand_as(logits)
    F.binary_cross_entropy_with_logits(logits, real).backward()
    teacher.step()
    teacher.zero_grad()


def play(
    policy: Policy,
    store: EventStore,
    steps: int,
    settings: SeqGANSettings,
    rng: np.random.Generator,
) -> None:
    """Steps 2 and 3, on whole futures of the training split; nothing where there are none."""
    history, future = blocks(store, settings.past, steps, rng, least=steps)
    if not settings.rounds or not len(future):
        return

    judge = Discriminator(policy.out.out_features)
    roller = copy.deepcopy(policy)  # the roll-out policy, a moving average of pi
    teacher = torch.optim.Adam(judge.parameters(), lr=1e-3, weight_decay=1e-4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.policy_lr)

    def teach(batches: int) -> None:
        judge.train()
        for _ in range(batches):
            rows = torch.randint(len(future), (settings.batch,))
            with torch.no_grad():
                drawn = policy.draw(history[rows], steps)
            _judge_step(judge, teacher, history[rows], torch.stack([future[rows], drawn], dim=1))
        judge.eval()

    def chance(history: torch.Tensor, futures: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(judge(history, futures))

    teach(settings.judge_steps)
    for _ in range(settings.rounds):
        rows = torch.randint(len(future), (settings.policy_batch,))
        with torch.no_grad():
            drawn = policy.draw(history[rows], steps)

        # less the batch's mean at each step: the same gradient in expectation, of less variance
        worth = rewards(roller, chance, history[rows], drawn, settings.completions)
        logs = policy.score(history[rows], drawn)
        policy_loss(logs, drawn, worth - worth.mean(0)).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

        with torch.no_grad():
            for slow, fast in zip(roller.parameters(), policy.parameters(), strict=True):
                slow.lerp_(fast, 1 - settings.average)

        teach(settings.judge_again)


def seqgan(
    histories: Histories,
    store: EventStore,
    steps: int,
    rng: np.random.Generator,
    settings: SeqGANSettings | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Train on the training split and continue the histories: columns and gaps (N, steps), see
    `generators.dress`."""
    settings = settings or SeqGANSettings()
    with seeded(rng):
        policy = Policy(store.behaviors.classes, settings.embedding, settings.hidden)
        pretrain(policy, store, steps, settings, rng)
        play(policy, store, steps, settings, rng)
        history = last_classes(histories, settings.past, store.behaviors.classes)
        with torch.no_grad():
            drawn = policy.draw(history, steps)

    return dress(drawn.numpy(), histories, store, rng)
