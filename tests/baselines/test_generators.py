"""Trivial generators copy what happened, from where they say they do."""

from __future__ import annotations

import numpy as np
import pytest

from behavegpt.baselines.generators import GENERATORS, Histories, generate
from behavegpt.data.loader import columns_of
from tests.helpers import random_store


def setting(seed=3):
    """All but the test split of a store as histories, users without one left out."""
    store = random_store(seed=seed, users=25, longest=60, split=(0.5, 0.6))
    columns = columns_of(store)
    early = np.asarray(columns["split"]) < 2
    owner = np.repeat(np.arange(25), np.diff(store.offsets))
    known = np.unique(owner[early & (np.asarray(columns["behavior"]) >= 2)])
    keep = np.flatnonzero(early & np.isin(owner, known))
    offsets = np.searchsorted(owner[keep], [*known, 99])
    return store, Histories(
        {n: np.asarray(c)[keep] for n, c in columns.items()}, offsets, store.schema
    )


def own(histories, user):
    low, high = histories.offsets[user : user + 2]
    part = {n: c[low:high] for n, c in histories.columns.items()}
    known = part["behavior"] >= 2
    return {n: c[known].astype(np.int64) for n, c in part.items()}


@pytest.mark.parametrize("name", GENERATORS)
def test_shapes_seeds_and_whole_events(name):
    store, histories = setting()
    columns, gap = generate(name, histories, store, 30, seed=1)
    users = len(histories.offsets) - 1
    assert gap.shape == columns["event"].shape == (users, 30)
    assert (gap >= 0).all() and (columns["behavior"] >= 2).all()
    again, _ = generate(name, histories, store, 30, seed=1)
    assert np.array_equal(columns["event"], again["event"])
    events = set(
        zip(
            *(np.asarray(columns_of(store)[n]).tolist() for n in ("event", "location", "behavior")),
            strict=True,
        )
    )
    drawn = zip(
        *(columns[n].ravel().tolist() for n in ("event", "location", "behavior")), strict=True
    )
    assert set(drawn) <= events, "fields of an event stay together"


def test_the_window_is_repeated():
    store, histories = setting()
    columns, gap = generate("repeat_window", histories, store, 30, seed=0)
    for user in range(len(histories.offsets) - 1):
        mine = own(histories, user)
        last = mine["event"][-30:]
        assert np.array_equal(columns["event"][user], np.tile(last, 30)[:30])
        if len(mine["event"]) >= 31:
            assert np.array_equal(gap[user], np.diff(mine["time"])[-30:])


def test_own_events_of_about_the_hour():
    store, histories = setting()
    columns, gap = generate("user_by_hour", histories, store, 30, seed=0)
    for user in range(len(histories.offsets) - 1):
        mine = own(histories, user)
        assert set(columns["event"][user]) <= set(mine["event"])
        if len(mine["time"]) > 1:
            assert set(gap[user]) <= set(np.diff(mine["time"]))
        time = mine["time"][-1] + np.cumsum(gap[user])
        window = time % 86400 // 7200
        has = set(mine["slot"] // 4)
        for drawn, wanted in zip(columns["slot"][user] // 4, window, strict=True):
            assert drawn == wanted or wanted not in has


def test_markov_pairs_stand_in_training():
    store, histories = setting()
    columns, gap = generate("markov", histories, store, 40, seed=0)
    behavior = np.asarray(store.column("behavior")).astype(int)
    train = np.asarray(store.columns["split"]) == 0
    time = np.asarray(store.columns["time"]).astype(int)
    followed = set()
    for user in range(25):
        for row in range(store.offsets[user] + 1, store.offsets[user + 1]):
            if train[row] and min(behavior[row], behavior[row - 1]) >= 2:
                followed.add((behavior[row - 1], behavior[row], time[row] - time[row - 1]))
    before = np.array(
        [own(histories, user)["behavior"][-1] for user in range(len(columns["behavior"]))]
    )
    for step in range(40):
        now = columns["behavior"][:, step]
        assert (
            set(zip(before.tolist(), now.tolist(), gap[:, step].tolist(), strict=True)) <= followed
        )
        before = now


def test_a_user_without_a_known_behavior_is_refused():
    store, histories = setting()
    columns = dict(histories.columns)
    columns["behavior"] = np.ones_like(columns["behavior"])
    with pytest.raises(ValueError, match="known behavior"):
        generate("markov", Histories(columns, histories.offsets, store.schema), store, 5, 0)
