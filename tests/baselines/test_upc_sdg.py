"""UPC-SDG-style perturbation: factors and loss by hand, both knobs, what stays, seeds, no
future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from behavegpt.baselines.approximate.upc_sdg import (
    Perturber,
    UPCSettings,
    count_table,
    factorize,
    perturb,
    perturbation_loss,
    train,
    upc_sdg,
    user_vectors,
)
from behavegpt.baselines.generators import GENERATORS, known
from tests.baselines.test_generators import setting
from tests.baselines.test_seqgan import check_seeds_and_leaks

TINY = UPCSettings(events=2000, factors=6, batch=8, rho=0.5)


def log(users=40, size=20, seed=0):
    """Events of users, each out of one of four groups of labels."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(users), 30)
    return owner, (owner % 4) * 5 + rng.integers(5, size=len(owner)), np.arange(users + 1) * 30


def test_factors_rebuild_the_table():
    owner, events, _ = log()
    table = count_table(owner, events, 40, 20)
    dense = table.to_dense().numpy()
    assert dense[3, 17] == pytest.approx(np.log1p(((owner == 3) & (events == 17)).sum()))
    _, values, right = np.linalg.svd(dense)
    vectors = factorize(table, 4).numpy()
    gram = right[:4].T @ np.diag(values[:4]) @ right[:4]
    length = np.sqrt(np.diag(gram))
    assert np.allclose(vectors @ vectors.T, gram / length / length[:, None], atol=1e-3)


def test_a_table_too_large_to_be_dense_is_factorized():
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(200_000, size=300_000))
    # 40 GB if it were
    table = count_table(owner, rng.zipf(1.3, size=len(owner)) % 50_000, 200_000, 50_000)
    vectors = factorize(table, 8)
    assert vectors.shape == (50_000, 8) and bool(user_vectors(table, vectors).isfinite().all())


def test_loss_by_hand():
    torch.manual_seed(0)
    model = Perturber(
        torch.nn.functional.normalize(torch.randn(6, 4)), torch.ones(6, dtype=torch.bool)
    )
    user, events = torch.randn(2, 4), torch.tensor([[0, 3, 3], [5, 1, 2]])
    new, privacy = torch.tensor([[1, 3, 0], [2, 2, 4]]), torch.tensor([0.2, 0.9])
    drawn = torch.nn.functional.one_hot(new, 6).float()
    e, u = model.vectors.numpy(), user.numpy()
    utility, similar, rebuilt = [], [], []
    for b in range(2):
        c = model.contributions(user, events)[b].detach().numpy()
        for i, j in zip(events[b], new[b], strict=True):
            utility.append(np.log1p(np.exp(-u[b] @ e[j])))
            cosine = e[i] @ e[j] / np.linalg.norm(e[i]) / np.linalg.norm(e[j])
            similar.append(max(0.0, cosine - privacy[b].item()))
        mean = (np.exp(c) / np.exp(c).sum()) @ e[events[b]]
        rebuilt.append(
            (
                model.transform.weight.detach().numpy() @ mean
                + model.transform.bias.detach().numpy()
                - u[b]
            )
            ** 2
        )
    found = perturbation_loss(model, user, events, privacy, drawn)
    assert found.item() == pytest.approx(
        np.mean(utility) + 3 * np.mean(similar) + np.mean(rebuilt), rel=1e-5
    )


def test_privacy_and_share_are_obeyed():
    owner, events, offsets = log()
    table = count_table(owner, events, 40, 20)
    vectors = factorize(table, 8)
    user = user_vectors(table, vectors)
    torch.manual_seed(0)
    model = Perturber(vectors, torch.bincount(torch.from_numpy(events), minlength=20) > 0)
    train(model, user, events, offsets, UPCSettings(events=90_000, batch=8))
    own = torch.from_numpy(events).view(40, 30)
    similarity, kept = {}, {}
    for privacy in (0.0, 0.5, 1.0):
        new = perturb(model, user, own, 0.2, privacy)
        moved = perturb(model, user, own, 1.0, privacy)
        similarity[privacy] = (
            torch.cosine_similarity(vectors[moved], vectors[own], dim=2).mean().item()
        )
        kept[privacy] = (moved // 5 == own // 5).float().mean().item()
        assert ((new != own).sum(1) <= 6).all(), "a fifth of thirty events at most"
    assert similarity[0.0] < similarity[0.5] - 0.02 and similarity[0.5] < similarity[1.0] - 0.02, (
        similarity
    )
    assert kept[1.0] > kept[0.0], "less privacy, more utility: the user's own group"
    assert torch.equal(perturb(model, user, own, 0.0, 0.5), own)


def test_least_contributing_events_go():
    torch.manual_seed(0)
    model = Perturber(torch.randn(9, 4), torch.arange(9) < 8)
    user, events = torch.randn(5, 4), torch.randint(8, (5, 10))
    new = perturb(model, user, events, 0.3, 0.5)
    least = model.contributions(user, events).argsort(1)[:, 3:]
    assert torch.equal(new.gather(1, least), events.gather(1, least))
    assert (perturb(model, user, events, 1.0, 0.5) != 8).all(), "nothing that training never saw"


def test_what_is_not_replaced_is_the_window_again():
    store, histories = setting()
    histories = known(histories)
    window, gaps = GENERATORS["repeat_window"](histories, store, 10, np.random.default_rng(0))
    for rho, most in ((0.0, 0), (0.2, 2), (0.5, 5)):
        columns, gap = upc_sdg(
            histories, store, 10, np.random.default_rng(1), replace(TINY, rho=rho)
        )
        assert np.array_equal(gap, gaps)
        other = columns["event"] != window["event"]
        assert (other.sum(1) <= most).all() and other.any() == (rho > 0)
        for name, column in columns.items():
            assert np.array_equal(column[~other], window[name][~other])
    trained = np.asarray(store.columns["split"]) == 0
    events = set(
        zip(
            *(np.asarray(store.column(n))[trained] for n in ("event", "location", "behavior")),
            strict=True,
        )
    )
    assert (
        set(zip(*(columns[n][other] for n in ("event", "location", "behavior")), strict=True))
        <= events
    )


def test_seeds_and_no_look_at_the_future():
    check_seeds_and_leaks(upc_sdg, TINY)
