"""Mecos-style matching (AAAI 2021) for new behaviors: which few examples does a history look like?

    support of class c: s_c = mean of W h over K states before c      query: q = W h
    T times, for each pair of query and class: (h', m) = LSTM(q, [h; s_c], m), h = h' + q
                                               h, m begin at q, 0
    score_c = scale * cos(h_T, s_c);  softmax over the N classes of an episode

The head is meta-trained on episodes of known classes (N classes, K examples and one query of each),
on states of a frozen encoder, and then takes any class by its examples. "Style": details are from
the abstract and figure; the pair encoder also sees the item itself there, of which a new behavior
has no representation here.

Shape letters: Q queries, N classes, K examples, C width of the states, D of the head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from behavegpt.config import Settings
from behavegpt.errors import DataError
from behavegpt.metrics.prediction import PredictionMetrics

PAIRS = 1 << 12  # queries x classes matched at once: their gates fit into a CPU's cache


class MecosSettings(Settings):
    """Shape and meta-training."""

    width: int = Field(64, ge=1, description="D")
    steps: int = Field(2, ge=0, description="T: refinements of a match")
    ways: int = Field(32, ge=2, description="N: classes of an episode, or as many as there are")
    shots: int = Field(3, ge=1, description="K: examples of a class in an episode")
    episodes: int = Field(300, ge=1, description="episodes of meta-training")
    lr: float = Field(1e-3, gt=0, description="learning rate of Adam")
    seed: int = Field(0, ge=0, description="of the weights and the episodes")


class MatchingHead(nn.Module):
    """Scores queries against supports."""

    def __init__(self, states: int, settings: MecosSettings) -> None:
        super().__init__()
        width = settings.width
        self.steps = settings.steps
        self.project = nn.Linear(states, width)
        self.of_query = nn.Linear(width, 4 * width)
        self.of_memory = nn.Linear(width, 4 * width, bias=False)
        self.of_support = nn.Linear(width, 4 * width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # a scale of 10

    def supports(self, examples: torch.Tensor, member: torch.Tensor, classes: int) -> torch.Tensor:
        """(N, D) mean projected state of each class, of examples (M, C) with classes (M,); zeros
        without examples."""
        total = torch.zeros(classes, self.project.out_features).index_add(
            0, member, self.project(examples)
        )
        return total / torch.bincount(member, minlength=classes).clamp(min=1)[:, None]

    def forward(self, queries: torch.Tensor, supports: torch.Tensor) -> torch.Tensor:
        """queries (Q, C), supports (N, D) -> scores (Q, N)"""
        # all pairs of query and class at once: large episodes in parts
        rows = max(1, PAIRS // len(supports))
        return torch.cat(
            [self._match(self.project(part), supports) for part in queries.split(rows)]
        )

    def _match(self, q: torch.Tensor, supports: torch.Tensor) -> torch.Tensor:
        """q (Q, D), supports (N, D) -> (Q, N)"""
        # (Q, N, 4 D), the same in every refinement
        of_pair = self.of_query(q)[:, None] + self.of_support(supports)
        h, cell = q[:, None], q.new_zeros(1)  # (Q, 1, D); the memory begins at 0

        for _ in range(self.steps):
            forget, write, read, new = (of_pair + self.of_memory(h)).chunk(4, dim=-1)
            cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
            h = read.sigmoid() * cell.tanh() + q[:, None]

        return self.log_scale.exp() * F.cosine_similarity(h, supports, dim=-1)


def meta_train(states: torch.Tensor, target: torch.Tensor, settings: MecosSettings) -> MatchingHead:
    """A head trained on episodes of states (M, C) and the classes (M,) that followed them.

    Raises DataError unless two classes have more than K examples.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    order = target.argsort(stable=True)  # examples by class
    count = torch.bincount(target)  # (N,)
    begin = count.cumsum(0) - count  # (N,) where each class begins in `order`

    # one more than K, for the query
    usable = (count > settings.shots).nonzero()[:, 0]
    if len(usable) < 2:
        raise DataError(
            f"only {len(usable)} behaviors have more than {settings.shots} examples to learn "
            "matching from; give more data, or lower shots."
        )

    # weights from the seed alone, other streams stay untouched
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = MatchingHead(states.shape[1], settings)

    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr)
    ways = min(settings.ways, len(usable))

    for _ in range(settings.episodes):
        chosen = usable[torch.randperm(len(usable), generator=generator)[:ways]]
        # K + 1 different examples of each class
        drawn = [
            torch.randperm(int(count[c]), generator=generator)[: settings.shots + 1] + begin[c]
            for c in chosen
        ]

        episode = states[order[torch.stack(drawn)]]  # (N, K + 1, C), the last one the query
        examples = episode[:, :-1].flatten(0, 1)
        supports = head.supports(
            examples, torch.arange(ways).repeat_interleave(settings.shots), ways
        )

        # the query of class n is row n, so the targets count upwards
        loss = F.cross_entropy(head(episode[:, -1], supports), torch.arange(ways))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return head.eval()


@torch.no_grad()
def match(
    head: MatchingHead,
    examples: torch.Tensor,
    member: torch.Tensor,
    queries: Iterable[tuple[torch.Tensor, torch.Tensor]],
    classes: int,
) -> PredictionMetrics:
    """Metrics of batches (states (N, C), targets (N,)) by examples (M, C) of classes (M,); no other
    class is said."""
    seen = torch.bincount(member, minlength=classes).nonzero()[:, 0]  # classes with an example
    supports = head.supports(examples, member, classes)[seen]
    metrics = PredictionMetrics(classes)

    for state, target in queries:
        # classes without an example can not be said
        scores = state.new_full((len(state), classes), -torch.inf)
        scores[:, seen] = head(state, supports)
        metrics.update(scores, target)

    return metrics
