"""Next-event transformers: BehaveGPT's body over any fields of a sequence store, each predicted by
a head of its own.

    next_url:      {kind: next_event, fields: ["url:min10"], events: [page_visit],
                    shape: {embedding_size: 192, ...}}
    next_product:  {kind: next_event, fields: [category, event, price],
                    events: [product_buy, ...], ...}

The logit of id v is e_v . (W h) + b_v with the embedding e_v that the input has too (tied). The
loss is the sum over fields of the mean cross-entropy over the events that have such a thing. Above
`negatives` ids the softmax is sampled: each batch draws n of the V ids, and a drawn id counts V / n
times, so that the sum over all others is met on average. The client's vector is the state at the
last event, as in the paper, or the mean of all states, or both.

Shape letters: N histories, T events, M predicted events, C width, V ids, n drawn ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.batch import moved
from behavegpt.devices import choose_device
from behavegpt.errors import DataError
from behavegpt.losses.base import CrossEntropy
from behavegpt.model.chunks import Scored, chunked_loss
from behavegpt.profiles.fields import RARE, SequenceSettings, Vocabularies
from behavegpt.profiles.histories import (
    Body,
    Packed,
    Shape,
    last_states,
    mean_states,
    model_names,
    pack,
)
from behavegpt.profiles.members import Context
from behavegpt.profiles.networks import NetworkSettings, embed_store, fit_network, open_network
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.profiles.task import Task, seeded
from behavegpt.ragged import owners, ranges
from behavegpt.user_embeddings import UserEmbeddings

POOLS = {"last": last_states, "mean": mean_states}
# the first id that can be predicted: padding and "no such thing" are no targets
CANDIDATES = RARE


class NextEventSettings(NetworkSettings):
    """Which events are read, and what is predicted of the next one."""

    kind: Literal["next_event"] = "next_event"
    predict: tuple[str, ...] | None = Field(
        None, description="names of the fields to predict; all by default"
    )
    negatives: int = Field(
        10_000, ge=1, description="ids drawn for the softmax of a field that has more of them"
    )
    pool: tuple[Literal["last", "mean"], ...] = Field(
        ("last",), min_length=1, description="states that the vector holds"
    )
    shape: Shape = Shape()

    @model_validator(mode="after")
    def _known(self) -> NextEventSettings:
        unknown = set(self.predict or ()) - set(self.names)
        if unknown:
            raise ValueError(
                f"predict: {sorted(unknown)[0]} is not among the fields {', '.join(self.names)}"
            )
        return self

    @property
    def sequence(self) -> SequenceSettings:
        """One event more than is read: the last one of a full window is a target alone."""
        time = () if "time" in self.names else ("time",)  # tells which events are of one moment
        return SequenceSettings(
            fields=(*self.fields, *time),
            events=self.events,
            last=self.shape.longest + 1,
            clients=self.clients,
        )


def fit(context: Context, settings: NextEventSettings, folder: Path) -> None:
    """Train on the histories of two events and more; writes vocabularies and weights."""
    vocabularies = context.vocabularies(settings.sequence)
    store = context.sequences(settings.sequence, vocabularies)
    rows = np.flatnonzero(store.lengths > 1)  # one event has no next one
    if not len(rows):
        raise DataError(
            f"no client has two events of {', '.join(settings.events)}; choose others in `events`."
        )

    device = choose_device(context.device)
    with seeded(context.seed):
        network = _network(settings, vocabularies).to(device)

    def objective(chosen: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
        packed, targets = batch(store, chosen, settings, rng)  # targets (T,) of each field
        loss = network(*moved((packed, targets), device))
        return loss * len(packed.place), len(packed.place)

    task = Task("next event", rows, objective, store.lengths[rows])
    fit_network(context, settings, folder, vocabularies, task, network)


def embed(context: Context, settings: NextEventSettings, folder: Path) -> UserEmbeddings:
    """(U, C) float32 of the asked clients with an event of these types."""
    network, store = open_network(
        context, settings, folder, lambda known: _network(settings, known)
    )
    device = choose_device(context.device)

    def encode(rows: np.ndarray) -> Tensor:
        packed, _ = batch(store, rows, settings)
        return network.encode(moved(packed, device), settings.pool)  # (N, C of each pool)

    return embed_store(store, settings, encode)


def batch(
    store: SequenceStore,
    rows: np.ndarray,
    settings: NextEventSettings,
    rng: np.random.Generator | None = None,
) -> tuple[Packed, dict[str, Tensor]]:
    """The newest events of clients `rows`, and field -> ids (T,) of the events after them, in
    training.

    Without `rng`, for vectors: up to the last event, in an order of equal times that is always the
    same; no targets.
    """
    training = rng is not None
    # (N,), one more for the last target
    lengths = np.minimum(store.lengths[rows], settings.shape.longest + training)
    source = _ordered(store, rows, lengths, rng)  # (T,)
    inputs = source

    if training:
        ends = np.cumsum(lengths)
        # the event after input t is event t + 1 of the same history: the inputs lack each history's
        # last, the targets its first
        inputs, after = np.delete(source, ends - 1), np.delete(source, ends - lengths)
        lengths = lengths - 1

    names, wanted = model_names(settings.names), settings.predict or settings.names
    packed = pack(
        {names[name]: store.columns[name][inputs] for name in names},
        lengths,
        settings.shape.longest,
    )
    if not training:
        return packed, {}

    return packed, {
        name: torch.from_numpy(store.columns[name][after].astype(np.int64)) for name in wanted
    }


def _ordered(
    store: SequenceStore, rows: np.ndarray, lengths: np.ndarray, rng: np.random.Generator | None
) -> np.ndarray:
    """Flat indices (T,) of the newest events in time order, those of one moment in any order.

    A store sorts them by their ids. Where a moment has many events, as an invoice does, the next
    one would follow from that order, and nothing would be learned of the client. Without `rng` the
    order depends on the place alone.
    """
    source = ranges(store.offsets[rows + 1] - lengths, lengths)
    back = np.repeat(store.offsets[rows + 1], lengths) - source  # (T,), 1 is the newest

    # without a generator: an order that looks random but is the same each time
    chance = (back * 0x9E3779B1) % 2**32 if rng is None else rng.random(len(source))

    return source[np.lexsort([chance, store.columns["time"][source], owners(lengths)])]


def _network(settings: NextEventSettings, vocabularies: Vocabularies) -> NextEvent:
    sizes = {name: vocabularies.sizes[name] for name in settings.names}
    return NextEvent(sizes, settings.predict or settings.names, settings.negatives, settings.shape)


class NextEvent(nn.Module):
    """Body and tied heads."""

    def __init__(
        self, sizes: dict[str, int], predict: tuple[str, ...], negatives: int, shape: Shape
    ) -> None:
        super().__init__()
        self.body = Body(sizes, shape)
        self.negatives = negatives
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.body.width, shape.embedding_size) for name in predict}
        )
        self.biases = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(sizes[name])) for name in predict}
        )

    def forward(self, packed: Packed, targets: dict[str, Tensor]) -> Tensor:
        """The loss of packed histories; `targets`: field -> id of the next event, (T,), 0 where
        there is none."""
        states = self.body(packed)
        losses = []
        for name, head in self.heads.items():
            # only events whose next one has such a thing
            asked = targets[name] >= CANDIDATES  # (T,) bool
            if asked.any():
                table, bias = self.body.table(name), self.biases[name]
                losses.append(
                    softmax_loss(
                        head(states[asked]), targets[name][asked], table, bias, self.negatives
                    )
                )

        return torch.stack(losses).sum() if losses else states.sum() * 0

    def encode(self, packed: Packed, pool: Sequence[str]) -> Tensor:
        """(N, C for each part of `pool`)."""
        states = self.body(packed)
        return torch.cat([POOLS[name](states, packed.bounds) for name in pool], dim=1)


def softmax_loss(x: Tensor, target: Tensor, table: Tensor, bias: Tensor, negatives: int) -> Tensor:
    """Mean cross-entropy of x (M, d) with logits x . table + bias over the ids from CANDIDATES on
    (V of them).

    With more than `negatives` ids, over the target and as many drawn ones; these come from torch's
    generator.
    """
    # ids below CANDIDATES are never the answer, so the softmax leaves them out
    table, bias, target = table[CANDIDATES:], bias[CANDIDATES:], target - CANDIDATES
    if len(table) <= negatives:
        scored = Scored(
            lambda part, pieces, sink: F.linear(pieces[0], table, bias), (x,), (table, bias)
        )
        criterion = CrossEntropy(torch.ones(len(table))).to(x.device)
        return chunked_loss(scored, criterion, target, len(table)).total / len(x)

    drawn = torch.randperm(len(table), device=x.device)[:negatives]  # (n,)
    own = (x * table[target]).sum(-1, keepdim=True) + bias[target][:, None]  # (M, 1)

    # log(V / n) stands for the ids that were not drawn: the sum is met on average
    others = F.linear(x, table[drawn], bias[drawn]) + math.log(len(table) / negatives)  # (M, n)
    # the target is counted once, in `own`
    others = others.masked_fill(drawn == target[:, None], float("-inf"))

    return (torch.cat([own, others], dim=1).logsumexp(1) - own[:, 0]).mean()
