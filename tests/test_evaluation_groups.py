"""Figures by groups of targets: each target in one group of a kind, counted as the whole is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import behavegpt
from behavegpt.data.pack import target_rows
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.evaluation_groups import FEWEST, HISTORY, MOST, WEEKDAY, group_figures
from behavegpt.metrics.bootstrap import TargetRanks

USERS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    rng = np.random.default_rng(0)
    often = 1 / (5 + np.arange(USERS))  # so that histories differ in length
    log = pd.DataFrame(
        {
            "user": [f"u{n}" for n in rng.choice(USERS, 3000, p=often / often.sum())],
            "time": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(3000), "h"),
            "event": rng.choice(list("abc"), 3000),
        }
    )
    people = pd.DataFrame(
        {
            "user": [f"u{n}" for n in range(1, USERS)],  # nothing is known of u0
            "country": ["at" if n % 2 else "ch" for n in range(1, USERS)],
            "age": [20 + n for n in range(1, USERS)],
        }
    )
    out = tmp_path_factory.mktemp("groups") / "data"
    schema = EventSchema(
        user="user", time="time", event="event", user_features=["country"], user_numeric=["age"]
    )
    return behavegpt.prepare(log, out, schema, users=people, split="time:.5,.1,.4")


def ranks_of(store: EventStore, ranks: np.ndarray | None = None) -> TargetRanks:
    found = TargetRanks(target_rows(store, SPLITS["test"]))
    found.sums[:] = 0
    if ranks is not None:
        found.sums.numpy()[:] = ranks
    return found


def test_groups_add_up_to_the_whole(store: EventStore) -> None:
    rows = target_rows(store, SPLITS["test"])
    drawn = np.random.default_rng(1).integers(0, 3, len(rows))
    groups = group_figures(store, {"ours": ranks_of(store, drawn)})
    assert list(groups) == [HISTORY, WEEKDAY, "country", "age"]
    assert groups["age"][0]["group"].startswith("from ") or groups["age"][0]["group"] == "unknown"
    for kind in groups:
        lines = groups[kind]
        assert sum(line["rows"] for line in lines) <= len(rows)
        if kind in (WEEKDAY, "country"):  # none is too small to be told
            assert sum(line["rows"] for line in lines) == len(rows)
            mean = np.average(
                [line["rec_w"]["ours"] for line in lines], weights=[line["rows"] for line in lines]
            )
            assert mean == pytest.approx((drawn == 0).mean())
            gain = np.average(
                [line["ndcg@3"]["ours"] for line in lines], weights=[line["rows"] for line in lines]
            )
            assert gain == pytest.approx((1 / np.log2(drawn + 2.0)).mean())


def test_each_target_is_in_the_group_of_its_user(store: EventStore) -> None:
    rows = target_rows(store, SPLITS["test"])
    user = np.searchsorted(store.offsets, rows, side="right") - 1
    names = np.array(store.users().to_pylist())[user]
    number = np.array([int(name[1:]) for name in names])
    at = (number % 2 == 1) & (number > 0)
    groups = group_figures(store, {"ours": ranks_of(store, np.where(at, 0, 9))})["country"]
    found = {line["group"]: line for line in groups}
    assert next(iter(found)) == "unknown" and set(found) == {"unknown", "at", "ch"}
    assert found["at"]["rec_w"]["ours"] == 1 and found["ch"]["rec_w"]["ours"] == 0
    assert found["at"]["users"] == USERS // 2 and found["unknown"]["users"] == 1
    assert found["at"]["rows"] == at.sum()


def test_histories_are_counted_before_the_target(store: EventStore) -> None:
    rows = target_rows(store, SPLITS["test"])
    known = rows - store.offsets[np.searchsorted(store.offsets, rows, side="right") - 1]
    groups = {
        line["group"]: line for line in group_figures(store, {"ours": ranks_of(store)})[HISTORY]
    }
    assert groups["31–100"]["rows"] == ((known > 30) & (known <= 100)).sum()
    assert all(line["rows"] >= FEWEST for line in groups.values())


def test_of_many_groups_the_largest_are_told(store: EventStore) -> None:
    from behavegpt.evaluation_groups import _worth_telling

    number = np.repeat(np.arange(50), np.arange(50) + 20)  # group g has g + 20 targets
    assert _worth_telling(number) == list(range(50 - MOST, 50))
    assert _worth_telling(np.repeat([0, 1], [FEWEST, FEWEST - 1])) == [0]
