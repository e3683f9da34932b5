"""Subsets are nested and by users; held-out users are never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, TEST, TRAIN, EventStore, open_store
from behavegpt.errors import DataError
from behavegpt.scaling.subsets import divide, heldout_store, training_store
from tests.helpers import random_store
from tests.runs import save_store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EventStore:
    folder = tmp_path_factory.mktemp("store") / "data"
    return open_store(save_store(random_store(seed=3, users=300, longest=40), folder))


def labels(store: EventStore) -> list[str]:
    return store.users().to_pylist()


def events_of(store: EventStore, user: str, split: int | None = None) -> list[list[int]]:
    """A user's events, one column after the other, counted out by hand."""
    u = labels(store).index(user)
    rows = range(store.offsets[u], store.offsets[u + 1])
    kept = [i for i in rows if split is None or store.columns["split"][i] == split]
    return [
        [int(store.columns[name][i]) for i in kept]
        for name in ("time", "event", "behavior", "slot")
    ]


def test_subsets_are_nested_by_users_and_hold_their_training_events_alone(store, tmp_path):
    division = divide(store, "test", 100, seed=0)
    heldout = heldout_store(division, tmp_path / "heldout")
    before: set[str] = set()
    for wanted in (200, 800, 2000):
        subset = training_store(division, wanted, tmp_path / str(wanted))
        users = set(labels(subset))
        assert before < users and not users & set(labels(heldout))
        targets = len(target_rows(subset, TRAIN))
        assert wanted <= targets < wanted + 40  # a whole user more at most
        assert not np.asarray(subset.columns["split"]).any()
        for user in list(users)[:20]:
            assert events_of(subset, user) == events_of(store, user, TRAIN)
        before = users


def test_held_out_users_keep_their_whole_history_and_targets(store, tmp_path):
    heldout = heldout_store(divide(store, "test", 100, seed=0), tmp_path / "heldout")
    assert 100 <= len(target_rows(heldout, TEST)) < 140
    for user in labels(heldout)[:20]:
        assert events_of(heldout, user) == events_of(store, user)


def test_classes_stay_and_counts_are_the_subsets_own(store, tmp_path):
    subset = training_store(divide(store, "test", 100, seed=0), 300, tmp_path / "s")
    for field, vocabulary in subset.vocabulary.items():
        assert vocabulary.hash == store.vocabulary[field].hash
        values, counts = np.unique(subset.columns[field], return_counts=True)
        seen = {int(v) - 2: int(c) for v, c in zip(values, counts, strict=True) if v >= 2}
        assert {i: int(c) for i, c in enumerate(vocabulary.counts) if c} == seen


def test_another_seed_holds_out_others(store):
    first, second = (set(divide(store, "test", 100, seed).heldout.tolist()) for seed in (0, 1))
    assert len(first & second) < len(first) / 2


def test_a_written_subset_is_opened_and_one_of_other_users_replaced(store, tmp_path: Path):
    folder = tmp_path / "s"
    training_store(divide(store, "test", 100, 0), 300, folder)
    stamp = (folder / "dataset.json").stat().st_mtime_ns
    training_store(divide(store, "test", 100, 0), 300, folder)
    assert (folder / "dataset.json").stat().st_mtime_ns == stamp
    other = training_store(divide(store, "test", 100, 1), 300, folder)
    assert set(labels(other)) == set(
        labels(training_store(divide(store, "test", 100, 1), 300, tmp_path / "t"))
    )


def test_what_the_log_cannot_give_is_refused(store, tmp_path):
    division = divide(store, "test", 100, seed=0)
    with pytest.raises(DataError, match=r"1,000,000 events asked for.*training targets"):
        training_store(division, 1e6, tmp_path / "s")
    everything = divide(store, "test", 10**9, seed=0)
    assert len(everything.heldout) == len(
        np.unique(np.searchsorted(store.offsets, target_rows(store, SPLITS["test"]), side="right"))
    )
    assert not set(everything.order.tolist()) & set(everything.heldout.tolist())
