"""Members that learn from a held-out window: what is cut where, what is asked for, and what a
vector depends on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.errors import DataError
from behavegpt.profiles.future import contrastive
from behavegpt.profiles.future import member as future
from behavegpt.profiles.future.contrastive import (
    Contrast,
    ContrastiveSettings,
    info_nce,
    read_futures,
)
from behavegpt.profiles.future.member import FutureSettings, targets
from behavegpt.profiles.future.tower import Tower, TowerSettings, embed_tower
from behavegpt.profiles.future.windows import (
    AGES,
    DAY,
    RECENT,
    CutSettings,
    counts,
    cut_histories,
    end_of,
    read_past,
    whole,
)
from behavegpt.profiles.histories import Shape
from behavegpt.profiles.members import Context
from behavegpt.profiles.probe import auroc
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.profiles.task import TrainingSettings
from tests.profiles.makers import FIRST_DAY, read_events

COMMON = {
    "fields": ("event", "category", "sku:10", "url:10"),
    "cut": CutSettings(horizon=7, moments=3, step=5),
    "shape": Shape(embedding_size=4, layers=1, heads=2, longest=20, dropout=0.0),
    "dimensions": 8,
    "training": TrainingSettings(epochs=3, batch=10, lr=1e-2, held_out=0.1),
    "clients": "all",
}
FUTURE = FutureSettings(predict={"category": 4, "sku": 3}, **COMMON)
CONTRASTIVE = ContrastiveSettings(**COMMON)


def opened(path: Path, context: Callable[..., Context]) -> SequenceStore:
    ours = context(path)
    return ours.sequences(FUTURE.sequence, ours.vocabularies(FUTURE.sequence))


def test_pasts_and_futures_are_cut_where_a_loop_cuts_them(
    small: Path, context: Callable[..., Context]
) -> None:
    store = opened(small, context)
    table = read_events(small).assign(
        seconds=lambda t: t["timestamp"].astype("datetime64[s]").astype("int64")
    )
    now = end_of(store)
    assert now == table["seconds"].max() + 1
    cuts = cut_histories(store, FUTURE.cut, now)
    assert cuts.moment.tolist() == [now - 7 * DAY, now - 12 * DAY, now - 17 * DAY]
    rows = np.flatnonzero(cuts.usable == 3)
    known = {name: store.vocabularies.values[name].tolist() for name in ("category", "sku")}
    for of in cuts.all_of(rows):
        wanted = targets(store, of, FUTURE)
        read = read_past(store, of, FUTURE.names, 20)
        summary = counts(read).exp() - 1
        for n in range(len(of.row)):
            mine = table[table["client_id"] == store.clients[of.row[n]]].sort_values(
                ["seconds", "event"]
            )
            before = mine[mine["seconds"] < of.cut[n]].tail(20)
            after = mine[(mine["seconds"] >= of.cut[n]) & (mine["seconds"] < of.cut[n] + 7 * DAY)]
            assert wanted["events"][n].tolist() == [
                float((after["event"] == kind).any()) for kind in range(5)
            ]
            bought = after[after["event"] == 0]
            for field, top in FUTURE.predict.items():
                values = bought[field].dropna().astype(int).tolist()
                assert wanted[field][n].tolist() == [
                    float(value in values) for value in known[field][:top]
                ]
            ages = (of.cut[n] - before["seconds"]) / DAY
            some = slice(read.packed.bounds[n], read.packed.bounds[n + 1])
            assert np.allclose(read.days[some].numpy(), ages)
            age = read.packed.rows.inputs["age_ids"].flatten()[read.packed.place][some]
            assert age.tolist() == [min(int(2 * np.log2(1 + days * 24)), AGES - 1) for days in ages]
            for index, window in enumerate((*RECENT, np.inf)):
                wanted_counts = [
                    ((before["event"] == kind) & (ages < window)).sum() for kind in range(5)
                ]
                assert np.allclose(
                    summary[n, 5 * index : 5 * index + 5].numpy(), wanted_counts, atol=1e-4
                )
            assert np.allclose(summary[n, -2:].numpy(), [ages.iloc[-1], ages.iloc[0]], rtol=1e-4)


def test_nothing_after_the_history_is_asked_for(
    small: Path, context: Callable[..., Context]
) -> None:
    """The last future ends with the input; the events of a whole history are all past."""
    store = opened(small, context)
    cuts = cut_histories(store, FUTURE.cut, end_of(store))
    assert np.array_equal(cuts.end[0], store.offsets[1:])
    assert (cuts.stop[1:] <= cuts.stop[:-1]).all()
    everybody = whole(store, np.arange(len(store.clients)), end_of(store))
    assert np.array_equal(everybody.stop, everybody.end)
    drawn = cuts.draw(np.flatnonzero(cuts.usable), np.random.default_rng(0))
    assert (drawn.stop > store.offsets[drawn.row]).all()  # nobody without a past
    with pytest.raises(DataError, match=r"choose a smaller cut\.horizon"):
        cut_histories(store, CutSettings(horizon=400), end_of(store))


@pytest.mark.parametrize(
    "fit,settings",
    [(future.fit, FUTURE), (contrastive.fit, CONTRASTIVE)],
    ids=["future", "contrastive"],
)
def test_the_same_seed_and_any_company_give_the_same_vectors(
    fit: Callable[..., None],
    settings: TowerSettings,
    small: Path,
    tmp_path: Path,
    context: Callable[..., Context],
) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        fit(context(small, seed=seed), settings, tmp_path / name)
        found.append(embed_tower(context(small, seed=seed), settings, tmp_path / name))
    assert found[0].vectors.tobytes() == found[1].vectors.tobytes() != found[2].vectors.tobytes()
    some = found[0].client_ids[::4]
    np.save(tmp_path / "some.npy", some)
    fewer = embed_tower(
        context(small, clients=str(tmp_path / "some.npy")), settings, tmp_path / "a"
    )
    assert np.abs(fewer.vectors - found[0].vectors[::4]).max() < 1e-5
    # a directory that ends earlier: ages are still those at the end of the history that was fitted
    other = shutil.copytree(small, tmp_path / "fewer")
    for file in (other / "input").glob("*.parquet"):
        events = pd.read_parquet(file)
        events[events["client_id"].isin(some[:2])].to_parquet(file, index=False)
    few = embed_tower(context(other), settings, tmp_path / "a")
    assert few.client_ids.tolist() == some[:2].tolist()
    assert np.abs(few.vectors - found[0].vectors[::4][:2]).max() < 1e-5


def test_info_nce_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 3), torch.randn(5, 3)
    cosine = [[float(F.cosine_similarity(a, b, dim=0)) / 0.2 for b in theirs] for a in ours]
    matrix = np.exp(np.array(cosine))
    forth = -np.log(np.diag(matrix) / matrix.sum(axis=1)).mean()
    back = -np.log(np.diag(matrix) / matrix.sum(axis=0)).mean()
    assert np.isclose(float(info_nce(ours, theirs, 0.2)), (forth + back) / 2, atol=1e-5)


def test_an_empty_future_is_no_partner(small: Path, context: Callable[..., Context]) -> None:
    store = opened(small, context)
    cuts = cut_histories(store, CutSettings(horizon=0.6, moments=1), end_of(store))
    of = cuts.at(np.zeros(np.count_nonzero(cuts.usable), np.int64), np.flatnonzero(cuts.usable))
    there = of.end > of.stop
    assert 1 < there.sum() < len(there)
    sizes = {name: store.sizes[name] for name in CONTRASTIVE.names}
    torch.manual_seed(0)
    network = Contrast(Tower(sizes, CONTRASTIVE.shape, 8), sizes, CONTRASTIVE).eval()
    read, theirs = (
        read_past(store, of, CONTRASTIVE.names, 20),
        read_futures(store, of, CONTRASTIVE.names),
    )
    vectors = network.tower(read)
    wanted = 0.3 * F.binary_cross_entropy_with_logits(
        network.empty(vectors)[:, 0], torch.from_numpy(~there).float()
    )
    means = [
        sum(
            network.tables[name](ids[theirs.bounds[n] : theirs.bounds[n + 1]])
            for name, ids in theirs.ids.items()
        ).mean(0)
        for n in np.flatnonzero(there)
    ]
    wanted = wanted + info_nce(
        network.project(vectors[there]), network.future(torch.stack(means)), 0.1
    )
    assert torch.isclose(network(read, theirs), wanted)


def test_a_planted_future_is_learned(
    tmp_path: Path, small: Path, context: Callable[..., Context]
) -> None:
    """Half of the clients buy their favorite every other day, half have stopped: both must be read
    from the past."""
    other = shutil.copytree(small, tmp_path / "planted")
    rng = np.random.default_rng(0)
    clients, favorite = np.arange(240) + 1, rng.integers(0, 4, 240)
    tables = []
    for client in clients:
        last = 30 if client % 2 else 60
        days = np.arange(rng.integers(0, 2), last, 2)
        moments = FIRST_DAY + pd.to_timedelta(days * 24 + rng.integers(0, 20, len(days)), unit="h")
        tables.append(
            pd.DataFrame({"client_id": client, "timestamp": moments, "sku": favorite[client - 1]})
        )
    for file in (other / "input").glob("*.parquet"):
        pd.read_parquet(file)[:0].to_parquet(file, index=False)
    everything = pd.concat(tables, ignore_index=True)
    cut = everything["timestamp"].max() - pd.Timedelta(days=7)
    everything[everything["timestamp"] < cut].to_parquet(
        other / "input" / "product_buy.parquet", index=False
    )
    np.save(other / "input" / "relevant_clients.npy", clients)
    later = everything[everything["timestamp"] >= cut]
    wanted = np.stack(
        [
            [((later["client_id"] == c) & (later["sku"] == s)).any() for s in range(4)]
            for c in clients
        ]
    )
    training = TrainingSettings(epochs=25, batch=30, lr=5e-3, held_out=0.1, patience=10)
    settings = FUTURE.model_copy(
        update={"training": training, "predict": {"sku": 4}, "fields": ("event", "sku")}
    )
    settings = settings.model_copy(
        update={"shape": Shape(embedding_size=8, layers=1, heads=2, longest=20)}
    )
    future.fit(context(other), settings, tmp_path)
    vectors = embed_tower(context(other), settings, tmp_path).vectors
    x = np.hstack([vectors, np.ones((len(vectors), 1))])
    half = np.arange(len(x)) % 4 < 2
    weights = np.linalg.lstsq(x[half], wanted[half].astype(float), rcond=None)[0]
    assert auroc(x[~half] @ weights, wanted[~half]).min() > 0.95


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="week tells the date"):
        FutureSettings(fields=("week", "event"), predict={})
    with pytest.raises(ValueError, match="price is not among the fields event, sku"):
        FutureSettings(fields=("event", "sku"), predict={"price": 3})


assert len(EVENTS) == 5  # the loops above count on it
