"""Hybrid factorization in LightFM's role (Kula 2015; Klenitskiy et al. 2025, section 3.2.2): WARP
or BPR.

    item       v_i = sum over its features of their embeddings, b_i likewise
    client     u   = mean over the client's products of the sum of their features' embeddings
                     (a table of its own)
                   + mean over the searches + mean over the visits
    score      u . v_i + b_i

A client has no embedding of its own, so a new client gets a vector from what it did. The product
that is to be ranked is left out of the client's own products while training, else the two tables
would only learn to recognize it.

WARP draws products until one that the client does not have comes within 1 of the true one; the loss
of that pair is log(floor((I - 1) / draws)) * (1 - score + other score). BPR takes the first, with
-log sigmoid(score - other score).

Where paper and public code differ from each other or from this: the code passes the 16 raw codes as
16 numbers and no identities, exports the feature table in place of the clients, and swaps ids and
vectors when it saves; codes here count by position. The paper's features alone are
`user_features: [query]`, `item_features: [name]`. The weights of a pair add up as in both; a pair
with a sum of 0 or less (removed) is no positive, and may be drawn as a negative. Adagrad, 0.05 and
30 epochs are LightFM's, steps of many pairs at a time and the early stop are ours.

Shape letters: B pairs, F factors, I products, U clients, M draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.arrays import open_array, write_array
from behavegpt.batch import moved
from behavegpt.datasets.challenge_files import EventName
from behavegpt.devices import choose_device
from behavegpt.errors import DataError
from behavegpt.io import write_json
from behavegpt.profiles.events import PRODUCT, ask_everybody
from behavegpt.profiles.features import (
    FAMILIES,
    ITEM_VALUES,
    Bags,
    ClientFeatures,
    Pairs,
    read_features,
)
from behavegpt.profiles.fields import parse_field
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.profiles.networks import FACTS, embed_rows, load_network, save_network
from behavegpt.profiles.task import Task, TrainingSettings, seeded
from behavegpt.profiles.training import train
from behavegpt.user_embeddings import UserEmbeddings

MARGIN = 1.0  # of WARP, in units of the score
BATCH = 4096  # clients embedded at a time


class FactorizationSettings(MemberSettings):
    """What is ranked for whom by which features."""

    kind: Literal["factorization"] = "factorization"
    weights: dict[EventName, float] = Field(
        {"product_buy": 1.0, "add_to_cart": 0.7, "remove_from_cart": -0.5},
        description="event type -> weight of one",
    )
    item_features: tuple[str, ...] = Field(("sku", "category", "price", "name"), min_length=1)
    user_features: tuple[str, ...] = Field(
        ("sku", "category", "price", "name", "query", "url:5000"),
        min_length=1,
        description="name, name:TOP, name:minN",
    )
    clients: Literal["asked", "all"] = Field("asked", description="whose events are learned from")
    factors: int = Field(64, ge=1, description="width of the vectors")
    loss: Literal["warp", "bpr"] = "warp"
    draws: int = Field(
        10, ge=1, description="products drawn in search of one that is ranked too high"
    )
    training: TrainingSettings = TrainingSettings(epochs=30, batch=1024, lr=0.05)

    @model_validator(mode="after")
    def _consistent(self) -> FactorizationSettings:
        wrong = [event for event in self.weights if event not in PRODUCT]
        if wrong:
            raise ValueError(f"{wrong[0]} has no product to rank")
        if max(self.weights.values(), default=0) <= 0:
            raise ValueError("at least one weight must be above 0")

        for names, known in (
            (self.item_features, tuple(ITEM_VALUES)),
            (self.user_features, FAMILIES),
        ):
            for text in names:
                if parse_field(text).name not in known:
                    raise ValueError(f"{text!r} is not a feature here; use {', '.join(known)}")

        if self.training.weight_decay or self.training.clip:
            raise ValueError(
                "training.weight_decay and training.clip do not go with sparse gradients"
            )

        return self

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Features of clients and of products."""
        return self.user_features, self.item_features


class Factorization(nn.Module):
    """Embeddings (K, F) of the features of clients and of products, and a bias for the latter."""

    def __init__(self, user_features: int, item_features: int, factors: int) -> None:
        super().__init__()
        # LightFM's start: small and centered, so that early scores tell nothing yet
        self.user = nn.Parameter((torch.rand(user_features, factors) - 0.5) / factors)
        self.item = nn.Parameter((torch.rand(item_features, factors) - 0.5) / factors)
        self.bias = nn.Parameter(torch.zeros(item_features, 1))

    def clients(
        self,
        features: ClientFeatures,
        rows: np.ndarray,
        without: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Tensor:
        """Vectors (B, F) of clients `rows`; `without`: a product of each and its count, which are
        left out."""
        history = features.history.take(rows)
        # the products left out come last, so that one gather serves both
        asked = history.items if without is None else np.concatenate([history.items, without[0]])
        products, place = np.unique(asked, return_inverse=True)  # (P,) each product once
        vectors = _sum(self.user, features.as_history.take(products))  # (P, F)
        total = history.totals  # (B,)
        summed = _sum(vectors, history._replace(items=place[: len(history.items)]))  # (B, F)

        if without is not None:
            left_out = torch.from_numpy(place[len(history.items) :]).to(vectors.device)  # (B,)
            # minus count times the product's own vector: F.embedding has a reproducible gradient
            summed = summed - _like(vectors, without[1])[:, None] * F.embedding(left_out, vectors)
            total = total - without[1]

        # a client without products has a total of 0 and a sum of 0
        return summed / _like(summed, total.clip(min=1))[:, None] + _sum(
            self.user, features.other.take(rows)
        )

    def items(self, features: ClientFeatures, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Vectors (N, F) and biases (N, 1) of products."""
        chosen = features.as_item.take(numbers)  # bags of features
        return _sum(self.item, chosen), _sum(self.bias, chosen)

    def scores(self, features: ClientFeatures, clients: Tensor, numbers: np.ndarray) -> Tensor:
        """Scores (B, M) of products `numbers` (B, M) for client vectors (B, F)."""
        products, place = np.unique(numbers, return_inverse=True)  # (P,), (B * M,)
        vectors, biases = self.items(features, products)  # (P, F), (P, 1)
        where = torch.from_numpy(place.reshape(numbers.shape)).to(vectors.device)  # (B, M)

        # F.embedding and not [where]: its gradient is summed in the same order whatever the threads
        # do
        return (
            torch.einsum("bf,bmf->bm", clients, F.embedding(where, vectors))
            + F.embedding(where, biases)[..., 0]
        )


def ranking_loss(
    network: Factorization,
    features: ClientFeatures,
    settings: FactorizationSettings,
    rows: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Tensor, float]:
    """Weighted sum () of the losses of pairs `rows` (B,), and the sum of their weights; `rng` draws
    the products."""
    products = len(features.as_item.offsets) - 1
    pairs = Pairs(*[column[rows] for column in features.pairs])  # each (B,)
    client, item, weight = pairs.client, pairs.item, pairs.weight
    vectors = network.clients(features, client, (item, pairs.events))  # (B, F)
    drawn = rng.integers(products, size=(len(rows), settings.draws))  # (B, M)

    # products that the client has are no negatives
    chosen = ~_among(features.pairs.key, client[:, None] * products + drawn)  # (B, M) bool

    if settings.loss == "warp":
        # the search for a product ranked too high needs no gradient
        with torch.no_grad():
            scores = (
                network.scores(features, vectors, np.concatenate([item[:, None], drawn], axis=1))
                .cpu()
                .numpy()
            )
        chosen &= scores[:, 1:] > scores[:, :1] - MARGIN

    # a pair for which no draw is left gives no loss, but its weight still counts in the mean
    used = np.flatnonzero(chosen.any(axis=1))
    first = chosen.argmax(axis=1)[used]  # (used,) of what was drawn
    two = np.stack([item[used], drawn[used, first]], axis=1)
    own, other = network.scores(features, vectors[torch.from_numpy(used)], two).unbind(1)  # (used,)

    if settings.loss == "warp":
        # WARP estimates the rank of the true product from the number of draws
        ranks = np.maximum((products - 1) // (first + 1), 1)  # (used,)
        weighted = weight[used] * np.log(ranks).astype(np.float32)
        return (_like(own, weighted) * (MARGIN - own + other)).sum(), float(weight.sum())

    return (_like(own, weight[used]) * F.softplus(other - own)).sum(), float(weight.sum())


def fit(context: Context, settings: FactorizationSettings, folder: Path) -> None:
    """Train; writes network.safetensors, user_features.npy and item_features.npy (K, 2) int64, and
    training.json."""
    with context.connect() as con:
        if settings.clients == "all":
            ask_everybody(con)
        features = read_features(con, settings.weights, settings.names)

    if not len(features.pairs.client):
        raise DataError(
            f"no client has a product by {', '.join(settings.weights)}; choose other weights."
        )

    device = choose_device(context.device)
    with seeded(context.seed):
        network = Factorization(len(features.kept[0]), len(features.kept[1]), settings.factors).to(
            device
        )

    task = Task(
        "factorization",
        np.arange(len(features.pairs.client)),
        lambda rows, rng: ranking_loss(network, features, settings, rows, rng),
        make_optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=settings.training.lr),
    )

    # Adagrad warns while nobody has chosen
    with torch.sparse.check_sparse_tensor_invariants(False):
        facts = train(network, task, settings.training, context.seed, context.work(settings))

    save_network(network, folder)
    write_array(folder / "user_features.npy", features.kept[0])
    write_array(folder / "item_features.npy", features.kept[1])
    write_json(folder / FACTS, facts)


def embed(context: Context, settings: FactorizationSettings, folder: Path) -> UserEmbeddings:
    """(U, F) float32 of the asked clients with a known feature."""
    kept = (
        np.array(open_array(folder / "user_features.npy")),
        np.array(open_array(folder / "item_features.npy")),
    )
    with context.connect() as con:
        features = read_features(con, settings.weights, settings.names, kept)

    network = Factorization(len(kept[0]), len(kept[1]), settings.factors)
    load_network(network, folder)
    network.to(choose_device(context.device))

    # (U,) entries of each client
    lengths = np.diff(features.history.offsets) + np.diff(features.other.offsets)
    present = np.flatnonzero(lengths)
    vectors = embed_rows(
        lambda rows: network.clients(features, rows), present, lengths[present], BATCH, "vectors"
    )

    return UserEmbeddings(features.clients[present], vectors)


def _sum(table: Tensor, chosen: Bags) -> Tensor:
    """Weighted sums (B, F) of rows of `table` (K, F); the gradient of a parameter is sparse."""
    offsets, index, weight = moved(chosen, table.device)  # (B + 1,), (N,), (N,)
    return F.embedding_bag(
        index,
        table,
        offsets,
        mode="sum",
        sparse=table.is_leaf,
        per_sample_weights=weight,
        include_last_offset=True,
    )


def _among(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each of `wanted` (B, M) is in `known` (P,), which is ascending."""
    return np.asarray(known[np.searchsorted(known, wanted).clip(max=len(known) - 1)] == wanted)


def _like(tensor: Tensor, values: np.ndarray) -> Tensor:
    """`values` (B,) as float32 on the device of `tensor`."""
    return torch.from_numpy(np.asarray(values, np.float32)).to(tensor.device)
