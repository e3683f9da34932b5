"""iALS: vectors are the closed form, the item factors a minimum, and new clients fold in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.errors import DataError
from behavegpt.profiles.ials import IalsSettings, embed, fit
from behavegpt.profiles.members import Context
from tests.profiles.makers import read_events

pytest.importorskip("implicit", reason="needs the extra `profiles`")

SETTINGS = IalsSettings(
    item="sku",
    weights={"product_buy": 3, "add_to_cart": 1},
    factors=6,
    alpha=2.0,
    regularization=0.1,
)


def dense(path: Path, clients: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Confidences (clients, items) by a loop."""
    table = read_events(path)
    matrix = np.zeros((len(clients), len(items)))
    for client, sku, event in table.loc[
        table["event"] < 2, ["client_id", "sku", "event"]
    ].itertuples(index=False):
        if client in clients:
            matrix[clients.tolist().index(client), items.tolist().index(sku)] += 2.0 * (
                3 if event == 0 else 1
            )
    return matrix


def objective(confidence: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Hu et al., equation 3, with confidence 1 where there is no event."""
    weight = np.where(confidence > 0, confidence, 1.0)
    return float(
        (weight * ((confidence > 0) - x @ y.T) ** 2).sum() + 0.1 * ((x**2).sum() + (y**2).sum())
    )


def test_vectors_are_the_closed_form(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    fit(context(small), SETTINGS, tmp_path)
    ours = embed(context(small), SETTINGS, tmp_path)
    items, y = np.load(tmp_path / "items.npy"), np.load(tmp_path / "factors.npy").astype(np.float64)
    confidence = dense(small, ours.client_ids, items)
    assert (confidence.sum(axis=1) > 0).all()
    wanted = []
    for row in confidence:
        weight = np.where(row > 0, row, 1.0)
        wanted.append(
            np.linalg.solve(
                y.T @ (weight[:, None] * y) + 0.1 * np.eye(6), y.T @ (weight * (row > 0))
            )
        )
    assert np.allclose(ours.vectors, wanted, atol=1e-4)
    # a client without purchases and carts is absent
    table = read_events(small)
    relevant = np.load(small / "input" / "relevant_clients.npy")
    buyers = set(table.loc[table["event"] < 2, "client_id"]) & set(relevant)
    assert set(ours.client_ids.tolist()) == buyers


def test_the_fit_reaches_what_dense_alternation_reaches(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    fit(
        context(small, clients="relevant"),
        SETTINGS.model_copy(update={"clients": "asked"}),
        tmp_path,
    )
    ours = embed(context(small), SETTINGS, tmp_path)
    items, y = np.load(tmp_path / "items.npy"), np.load(tmp_path / "factors.npy")
    confidence = dense(small, ours.client_ids, items)
    weight = np.where(confidence > 0, confidence, 1.0)
    rng = np.random.default_rng(0)
    best = np.inf
    for _ in range(5):
        b = rng.random((len(items), 6)) * 0.01
        for _ in range(40):
            a = np.stack([_solve(b, w, c > 0) for w, c in zip(weight, confidence, strict=True)])
            b = np.stack([_solve(a, w, c > 0) for w, c in zip(weight.T, confidence.T, strict=True)])
        best = min(best, objective(confidence, a, b))
    nothing = objective(confidence, np.zeros_like(a), np.zeros_like(b))
    assert objective(confidence, ours.vectors, y) < best + 0.05 * (nothing - best)


def _solve(factors: np.ndarray, weight: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    left = factors.T @ (weight[:, None] * factors) + 0.1 * np.eye(factors.shape[1])
    return np.linalg.solve(left, factors.T @ (weight * wanted))


def test_the_same_seed_gives_the_same_bytes(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    found = []
    for name, seed, threads in (("a", 0, 1), ("b", 0, 2), ("c", 1, 2)):
        (tmp_path / name).mkdir()
        ours = context(small, seed=seed, threads=threads)
        fit(ours, SETTINGS, tmp_path / name)
        found.append(embed(ours, SETTINGS, tmp_path / name).vectors.tobytes())
    assert found[0] == found[1] != found[2]


def test_rare_items_have_no_factors(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    few = SETTINGS.model_copy(update={"min_count": 20})
    fit(context(small), few, tmp_path)
    table = read_events(small)
    events = table.loc[table["event"] < 2, "sku"].value_counts()  # `clients: all`
    kept = events.index[events >= 20].astype(int)
    assert 0 < len(kept) < len(events)
    assert np.load(tmp_path / "items.npy").tolist() == sorted(kept)
    assert embed(context(small), few, tmp_path).vectors.shape[1] == 6
    with pytest.raises(DataError, match=r"has a sku that 9999 events have; .* lower min_count"):
        fit(context(small), SETTINGS.model_copy(update={"min_count": 9999}), tmp_path)


def test_unknown_items_count_for_nothing(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    import shutil

    fit(context(small), SETTINGS, tmp_path)
    before = embed(context(small), SETTINGS, tmp_path)
    other = shutil.copytree(small, tmp_path / "new")
    bought = pd.read_parquet(other / "input" / "product_buy.parquet")
    extra = bought[:20].assign(sku=999)
    pd.concat([bought, extra]).to_parquet(other / "input" / "product_buy.parquet")
    after = embed(context(other), SETTINGS, tmp_path)
    assert np.array_equal(before.vectors, after.vectors)


@pytest.mark.parametrize(
    "weights,item,message",
    [
        ({"page_visit": 1}, "sku", "page_visit has no sku"),
        ({"product_buy": 1}, "url", "product_buy has no url"),
        ({"product_buy": -1}, "sku", "above 0"),
        ({}, "sku", "at least 1"),
    ],
)
def test_wrong_settings_are_named(weights: dict[str, float], item: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IalsSettings.model_validate({"item": item, "weights": weights})
