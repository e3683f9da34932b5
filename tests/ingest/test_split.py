"""Split rules against plain sorting."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from behavegpt.errors import DataError
from behavegpt.ingest.split import parse_split, split_by_time, split_by_user, time_boundaries

TIMES = {
    "spread": np.random.default_rng(0).integers(1_300_000_000, 1_400_000_000, 5000),
    "many ties": np.random.default_rng(1).integers(0, 50, 5000) * 86_400,
    "one value": np.full(100, 1_300_000_000),
    "two": np.array([5, 9]),
    "wide": np.random.default_rng(2).integers(0, 2**32 - 1, 5000),
}


def boundaries(text: str, times: np.ndarray, pieces: int = 3) -> tuple[int, int]:
    parts = np.array_split(times, pieces)
    return time_boundaries(
        parse_split(text), lambda: iter(parts), int(times.min()), int(times.max()), len(times)
    )


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("shares", ["0.7,0.15,0.15", "0.6,0.1,0.3", "0.5,0.5,0", "1,0,0"])
def test_time_boundaries_are_order_statistics(name: str, shares: str) -> None:
    times = TIMES[name]
    ordered = np.append(np.sort(times), times.max() + 1)
    train, valid, _ = (float(share) for share in shares.split(","))
    ranks = [int(round(end * len(times), 6)) for end in (train, train + valid)]
    assert boundaries(f"time:{shares}", times) == tuple(ordered[ranks])


@pytest.mark.parametrize("name", TIMES)
def test_boundaries_of_microseconds_are_those_of_seconds(name: str) -> None:
    times = TIMES[name]
    micros = times * 10**6 + np.random.default_rng(3).integers(0, 10**6, len(times))
    rule, parts = parse_split("time:0.6,0.1,0.3"), np.array_split(micros, 3)
    first, last = int(times.min()), int(times.max())
    found = time_boundaries(rule, lambda: iter(parts), first, last, len(times), per_second=10**6)
    assert found == boundaries("time:0.6,0.1,0.3", times)


def test_equal_times_never_straddle() -> None:
    times = TIMES["many ties"]
    split = split_by_time(times, boundaries("time:0.7,0.15,0.15", times))
    assert all(len(set(split[times == value])) == 1 for value in np.unique(times))
    assert set(split) == {0, 1, 2}


def test_the_boundary_itself_is_later() -> None:
    assert split_by_time(np.array([9, 10, 19, 20]), (10, 20)).tolist() == [0, 1, 1, 2]


def test_span_and_date() -> None:
    assert boundaries("span:0.5,0.25,0.25", np.array([100, 199])) == (150, 175)
    rule = parse_split("date:2013-05-01,2013-07-01", "Asia/Jakarta")
    assert rule.dates == (1_367_341_200, 1_372_611_600)


def test_users_are_assigned_by_their_label_alone() -> None:
    labels = [f"user {i}" for i in range(20_000)]
    hashes = np.array(
        [int(hashlib.md5(label.encode()).hexdigest()[:16], 16) for label in labels], np.uint64
    )
    rule = parse_split("user:0.7,0.15,0.15")
    split = split_by_user(rule, hashes)
    assert np.bincount(split) / len(split) == pytest.approx([0.7, 0.15, 0.15], abs=0.01)
    assert np.array_equal(split_by_user(rule, hashes[::2]), split[::2])
    assert set(split_by_user(parse_split("user:1,0,0"), hashes)) == {0}


@pytest.mark.parametrize(
    "text",
    ["", "time", "time:", "time:0.7", "time:0.7,0.3", "time:a,b,c", "time:0.7,0.2,0.2",
     "time:-1,1,1", "time:0,0.5,0.5", "share:0.7,0.15,0.15", "date:2013-05-01",
     "date:2013-07-01,2013-05-01", "date:x,y", "user:1/0,0,0"],
)  # fmt: skip
def test_a_wrong_rule_is_one_clear_error(text: str) -> None:
    with pytest.raises(DataError, match="write"):
        parse_split(text)
