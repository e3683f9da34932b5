"""What a model's positions read of the counts: nothing later, the same alone and together, and as
events go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_counts import (
    Counts,
    MemorySource,
    count_events,
    counted_columns,
    eras_of,
)
from behavegpt.data.memory_files import FILE, load_counts, save_counts
from behavegpt.data.memory_live import LiveMemory
from behavegpt.data.memory_tables import FOLDS
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import CheckpointError
from behavegpt.universal.worlds import World, random_world

Told = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(14, events=3_000)


@pytest.fixture(scope="module")
def counts(world: World) -> Counts:
    return count_events(world.columns, world.offsets, trained(world), world.classes, 30)


def trained(world: World) -> np.ndarray:
    return np.asarray(world.columns.time < np.quantile(world.columns.time, 0.8))


def same(one: Told, other: Told, tolerance: float = 0.0) -> bool:
    return all(
        one[name].shape == other[name].shape
        and torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance)
        for name in one
    )


def ordered(told: Told) -> Told:
    """Candidates by class: of equally frequent ones any may stand first."""
    order = np.lexsort((told["classes"].numpy(), told["owner"].numpy()))
    return {name: x[order] if len(x) == len(order) else x for name, x in told.items()}


def test_nothing_later_is_known(world: World, counts: Counts) -> None:
    """Behaviors of all events from a position's era on are shuffled, those that follow it
    included."""
    rng = np.random.default_rng(0)
    eras = eras_of(world.columns.time, counts.edges)
    for era in (2, 5):
        position = np.sort(rng.permutation(np.flatnonzero((eras == era) & trained(world)))[:20])
        owner = np.searchsorted(world.offsets, position, side="right") - 1
        later = trained(world) & (eras >= era)
        for user, at in zip(owner, position, strict=True):  # what these histories know stays
            later[world.offsets[user] : at + 1] = False
        flat = np.flatnonzero(later)
        behavior = world.columns.behavior.copy()
        behavior[flat] = behavior[rng.permutation(flat)]  # as often each, so that the prior stays
        columns = world.columns._replace(behavior=behavior, event=behavior + FIRST)
        changed = count_events(columns, world.offsets, trained(world), world.classes, 30)
        before = MemorySource(world.columns, world.offsets, counts, leave_out=True).at(position)
        after = MemorySource(
            columns, world.offsets, changed._replace(shares=counts.shares), leave_out=True
        )
        assert (behavior != world.columns.behavior).mean() > 0.1
        assert same(ordered(before), ordered(after.at(position)), 1e-6)


@pytest.mark.parametrize("leave_out", [False, True])
def test_together_is_as_alone(world: World, counts: Counts, leave_out: bool) -> None:
    source = MemorySource(world.columns, world.offsets, counts, leave_out)
    position = np.random.default_rng(1).permutation(len(world.columns.time))[:300]
    together = source.at(position)
    for n in (0, 17, 299):
        alone, held = source.at(position[n : n + 1]), together["owner"] == n
        rows = {
            name: x[held] if len(x) == len(held) else x[n : n + 1]
            for name, x in together.items()
            if name != "owner"
        }
        assert same(rows, alone, 1e-6)


def test_no_position_gives_no_rows(world: World, counts: Counts) -> None:
    told = MemorySource(world.columns, world.offsets, counts).at(np.empty(0, np.int64))
    assert {len(values) for values in told.values()} == {0}


def test_histories_that_go_on_know_what_was_appended(world: World, counts: Counts) -> None:
    """One event after the other, some histories dropped on the way, as reading the whole at
    each."""
    length = np.diff(world.offsets)
    users = np.flatnonzero(length > 12)[[4, 0, 2, 1]]
    begin, steps = world.offsets[users], 6
    ids = raw(world.columns)
    live = LiveMemory(ids, begin, begin + 6, counts, steps)
    source = MemorySource(counted_columns(ids, counts), world.offsets, counts)
    rows = np.arange(len(users))
    for step in range(steps):
        if step == 3:
            rows = np.array([3, 1])
            live.take(rows)
        known = begin[rows] + 5 + step
        assert same(live.tensors(np.arange(len(rows))), source.at(known), 1e-6), step
        live.append({name: values[known + 1] for name, values in ids.items()})


def raw(columns: Columns) -> dict[str, np.ndarray]:
    """Columns as a tokenizer gives them."""
    return {**columns._asdict(), "behavior": columns.behavior + FIRST}


def test_counts_are_saved_whole(counts: Counts, tmp_path: Path) -> None:
    save_counts(counts, tmp_path)
    again = load_counts(tmp_path)
    assert again.slot_minutes == counts.slot_minutes
    for one, other in zip(
        (*counts.tables, *counts[1:3]), (*again.tables, *again[1:3]), strict=True
    ):
        assert np.array_equal(one, other) and one.dtype == other.dtype
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(CheckpointError, match="counts of a model with memory"):
        load_counts(tmp_path)


def test_eras_split_the_counted_time(world: World, counts: Counts) -> None:
    eras = eras_of(world.columns.time, counts.edges)
    assert set(eras[trained(world)].tolist()) == set(range(FOLDS)) and set(
        eras[~trained(world)].tolist()
    ) == {-1}
    share = np.bincount(eras[trained(world)], minlength=FOLDS) / trained(world).sum()
    assert share.min() > 0.5 / FOLDS
