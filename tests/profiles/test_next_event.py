"""Next-event transformers: packing, the sampled softmax, and what a vector depends on."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from behavegpt.profiles.fields import MISSING, RARE
from behavegpt.profiles.histories import Body, Shape, last_states, mean_states, pack
from behavegpt.profiles.members import Context
from behavegpt.profiles.next_event import (
    NextEvent,
    NextEventSettings,
    batch,
    embed,
    fit,
    softmax_loss,
)
from behavegpt.profiles.task import TrainingSettings
from tests.profiles.makers import read_events

SHAPE = Shape(embedding_size=8, layers=1, heads=2, longest=10, dropout=0.0)
TRAINING = TrainingSettings(epochs=3, batch=8, lr=1e-2)
VISITS = NextEventSettings(
    fields=("url:min2",), events=("page_visit",), shape=SHAPE, training=TRAINING
)
PRODUCTS = NextEventSettings(
    fields=("category", "event", "price"),
    events=("product_buy", "add_to_cart", "remove_from_cart"),
    clients="all",
    pool=("last", "mean"),
    shape=SHAPE.model_copy(update={"embedding_size": 4, "heads": 2}),
    training=TRAINING,
)


@pytest.mark.parametrize("rope", [False, True])
def test_a_packed_history_is_read_as_if_alone(rope: bool) -> None:
    """Against transformers' own way of one row for each history, and for any company."""
    torch.manual_seed(0)
    shape = SHAPE.model_copy(update={"positions": "rope" if rope else "learned"})
    body = Body({"url": 30, "hour": 9}, shape).eval()
    rng = np.random.default_rng(0)
    lengths = np.array([3, 10, 1, 7, 10, 2])
    columns = {
        "event": rng.integers(3, 30, lengths.sum()),
        "hour": rng.integers(3, 9, lengths.sum()),
    }
    packed = pack(columns, lengths, shape.longest)
    states = body(packed)
    assert packed.rows.document.shape[0] == 1  # 33 events share one row of 64
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        plain = {
            name: torch.from_numpy(column[None, start:stop]) for name, column in columns.items()
        }
        alone = body.model(plain["event"], hour_ids=plain["hour"]).last_hidden_state[0]
        assert torch.allclose(states[start:stop], alone, atol=1e-6)
        assert torch.allclose(last_states(states, packed.bounds)[number], alone[-1], atol=1e-6)
        assert torch.allclose(mean_states(states, packed.bounds)[number], alone.mean(0), atol=1e-6)


def test_the_sampled_softmax_is_the_full_one_on_average() -> None:
    torch.manual_seed(0)
    x, table, bias = torch.randn(5, 4), torch.randn(44, 4), torch.randn(44)
    target = torch.randint(RARE, 44, (5,))
    full = F.cross_entropy((x @ table.T + bias)[:, RARE:], target - RARE)
    # enough for all 40 candidates
    assert torch.isclose(softmax_loss(x, target, table, bias, negatives=40), full)
    logits = (x @ table.T + bias)[:, RARE:]
    wanted = torch.zeros_like(logits).scatter(1, target[:, None] - RARE, 1.0).bool()
    others = logits.masked_fill(wanted, -torch.inf).exp().sum(1)
    found = []
    for _ in range(1500):  # exp(loss) of one event is 1 + (sum of the others) / (its own): unbiased
        loss = softmax_loss(x[:1], target[:1], table, bias, negatives=10)
        found.append(loss.exp() - 1)
    mean, error = torch.stack(found).mean(), torch.stack(found).std() / 1500**0.5
    assert abs(mean - others[0] / logits[wanted][0].exp()) < 4 * error
    gradient = torch.autograd.grad(
        softmax_loss(x, target, table.requires_grad_(), bias, negatives=10), table
    )[0]
    assert (gradient[:RARE] == 0).all()  # padding and missing are no candidates


def test_targets_are_the_next_events(small: Path, context: Callable[..., Context]) -> None:
    """Field by field, in the order of time; events of one moment are drawn in any order, and all of
    them are there."""
    ours = context(small)
    store = ours.sequences(PRODUCTS.sequence, ours.vocabularies(PRODUCTS.sequence))
    rows = np.flatnonzero(store.lengths > 2)
    packed, targets = batch(store, rows, PRODUCTS, np.random.default_rng(0))
    other, _ = batch(store, rows, PRODUCTS, np.random.default_rng(1))
    flat = packed.rows.inputs["category_ids"].flatten()[packed.place]
    assert not torch.equal(flat, other.rows.inputs["category_ids"].flatten()[other.place])
    for number, row in enumerate(rows):
        start, stop = packed.bounds[number].item(), packed.bounds[number + 1].item()
        mine = slice(store.offsets[row], store.offsets[row + 1])
        categories, times = (
            np.asarray(store.columns["category"][mine]),
            np.asarray(store.columns["time"][mine]),
        )
        read = np.append(flat[start:stop].numpy(), targets["category"][stop - 1].item())
        assert np.array_equal(targets["category"][start:stop], read[1:])
        newest = slice(max(len(categories) - 11, 0), None)
        for moment in np.unique(times[newest]):
            at = times[newest] == moment
            assert sorted(read[at]) == sorted(categories[newest][at])


@pytest.mark.parametrize("settings", [VISITS, PRODUCTS], ids=["visits", "products"])
def test_the_same_seed_and_any_company_give_the_same_vectors(
    settings: NextEventSettings, small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        fit(context(small, seed=seed), settings, tmp_path / name)
        found.append(embed(context(small, seed=seed), settings, tmp_path / name))
    assert found[0].vectors.tobytes() == found[1].vectors.tobytes() != found[2].vectors.tobytes()
    some = found[0].client_ids[::4]
    np.save(tmp_path / "some.npy", some)
    fewer = embed(context(small, clients=str(tmp_path / "some.npy")), settings, tmp_path / "a")
    assert np.array_equal(fewer.client_ids, some)
    assert np.abs(fewer.vectors - found[0].vectors[::4]).max() < 1e-5
    table = read_events(small)
    kinds = [0, 1, 2] if settings is PRODUCTS else [3]
    relevant = np.load(small / "input" / "relevant_clients.npy")
    assert set(found[0].client_ids) == set(
        table.loc[table["event"].isin(kinds), "client_id"]
    ) & set(relevant)
    assert found[0].vectors.shape[1] == (24 if settings is PRODUCTS else 8)


def test_training_learns_a_rule(
    tmp_path: Path, small: Path, context: Callable[..., Context]
) -> None:
    """Each url follows from the one before: the loss falls far below that of the frequencies."""
    other = shutil.copytree(small, tmp_path / "rule")
    clients = np.repeat(np.load(small / "input" / "relevant_clients.npy"), 12)
    start = np.random.default_rng(0).integers(0, 7, len(clients) // 12).repeat(12)
    step = np.tile(np.arange(12), len(clients) // 12)
    visits = {
        "client_id": clients,
        "timestamp": pd.Timestamp("2023-01-01") + pd.to_timedelta(step, unit="h"),
    }
    pd.DataFrame(visits | {"url": (start + 3 * step) % 7}).to_parquet(
        other / "input" / "page_visit.parquet"
    )
    settings = VISITS.model_copy(
        update={"training": TrainingSettings(epochs=30, batch=8, lr=1e-2, patience=30)}
    )
    fit(context(other), settings, tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["best"] < 0.2 < np.log(7)


def test_what_is_missing_is_not_predicted(small: Path, context: Callable[..., Context]) -> None:
    """An event without a category counts for nothing in the loss of categories."""
    ours = context(small)
    store = ours.sequences(PRODUCTS.sequence, ours.vocabularies(PRODUCTS.sequence))
    rows = np.flatnonzero(store.lengths > 2)
    packed, targets = batch(store, rows, PRODUCTS, np.random.default_rng(0))
    sizes = {name: store.sizes[name] for name in PRODUCTS.names}
    network = NextEvent(sizes, ("category",), 100, PRODUCTS.shape)
    there = targets["category"] != MISSING
    assert not there.all()
    states = network.body(packed)[there]
    logits = (
        network.heads["category"](states) @ network.body.table("category").T
        + network.biases["category"]
    )
    wanted = F.cross_entropy(logits[:, RARE:], targets["category"][there] - RARE)
    assert torch.isclose(network(packed, targets), wanted)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="sku is not among the fields category, event"):
        NextEventSettings(fields=("category", "event"), predict=("sku",))
