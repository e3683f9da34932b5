"""Hybrid factorization: vectors are sums over features, the losses those of WARP and BPR, and the
traps of LightFM."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from behavegpt.profiles.factorization import (
    Factorization,
    FactorizationSettings,
    embed,
    fit,
    ranking_loss,
)
from behavegpt.profiles.features import FAMILIES, POSITION, ClientFeatures, read_features
from behavegpt.profiles.members import Context
from behavegpt.profiles.networks import load_network
from behavegpt.profiles.probe import auroc
from behavegpt.profiles.task import TrainingSettings, seeded
from tests.profiles.makers import read_events

TRAINING = TrainingSettings(epochs=3, batch=16, lr=0.05, held_out=0.1)
WEIGHTS = {0: 1.0, 1: 0.7, 2: -0.5}


def settings(**changes: Any) -> FactorizationSettings:
    plain = {
        "factors": 8,
        "training": TRAINING,
        "user_features": ("sku", "category", "name", "query", "url:9"),
        **changes,
    }
    return FactorizationSettings.model_validate(plain)


def read(context: Context, chosen: FactorizationSettings) -> ClientFeatures:
    with context.connect() as con:
        return read_features(con, chosen.weights, chosen.names)


def network(features: tuple[np.ndarray, np.ndarray], factors: int = 8) -> Factorization:
    with seeded(0):
        made = Factorization(len(features[0]), len(features[1]), factors)
        torch.nn.init.normal_(made.user)
        torch.nn.init.normal_(made.item)
        torch.nn.init.normal_(made.bias)
    return made


def codes(text: Any) -> list[int]:
    """Values of a quantized text: position and code in one number."""
    return (
        [i * POSITION + int(c) for i, c in enumerate(text.strip("[]").split())]
        if isinstance(text, str)
        else []
    )


class ByHand:
    """The same model by loops over dictionaries."""

    def __init__(
        self, path: Path, made: Factorization, features: tuple[np.ndarray, np.ndarray]
    ) -> None:
        self.table = read_events(path)
        ids = [{(FAMILIES[f], int(v)): n for n, (f, v) in enumerate(side)} for side in features]
        self.user = {key: made.user[n].detach().numpy() for key, n in ids[0].items()}
        self.item = {key: made.item[n].detach().numpy() for key, n in ids[1].items()}
        self.bias = {key: made.bias[n].item() for key, n in ids[1].items()}
        self.products = self.table.dropna(subset="sku").drop_duplicates("sku").set_index("sku")

    def mean(self, table: dict[Any, Any], family: str, values: list[int]) -> Any:
        counted = Counter(value for value in values if (family, value) in table)
        return sum(n * table[family, value] for value, n in counted.items()) / max(
            counted.total(), 1
        )

    def product(self, table: dict[Any, Any], sku: int, families: tuple[str, ...]) -> Any:
        line = self.products.loc[sku]
        values = {"sku": [sku], "name": codes(line["name"])}
        for column in ("category", "price"):
            values[column] = [] if pd.isna(line[column]) else [int(line[column])]
        return sum(self.mean(table, family, values[family]) for family in families)

    def client(self, client: int, without: int | None = None) -> Any:
        own = self.table[self.table["client_id"] == client]
        bought = own.loc[own["event"].isin([0, 1]), "sku"]
        kept = [int(sku) for sku in bought if sku != without]
        past = sum(self.product(self.user, sku, ("sku", "category", "name")) for sku in kept) / max(
            len(kept), 1
        )
        searched = [value for text in own["query"].dropna() for value in codes(text)]
        visited = own["url"].dropna().astype(int).tolist()
        return past + self.mean(self.user, "query", searched) + self.mean(self.user, "url", visited)

    def score(self, vector: Any, sku: int) -> float:
        families = ("sku", "category", "price", "name")
        return float(
            vector @ self.product(self.item, sku, families) + self.product(self.bias, sku, families)
        )


def test_vectors_and_pairs_are_those_of_a_loop(
    small: Path, context: Callable[..., Context]
) -> None:
    facts = read(context(small), settings())
    made = network(facts.kept)
    slow = ByHand(small, made, facts.kept)
    vectors = made.clients(facts, np.arange(len(facts.clients))).detach().numpy()
    for client, vector in zip(facts.clients, vectors, strict=True):
        assert np.allclose(vector, slow.client(client), atol=1e-4)
    own = slow.table[slow.table["client_id"].isin(facts.clients) & (slow.table["event"] < 3)]
    summed = own["event"].map(WEIGHTS).groupby([own["client_id"], own["sku"]]).sum()
    skus = np.sort(own["sku"].unique())
    found = {
        (int(facts.clients[client]), int(skus[item])): weight
        for _, client, item, weight, _ in zip(*facts.pairs, strict=True)
    }
    wanted = {(int(c), int(s)): weight for (c, s), weight in summed.items() if weight > 1e-6}
    # some were removed more than they were added
    assert found.keys() == wanted.keys() and len(wanted) < len(summed)
    assert np.allclose([found[key] for key in wanted], list(wanted.values()))
    left_out = (
        made.clients(
            facts, facts.pairs.client[::7], (facts.pairs.item[::7], facts.pairs.events[::7])
        )
        .detach()
        .numpy()
    )
    for vector, client, item in zip(
        left_out, facts.pairs.client[::7], facts.pairs.item[::7], strict=True
    ):
        assert np.allclose(
            vector, slow.client(facts.clients[client], without=int(skus[item])), atol=1e-4
        )


@pytest.mark.parametrize("loss", ["warp", "bpr"])
def test_the_loss_is_that_of_a_loop(
    small: Path, context: Callable[..., Context], loss: str
) -> None:
    chosen = settings(loss=loss, draws=4)
    facts = read(context(small), chosen)
    made = network(facts.kept)
    with torch.no_grad():
        for table in (made.user, made.item, made.bias):
            table *= 0.3  # so that some draws are within the margin and some are not
    slow = ByHand(small, made, facts.kept)
    own = slow.table[slow.table["client_id"].isin(facts.clients) & (slow.table["event"] < 3)]
    skus = np.sort(own["sku"].unique()).astype(int)
    has = {(int(c), int(i)) for c, i in zip(facts.pairs.client, facts.pairs.item, strict=True)}
    rows = np.arange(0, len(facts.pairs.client), 3)
    drawn = np.random.default_rng(5).integers(len(skus), size=(len(rows), 4))
    wanted, tries = 0.0, Counter[int]()
    for row, others in zip(rows, drawn, strict=True):
        client, item = int(facts.pairs.client[row]), int(facts.pairs.item[row])
        vector = slow.client(facts.clients[client], without=int(skus[item]))
        mine = slow.score(vector, skus[item])
        for n, other in enumerate(others, start=1):
            theirs = slow.score(vector, skus[other])
            if (client, int(other)) in has or (loss == "warp" and theirs <= mine - 1):
                continue
            rank = max((len(skus) - 1) // n, 1)
            one = (
                np.log(rank) * (1 - mine + theirs)
                if loss == "warp"
                else np.log1p(np.exp(theirs - mine))
            )
            wanted += facts.pairs.weight[row] * one
            tries[n] += 1
            break
        else:
            tries[0] += 1
    assert len(tries) >= (4 if loss == "warp" else 2)  # all the cases are there
    found, weight = ranking_loss(made, facts, chosen, rows, np.random.default_rng(5))
    assert abs(found.item() - wanted) < 1e-3 * abs(wanted)
    assert abs(weight - facts.pairs.weight[rows].sum()) < 1e-3


def test_it_learns_who_likes_what(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """Clients of two tastes: what each of them has bought is ranked above the rest although it is
    left out."""
    data = shutil.copytree(small, tmp_path / "data")
    clients = np.arange(200)
    rng = np.random.default_rng(0)
    bought = rng.integers(0, 10, (200, 4)) + 10 * (clients[:, None] % 2)
    table = pd.DataFrame(
        {
            "client_id": clients.repeat(4),
            "sku": bought.ravel(),
            "timestamp": pd.Timestamp("2023-01-01"),
        }
    )
    table.to_parquet(data / "input" / "product_buy.parquet")
    for event in ("add_to_cart", "remove_from_cart", "page_visit", "search_query"):
        (data / "input" / f"{event}.parquet").unlink()
    np.save(data / "input" / "relevant_clients.npy", clients)
    for loss in ("warp", "bpr"):
        training = TrainingSettings(epochs=12, batch=64, lr=0.1)
        chosen = settings(
            loss=loss, training=training, user_features=("sku",), item_features=("sku",)
        )
        fit(context(data), chosen, tmp_path)
        facts = read(context(data), chosen)
        made = Factorization(len(facts.kept[0]), len(facts.kept[1]), 8)
        load_network(made, tmp_path)
        with torch.no_grad():
            vectors = made.clients(
                facts, facts.pairs.client, (facts.pairs.item, facts.pairs.events)
            )
            scores = made.scores(facts, vectors, np.tile(np.arange(20), (len(vectors), 1))).numpy()
        same = (np.arange(20) >= 10) == (facts.pairs.item[:, None] >= 10)
        assert auroc(scores.T, same.T).mean() > 0.95


def test_vectors_use_all_their_dimensions(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """The public code's vectors have rank 2 or 3, and there are as many of them as features."""
    fit(context(small), settings(), tmp_path)
    found = embed(context(small), settings(), tmp_path)
    table = read_events(small)
    active = np.intersect1d(np.load(small / "input" / "relevant_clients.npy"), table["client_id"])
    assert np.array_equal(found.client_ids, active) and found.vectors.shape == (len(active), 8)
    spread = np.linalg.svd(found.vectors - found.vectors.mean(0), compute_uv=False)
    assert spread[-1] > 0.05 * spread[0]
    # by searches alone, whoever has searched
    queries = settings(user_features=("query",), item_features=("name",))
    fit(context(small), queries, tmp_path)
    searched = table.loc[table["event"] == 4, "client_id"]
    assert np.array_equal(
        embed(context(small), queries, tmp_path).client_ids, np.intersect1d(active, searched)
    )


def test_the_same_seed_gives_the_same_bytes(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    found = []
    for name, seed, threads in (("a", 0, 1), ("b", 0, 2), ("c", 1, 2)):
        (tmp_path / name).mkdir()
        ours = context(small, seed=seed, threads=threads)
        fit(ours, settings(), tmp_path / name)
        found.append(embed(ours, settings(), tmp_path / name).vectors.tobytes())
    assert found[0] == found[1] != found[2]


def test_gradients_do_not_depend_on_threads(small: Path, context: Callable[..., Context]) -> None:
    """Large enough for torch to share the work; indexing by [...] would add up in any order."""
    facts = read(context(small), settings())
    made = network(facts.kept, 64)
    numbers = np.random.default_rng(0).integers(len(facts.as_item.offsets) - 1, size=(4000, 10))
    clients = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (2, 2, 2, 1):
            torch.set_num_threads(threads)
            made.zero_grad()
            made.scores(facts, clients, numbers).square().sum().backward()
            assert made.item.grad is not None
            found.add(made.item.grad.coalesce().values().numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_new_clients_are_embedded_like_fitted_ones(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """Also when there are fewer products than before, and one that was never seen."""
    fit(context(small), settings(), tmp_path)
    fitted = embed(context(small), settings(), tmp_path)
    other = shutil.copytree(small, tmp_path / "new")
    some = fitted.client_ids[::4]
    for file in (other / "input").glob("*.parquet"):
        table = pd.read_parquet(file)
        table[table["client_id"].isin(some)].assign(
            client_id=lambda t: t["client_id"] + 10**6
        ).to_parquet(file)
    unknown = pd.read_parquet(other / "input" / "product_buy.parquet").assign(sku=999)
    bought = pd.concat([pd.read_parquet(other / "input" / "product_buy.parquet"), unknown])
    bought.to_parquet(other / "input" / "product_buy.parquet")
    np.save(other / "input" / "relevant_clients.npy", some + 10**6)
    new = embed(context(other), settings(), tmp_path)
    assert np.array_equal(new.client_ids - 10**6, some)
    assert np.abs(new.vectors - fitted.vectors[::4]).max() < 1e-6


def test_rare_features_are_dropped(small: Path, context: Callable[..., Context]) -> None:
    chosen = settings(
        user_features=("url:7", "sku:min30", "category"), item_features=("sku:5", "price")
    )
    facts = read(context(small), chosen)
    user, item = facts.kept
    table = read_events(small)
    own = table[table["client_id"].isin(facts.clients)]
    urls = own["url"].value_counts()
    assert set(user[user[:, 0] == FAMILIES.index("url"), 1]) <= set(
        urls[urls >= urls.iloc[6]].index
    )
    assert (user[:, 0] == FAMILIES.index("url")).sum() == 7
    skus = own.loc[own["event"] < 2, "sku"].value_counts()
    assert set(user[user[:, 0] == FAMILIES.index("sku"), 1]) == set(skus[skus >= 30].index)
    assert (item[:, 0] == FAMILIES.index("sku")).sum() == 5
    assert np.array_equal(user, user[np.lexsort(user.T[::-1])])


def test_the_best_state_is_what_is_exported(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    fit(
        context(small),
        settings(training=TRAINING.model_copy(update={"epochs": 12, "lr": 0.5})),
        tmp_path,
    )
    facts = json.loads((tmp_path / "training.json").read_text())
    losses = [epoch["held_out"] for epoch in facts["epochs"]]
    assert facts["best"] == min(losses) and facts["best_epoch"] == losses.index(min(losses)) + 1


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"weights": {"page_visit": 1}}, "page_visit has no product"),
        ({"weights": {"product_buy": -1}}, "at least one weight must be above 0"),
        (
            {"item_features": ("query",)},
            "'query' is not a feature here; use sku, category, price, name",
        ),
        ({"user_features": ("day",)}, "'day' is not a feature here"),
        ({"training": {"clip": 1.0}}, "do not go with sparse gradients"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)
