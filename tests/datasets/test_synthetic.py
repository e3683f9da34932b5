"""Synthetic logs: what is drawn follows the laws of the world, and the best prediction is the best
and exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt.cli import main
from behavegpt.datasets import synthetic
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, generate, small_log
from behavegpt.datasets.synthetic_world import (
    BURST_HOURS,
    BURST_SHARE,
    HOURS,
    ORIGIN,
    PAUSE_HOURS,
    SHARES,
    World,
    make_world,
)
from behavegpt.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(seed=5, behaviors=12, events=30, groups=3, cells=40)


@pytest.fixture(scope="module")
def log(world: World) -> pa.Table:
    return small_log(80_000, users=800, seed=1, world=world)


def codes(log: pa.Table, field: str) -> np.ndarray:
    return log[field].to_pandas().str[-4:].astype(int).to_numpy()


def pairs(log: pa.Table) -> np.ndarray:
    """Rows that have a next event of the same user."""
    user = log["user_id"].to_numpy()
    return np.flatnonzero(user[1:] == user[:-1])


def test_same_seed_same_bytes_and_same_first_users(tmp_path: Path) -> None:
    small, big, other = (
        tmp_path / name for name in ("small.parquet", "big.parquet", "other.parquet")
    )
    schema = generate(small, 50_000, seed=3)
    generate(tmp_path / "again.parquet", 50_000, seed=3)
    generate(big, 400_000, seed=3)
    generate(other, 50_000, seed=4)
    assert small.read_bytes() == (tmp_path / "again.parquet").read_bytes()
    a, b = pq.read_table(small), pq.read_table(big)
    assert a.equals(b.slice(0, len(a))) and len(a) == 50_000 and len(b) == 400_000
    assert not a.equals(pq.read_table(other))
    assert a.equals(small_log(50_000, seed=3).cast(a.schema))
    assert schema == SYNTHETIC_SCHEMA and not list(tmp_path.glob("*.part"))
    assert (
        a.schema.field("timestamp").type == pa.timestamp("us")
        and a.schema.field("event").type == pa.string()
    )


def test_users_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "ROW_GROUP", 1 << 17)
    by_user, by_time = tmp_path / "user.parquet", tmp_path / "time.parquet"
    generate(by_user, 400_000, users=1000, seed=2)
    generate(by_time, 400_000, users=1000, seed=2, by_time=True)
    a, b = (pq.read_table(path).to_pandas() for path in (by_user, by_time))
    assert 850 < a["user_id"].nunique() < 1200
    assert a.equals(a.sort_values(["user_id", "timestamp"], kind="stable"))
    keys = ["user_id", "timestamp", "location", "event", "behavior"]
    assert a.sort_values(keys, ignore_index=True).equals(b.sort_values(keys, ignore_index=True))
    assert pq.ParquetFile(by_time).num_row_groups > 2
    group = pq.ParquetFile(by_time).read_row_group(0).to_pandas()
    assert (
        group["timestamp"].is_monotonic_increasing and not group["user_id"].is_monotonic_increasing
    )


def test_draws_follow_the_tables(world: World, log: pa.Table) -> None:
    behavior, event, location = (codes(log, field) for field in ("behavior", "event", "location"))
    counts = np.zeros_like(world.event)
    np.add.at(counts, (behavior, event), 1)
    assert not counts[world.event == 0].any()  # an event belongs to one behavior
    assert ((counts.sum(axis=0) > 0) <= (np.count_nonzero(world.event, axis=0) == 1)).all()
    expected = world.event * counts.sum(axis=1, keepdims=True)
    spread = np.sqrt(expected * (1 - world.event)) + 1
    assert (np.abs(counts - expected) / spread).max() < 5

    hour = ((log["timestamp"].to_numpy() - ORIGIN) // np.timedelta64(1, "h")) % HOURS
    kind = np.searchsorted(world.cells, location, side="right") - 1
    visits = np.zeros((HOURS, 3))
    np.add.at(visits, (hour, kind), 1)
    expected = world.kind * visits.sum(axis=1, keepdims=True)
    assert (np.abs(visits - expected) / (np.sqrt(expected) + 1)).max() < 5
    # people sleep
    assert visits.sum(axis=1)[[3, 4]].sum() < 0.2 * visits.sum(axis=1)[[20, 21]].sum()


def test_tables_are_shares_with_a_long_tail() -> None:
    world = make_world()
    for table in (
        world.transition,
        world.preference,
        world.routine,
        world.event,
        world.kind,
        world.habit[None],
    ):
        assert (
            np.array_equal(table * SHARES, np.rint(table * SHARES))
            and (table.sum(axis=1) == 1).all()
        )
    counts = np.sort(
        np.bincount(codes(small_log(100_000, world=world), "behavior"), minlength=world.behaviors)
    )
    assert counts[-3:].sum() > 0.35 * counts.sum() and 0 < counts[0] < 0.01 * counts.sum()


def test_next_hour_agrees_with_simulation(world: World) -> None:
    rng = np.random.default_rng(0)
    for now in (0.0, 11.4, 13.999, 167.2):
        mean = np.where(rng.random(300_000) < BURST_SHARE, BURST_HOURS, PAUSE_HOURS)
        clock = np.interp(now, np.arange(HOURS + 1), world.clock) + rng.exponential(mean)
        hour = np.interp(clock % HOURS, world.clock, np.arange(HOURS + 1)).astype(int)
        seen, chance = np.bincount(hour, minlength=HOURS), world._next_hour(np.array([now]))[0]
        assert chance.sum() == pytest.approx(1) and chance.min() >= -1e-15
        assert (np.abs(seen - 300_000 * chance) / np.sqrt(300_000 * chance + 1)).max() < 5


def test_group_posterior_equals_plain_bayes(world: World, log: pa.Table) -> None:
    """One user at a time, one event at a time, in plain Python; the time's part is taken from the
    class."""
    user, behavior, location = (
        log["user_id"].to_numpy(),
        codes(log, "behavior"),
        codes(log, "location"),
    )
    hours = (log["timestamp"].to_numpy() - ORIGIN) / np.timedelta64(1, "h")
    routine = world._next_hour(hours[:300] % HOURS) @ world.kind @ world.routine
    got = world.next_behavior_probabilities(log.slice(0, 300))
    w0, w1, w2 = world.habit
    posterior, last = [1 / 3] * 3, None
    for n in range(300):
        kind = next(k for k in (2, 1, 0) if location[n] >= world.cells[k])
        b = behavior[n]
        for g in range(3):
            if user[n] == last:
                before = behavior[n - 1]
                chance = (
                    w0 * world.transition[before, b]
                    + w1 * world.preference[g, b]
                    + w2 * world.routine[kind, b]
                )
            else:
                posterior = [1 / 3] * 3 if g == 0 else posterior
                chance = (w1 * world.preference[g, b] + w2 * world.routine[kind, b]) / (w1 + w2)
            posterior[g] *= chance
        posterior = [p / sum(posterior) for p in posterior]
        last = user[n]
        mixed = sum(p * world.preference[g] for g, p in enumerate(posterior))
        assert got[n] == pytest.approx(
            w0 * world.transition[b] + w1 * mixed + w2 * routine[n], abs=1e-12
        )


def test_best_prediction_is_calibrated(world: World, log: pa.Table) -> None:
    """Sums of its probabilities equal what happened, for every behavior and at every level of
    confidence."""
    probability, row = world.next_behavior_probabilities(log), pairs(log)
    assert probability.sum(axis=1) == pytest.approx(1)
    p, target = probability[row], codes(log, "behavior")[row + 1]
    happened = np.eye(world.behaviors)[target]
    error = (happened - p).sum(axis=0) / np.sqrt((p * (1 - p)).sum(axis=0))
    assert np.abs(error).max() < 4
    level = np.digitize(p.ravel(), [0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5])
    for bin_ in np.unique(level):
        inside = level == bin_
        q = p.ravel()[inside]
        assert abs((happened.ravel()[inside] - q).sum()) < 4 * np.sqrt((q * (1 - q)).sum()) + 1


def test_cross_entropy_is_the_floor(world: World, log: pa.Table) -> None:
    """It equals the mean entropy of the best prediction, and no counting on the same log gets below
    it."""
    floor, row = world.cross_entropy(log), pairs(log)
    p = world.next_behavior_probabilities(log)[row]
    target, before = codes(log, "behavior")[row + 1], codes(log, "behavior")[row]
    assert floor == pytest.approx(-np.log(p[np.arange(len(row)), target]).mean())
    assert floor == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), abs=0.01)
    markov = np.zeros((world.behaviors, world.behaviors))
    np.add.at(markov, (before, target), 1)
    chance = markov[before, target] / markov[before].sum(axis=1)
    assert floor < -np.log(chance).mean() - 0.02  # fitted on what it is tested on, and still worse
    assert -np.log(chance).mean() < np.log(world.behaviors)


def test_mistakes_are_named(world: World, log: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="behaviors=5, events=3"):
        make_world(behaviors=5, events=3)
    for options in (
        {"events": 0},
        {"events": 2.5},
        {"users": 0},
        {"users": -1},
        {"seed": -1},
        {"seed": 0.5},
    ):
        name = next(iter(options))
        with pytest.raises(ConfigError, match=f"synthetic log: {name} = "):
            generate(tmp_path / "log.parquet", **({"events": 10} | options))
    assert main(["synthesize", "--seed", "-1", "--out", str(tmp_path / "log.parquet")]) == 2
    with pytest.raises(DataError, match="users=20"):
        small_log(10, users=20)
    strange = log.slice(0, 5).set_column(4, "behavior", pa.array(["nap"] * 5))
    with pytest.raises(DataError, match="'behavior'"):
        world.next_behavior_probabilities(strange)
    assert not list(tmp_path.iterdir())


def test_one_user_and_one_event() -> None:
    assert len(small_log(1)) == 1
    frame = small_log(5000, users=1, seed=7).to_pandas()
    assert (
        isinstance(frame, pd.DataFrame) and len(frame) == 5000 and frame["user_id"].nunique() <= 3
    )
    assert frame["timestamp"].is_monotonic_increasing or frame["user_id"].nunique() > 1
