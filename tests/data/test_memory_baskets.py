"""The counts of the memory on baskets, beside plain counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from behavegpt.data.loader import memory_of
from behavegpt.data.memory_baskets import history_memory
from behavegpt.data.memory_counts import Counts, count_store
from behavegpt.data.memory_past import DECAYS, EXPERTS, WEIGHTS
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.ingest.prepare import prepare
from tests.basket_logs import SCHEMA, retail_log

USER = EXPERTS.index("user")


@pytest.fixture(scope="module")
def store(
    shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> EventStore:
    folder = tmp_path_factory.mktemp("baskets")
    return prepare(retail_log(shared_data, 63), folder / "data", SCHEMA)


@pytest.fixture(scope="module")
def counts(store: EventStore) -> Counts:
    return count_store(store)


def probability(
    told: dict[str, np.ndarray], row: int, classes: int, prior: np.ndarray
) -> np.ndarray:
    """(K, J + 1) of all classes at a position."""
    whole = told["rest"][row] * prior[:, None]
    mine = told["owner"] == row
    whole[told["classes"][mine]] = told["probability"][mine]
    return whole


def test_experts_of_the_user_are_counts_of_the_baskets_before(
    store: EventStore, counts: Counts
) -> None:
    baskets, prior = store.baskets, counts.tables.prior.astype(float)
    assert baskets is not None
    rows = target_rows(store, TRAIN)[::97]
    basket = np.searchsorted(baskets.begin, rows, side="right") - 1
    told = memory_of(store, counts).at(baskets.begin[basket] - 1)
    arrays = {name: tensor.numpy() for name, tensor in told.items()}

    behavior = store.column("behavior").astype(int) - FIRST
    for row, m in enumerate(basket.tolist()):
        user = np.searchsorted(baskets.offsets, m, side="right") - 1
        number = np.zeros(len(prior))
        recent = np.zeros((len(DECAYS), len(prior)))
        for before in range(baskets.offsets[user], m):
            recent *= np.exp(-1 / np.array(DECAYS))[:, None]
            members = sorted(set(behavior[baskets.begin[before] : baskets.begin[before + 1]]))
            number[members] += 1
            recent[:, members] += 1

        found = probability(arrays, row, len(prior), prior)
        weight = WEIGHTS[USER]
        of_user = (number + weight * prior) / (number.sum() + weight)
        candidates = arrays["classes"][arrays["owner"] == row]
        np.testing.assert_allclose(found[candidates, USER], of_user[candidates], rtol=1e-4)
        first = EXPERTS.index("user_recent_2")
        for place, decayed in enumerate(recent):
            weight = WEIGHTS[first + place]
            expected = (decayed + weight * of_user) / (decayed.sum() + weight)
            np.testing.assert_allclose(
                found[candidates, first + place], expected[candidates], rtol=1e-3
            )


def test_no_event_of_a_basket_counts_for_another_of_it(store: EventStore, counts: Counts) -> None:
    """What is told before a basket is the same whatever is in it, and the same for all of it."""
    baskets = store.baskets
    assert baskets is not None
    user = int(np.argmax(np.diff(baskets.offsets)))
    part = slice(store.offsets[user], store.offsets[user + 1])
    columns = {name: np.asarray(column[part]) for name, column in store.columns.items()}
    columns["time"] = columns["time"].astype(np.int64) + store.manifest.time_origin
    columns["behavior"] = np.asarray(store.column("behavior")[part])
    offsets = np.array([0, len(columns["behavior"])])
    begin = baskets.begin[baskets.offsets[user] : baskets.offsets[user + 1] + 1] - part.start

    last = len(begin) - 2
    before, inside = np.array([begin[last] - 1]), slice(begin[last], begin[last + 1])
    expected = history_memory(columns, offsets, counts).at(before)
    changed = {name: column.copy() for name, column in columns.items()}
    for name in ("behavior", "event", "slot", "weekday", "location"):
        changed[name][inside] = np.roll(changed[name][inside] % 5 + 2, 1)
    found = history_memory(changed, offsets, counts).at(before)
    for name, tensor in expected.items():
        assert np.array_equal(found[name].numpy(), tensor.numpy()), name

    # and a basket that is taken up does change what comes next
    after = np.array([begin[last + 1] - 1])
    assert not np.array_equal(
        history_memory(changed, offsets, counts).at(after)["context"].numpy(),
        history_memory(columns, offsets, counts).at(after)["context"].numpy(),
    )


def test_global_tables_count_from_basket_to_basket(store: EventStore, counts: Counts) -> None:
    """As many followers as training targets with a known behavior before their basket."""
    baskets, tables = store.baskets, counts.tables
    assert baskets is not None
    targets = target_rows(store, TRAIN)
    # every target follows an hour, whatever is known before it
    keys = tables.key[tables.key >= 0]
    of_hour = tables.row[tables.key >= 0][keys % 8 == 2]
    assert tables.total[of_hour, -1].sum() == len(targets)


def test_training_reads_leave_out_what_came_later(store: EventStore, counts: Counts) -> None:
    baskets = store.baskets
    assert baskets is not None
    rows = target_rows(store, TRAIN)[::31]
    basket = np.searchsorted(baskets.begin, rows, side="right") - 1
    position = baskets.begin[basket] - 1
    known = memory_of(store, counts).at(position)
    held = memory_of(store, counts, leave_out=True).at(position)
    evidence = EXPERTS.index("global_at_weekend_hour")
    assert (held["evidence"][:, evidence] <= known["evidence"][:, evidence]).all()
    assert (held["evidence"][:, evidence] < known["evidence"][:, evidence]).any()
    assert np.array_equal(held["evidence"][:, USER].numpy(), known["evidence"][:, USER].numpy())
