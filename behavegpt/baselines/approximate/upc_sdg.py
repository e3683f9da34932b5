"""UPC-SDG-style perturbation (after Liu et al., SIGIR 2022): some of a user's own events replaced
by private ones.

    vectors        u, e_i: frozen factors of the user-event counts
    contribution   c_i = v . tanh(W [u; e_i]), weights softmax_i(c);  the share `rho` of least
                   contribution is replaced
    replacement    scores over all events: e . L([u; e_i; privacy_u]), a hard Gumbel-softmax draws
                   e_j
    loss           softplus(-u . e_j) + 3 max(0, cos(e_j, e_i) - privacy_u)
                   + mean (M sum_i softmax(c)_i e_i - u)^2

A lower privacy_u asks for less similar replacements. It is no generator in time: a "future" is the
user's last T events again, in order and with their gaps, some replaced by a training event with the
drawn label, all its fields. Written from the recipe. Ours: factors by singular values of log counts
(not a pairwise-ranking factorization), so that a user's vector follows from the history alone, u =
sum_i log(1 + n_i) e_i / norm; L has a hidden layer, for in a linear one the privacy cannot change
what is drawn for which event; random privacies in training, the setting's at the end.

Shapes: B users, T events, I events (labels), D factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.generators import Histories, _gaps, seeded
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST

# of the randomized singular values: directions beside the wanted ones, power iterations
SPARE, ROUNDS = 16, 8


@dataclass(frozen=True)
class UPCSettings:
    """`privacy` is the similarity that a replacement may have, `rho` the share of events
    replaced."""

    events: int = 524_288
    rho: float = 0.2
    privacy: float = 0.5
    factors: int = 64
    batch: int = 16
    lr: float = 1e-2


class Perturber(nn.Module):
    """Frozen event vectors (I, D), contributions and replacements, which are events that training
    saw (I,)."""

    def __init__(self, vectors: torch.Tensor, seen: torch.Tensor) -> None:
        super().__init__()
        self.vectors, self.seen = vectors, seen
        size = vectors.shape[1]
        self.attention = nn.Sequential(
            nn.Linear(2 * size, size), nn.Tanh(), nn.Linear(size, 1, bias=False)
        )
        self.transform = nn.Linear(size, size)
        self.replace = nn.Sequential(
            nn.Linear(2 * size + 1, 2 * size), nn.GELU(), nn.Linear(2 * size, size)
        )

    def contributions(self, user: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
        """c (B, T) of events (B, T) for users (B, D)."""
        e = self.vectors[events]  # (B, T, D)
        return self.attention(torch.cat([user[:, None].expand_as(e), e], dim=2))[..., 0]

    def scores(
        self, user: torch.Tensor, events: torch.Tensor, privacy: torch.Tensor
    ) -> torch.Tensor:
        """Scores (B, T, I) of replacements for events (B, T), at the users' privacy (B,)."""
        e = self.vectors[events]  # (B, T, D)
        parts = [user[:, None].expand_as(e), e, privacy[:, None, None].expand(*events.shape, 1)]
        scores = self.replace(torch.cat(parts, dim=2)) @ self.vectors.T  # (B, T, I)
        return scores.masked_fill(~self.seen, -torch.inf)


def count_table(owner: np.ndarray, events: np.ndarray, users: int, size: int) -> torch.Tensor:
    """log(1 + n) (users, size), sparse, of the events (R,) of their owners (R,)."""
    # one number for each (user, event) pair
    pairs, counts = np.unique(owner * size + events, return_counts=True)
    index = torch.from_numpy(np.stack(np.divmod(pairs, size)))
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(counts).float().log1p(), (users, size), check_invariants=True
    ).coalesce()


def factorize(table: torch.Tensor, factors: int) -> torch.Tensor:
    """Event vectors (I, D) of length 1: leading right singular vectors of a table (users, I) times
    their roots."""
    # singular values come in descending order
    _, values, vectors = torch.svd_lowrank(table, min(factors + SPARE, *table.shape), niter=ROUNDS)
    vectors, values = vectors[:, :factors], values[:factors]
    signs = torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # one on every machine
    return F.normalize(vectors * signs * values.sqrt(), dim=1)


def user_vectors(table: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """u (U, D), of length 1, of a table of counts (U, I)."""
    # a user's vector follows from the history alone, so new users have one too
    return F.normalize(table @ vectors, dim=1)


def perturbation_loss(
    model: Perturber,
    user: torch.Tensor,
    events: torch.Tensor,
    privacy: torch.Tensor,
    drawn: torch.Tensor,
) -> torch.Tensor:
    """Utility, privacy and reconstruction for one-hot replacements `drawn` (B, T, I) of events (B,
    T)."""
    old, new = model.vectors[events], drawn @ model.vectors  # (B, T, D) each
    utility = F.softplus(-(new * user[:, None]).sum(2)).mean()

    # vectors have length 1; cosine_similarity would have no slope between parallel ones
    similar = F.relu((new * old).sum(2) - privacy[:, None]).mean()
    weights = model.contributions(user, events).softmax(1)  # (B, T)

    # (B, D) the user, rebuilt from the events by their contributions
    rebuilt = model.transform((weights[..., None] * old).sum(1))

    return utility + 3 * similar + F.mse_loss(rebuilt, user)


def perturb(
    model: Perturber, user: torch.Tensor, events: torch.Tensor, rho: float, privacy: float
) -> torch.Tensor:
    """Events (B, T) with round(rho T) of least contribution replaced."""
    # (B, rho T)
    least = model.contributions(user, events).argsort(dim=1)[:, : round(rho * events.shape[1])]
    old = events.gather(1, least)  # (B, rho T)
    scores = model.scores(user, old, torch.full((len(user),), privacy))
    return events.scatter(1, least, F.gumbel_softmax(scores, hard=True).argmax(2))


def train(
    model: Perturber,
    user: torch.Tensor,
    events: np.ndarray,
    offsets: np.ndarray,
    settings: UPCSettings,
) -> None:
    """Some of each user's events (R,), with replacement, until `settings.events` were drawn."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    count = torch.from_numpy(np.diff(offsets))
    busy = torch.repeat_interleave(torch.arange(len(count)), count)  # user of each event

    each = 16  # events drawn of each user

    for _ in range(-(-settings.events // (settings.batch * each))):
        # users as often as they have events
        rows = busy[torch.randint(len(busy), (settings.batch,))]
        index = (
            torch.from_numpy(offsets)[rows, None]
            + (torch.rand(len(rows), each) * count[rows, None]).long()
        )

        own, privacy = torch.from_numpy(events)[index], torch.rand(len(rows))
        drawn = F.gumbel_softmax(model.scores(user[rows], own, privacy), hard=True)
        perturbation_loss(model, user[rows], own, privacy, drawn).backward()
        optimizer.step()

        optimizer.zero_grad()


def learn(store: EventStore, settings: UPCSettings) -> Perturber:
    """Vectors and perturbation from the training split."""
    rows, users = _training_rows(store), store.manifest.users
    events = np.asarray(store.columns["event"])[rows].astype(np.int64)
    owner = np.searchsorted(store.offsets, rows, side="right") - 1
    size = len(store.vocabulary["event"]) + FIRST

    table = count_table(owner, events, users, size)
    vectors = factorize(table, settings.factors)
    user = user_vectors(table, vectors)

    model = Perturber(vectors, torch.from_numpy(np.bincount(events, minlength=size) > 0))
    train(model, user, events, np.searchsorted(owner, np.arange(users + 1)), settings)

    return model


def upc_sdg(
    histories: Histories,
    store: EventStore,
    steps: int,
    rng: np.random.Generator,
    settings: UPCSettings | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Train on the training split and perturb the last events of the histories: columns and gaps
    (N, steps)."""
    settings = settings or UPCSettings()
    end, count = histories.offsets[1:], np.diff(histories.offsets)
    length = np.minimum(count, steps)
    index = (end - length)[:, None] + np.arange(steps) % length[:, None]  # (N, T)
    own = histories.columns["event"]

    with seeded(rng):
        model = learn(store, settings)
        table = count_table(
            np.repeat(np.arange(len(end)), count), own, len(end), len(model.vectors)
        )
        user = user_vectors(table, model.vectors)
        drawn = perturb(
            model, user, torch.from_numpy(own[index]), settings.rho, settings.privacy
        ).numpy()

    names = [name for name in histories.columns if name in store.columns or name == "behavior"]
    columns = {name: histories.columns[name][index] for name in names}
    other = drawn != columns["event"]  # (N, T) bool

    # a replacement brings all fields of the training event that it comes from
    source = _training_event(store, drawn[other], rng)
    for name in names:
        columns[name][other] = np.asarray(store.column(name))[source]

    return columns, _gaps(histories)[index]


def _training_rows(store: EventStore) -> np.ndarray:
    """Training events with a known label and a known behavior."""
    known = (np.asarray(store.columns["event"]) >= FIRST) & (
        np.asarray(store.column("behavior")) >= FIRST
    )
    return np.flatnonzero(known & (np.asarray(store.columns["split"]) == TRAIN))


def _training_event(store: EventStore, events: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows (M,) of random training events with these labels."""
    column, rows = np.asarray(store.columns["event"]).astype(np.int64), _training_rows(store)
    # training rows by event, so that each event's rows are one stretch
    rows = rows[np.argsort(column[rows], kind="stable")]
    low = np.searchsorted(column[rows], events, "left")
    high = np.searchsorted(column[rows], events, "right")
    return rows[low + (rng.random(len(events)) * (high - low)).astype(np.int64)]
