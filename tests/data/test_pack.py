"""Windows, rows and tensors: every target once, histories intact, no event later than the
target."""

from __future__ import annotations

import numpy as np
import pytest

from behavegpt.batch import IGNORED, PADDING
from behavegpt.data.loader import (
    Share,
    TrainingBatches,
    columns_of,
    evaluation_batches,
    row_length_for,
)
from behavegpt.data.pack import (
    Windows,
    collate,
    count_unseen,
    evaluation_windows,
    pack_rows,
    target_rows,
    training_windows,
)
from behavegpt.data.store import TEST, TRAIN, VALID
from behavegpt.data.vocabulary import FIRST
from tests.helpers import random_store

FIELDS = ("location", "weekday", "slot", "event")


def slow_target_rows(store, split):
    wanted, classes = store.columns["split"] == split, store.column("behavior") >= FIRST
    pairs = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    return [i for begin, end in pairs for i in range(begin + 1, end) if wanted[i] and classes[i]]


@pytest.mark.parametrize("split", [TRAIN, VALID, TEST])
def test_target_rows_against_a_loop(split):
    store = random_store(3)
    assert target_rows(store, split).tolist() == slow_target_rows(store, split)


@pytest.mark.parametrize("split", [TRAIN, VALID, TEST])
def test_unseen_targets_are_all_others_that_something_precedes(split):
    store = random_store(2)
    store.columns["behavior"] = np.where(
        np.arange(store.offsets[-1]) % 3 == 0, 1, store.column("behavior")
    )
    first = set(store.offsets[:-1].tolist())
    asked = [
        row
        for row in np.flatnonzero(np.asarray(store.columns["split"]) == split).tolist()
        if row not in first
    ]
    assert 0 < count_unseen(store, split) == len(asked) - len(slow_target_rows(store, split))


@pytest.mark.parametrize("max_length", [1, 2, 7, 32, 90])
@pytest.mark.parametrize("seed", range(5))
def test_every_training_target_once(seed, max_length):
    store = random_store(seed, users=30, longest=100)
    batches = TrainingBatches(
        store, max_length=max_length, rows_per_step=4, seed=seed, fields=FIELDS
    )
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        rows = np.concatenate(
            [b.row.flatten().numpy() for s in steps for b in batches.micro_batches(s)]
        )
        assert sorted(rows[rows >= 0]) == slow_target_rows(store, TRAIN)


def test_epochs_cut_long_histories_differently_but_fill_as_many_rows():
    store = random_store(0, users=40, longest=200)
    plans = [training_windows(store, 32, np.random.default_rng([0, epoch])) for epoch in range(6)]
    assert len({tuple(np.sort(p.length)) for p in plans}) == 1
    assert len({tuple(p.start) for p in plans}) > 1


@pytest.mark.parametrize("world,micro", [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_ranks_and_micro_batches_share_the_same_rows(world, micro):
    store = random_store(1, users=60)
    batches = TrainingBatches(store, max_length=32, rows_per_step=8, seed=5, fields=FIELDS)
    for step in range(batches.steps_per_epoch + 2):
        whole = next(batches.micro_batches(step)).row.flatten().tolist()
        parts = [b.row for r in range(world) for b in batches.micro_batches(step, micro, r, world)]
        assert sorted(whole) == sorted(x for part in parts for x in part.flatten().tolist())


@pytest.mark.parametrize("max_length", [2, 8, 33, 90])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_evaluation_target_once_with_enough_context(max_length, world):
    store = random_store(7, users=40, longest=150)
    for split in (VALID, TEST):
        windows = evaluation_windows(store, split, max_length)
        begin = store.offsets[np.searchsorted(store.offsets, windows.start, side="right") - 1]
        context = windows.score_from + 1
        available = windows.start + windows.score_from - begin + 1
        assert (context >= np.minimum(available, max_length // 2)).all()
        rows = np.concatenate(
            [
                b.row.flatten().numpy()
                for rank in range(world)
                for b in evaluation_batches(
                    store,
                    split,
                    max_length=max_length,
                    rows_per_batch=3,
                    fields=FIELDS,
                    share=Share(rank, world),
                )
            ]
        )
        assert sorted(rows[rows >= 0]) == slow_target_rows(store, split)


def test_rows_are_full_and_hold_whole_windows():
    rng = np.random.default_rng(0)
    length = np.minimum(np.exp(rng.normal(3, 1, 5000)).astype(int) + 1, 90)
    windows = Windows(np.cumsum(length) - length, length, np.zeros_like(length))
    plan = pack_rows(windows, 128, rng)
    assert plan.pointer[-1] == len(windows)
    assert sorted(plan.windows.start) == sorted(windows.start)
    end = plan.offset + plan.windows.length
    row = np.repeat(np.arange(plan.rows), np.diff(plan.pointer))
    same = row[1:] == row[:-1]
    assert (plan.offset[1:][same] == end[:-1][same]).all(), "no overlap and no hole inside a row"
    assert (end <= 128).all()
    assert length.sum() / (plan.rows * 128) > 0.99


def test_a_window_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="129 events does not fit a row of 128"):
        pack_rows(Windows(np.array([0]), np.array([129]), np.array([0])), 128)


def test_tensors_hold_the_events_and_the_next_behavior():
    store = random_store(2, users=15)
    plan = pack_rows(training_windows(store, 16, np.random.default_rng(0)), 64)
    columns = columns_of(store)
    batch = collate(columns, plan, np.arange(plan.rows), 64, FIELDS, ("event", "gap"))
    owner = np.searchsorted(store.offsets, np.arange(len(store.columns["event"])), side="right") - 1
    for b, t in np.argwhere(batch.row.numpy() >= 0):
        target = int(batch.row[b, t])
        assert batch.target[b, t] == columns["behavior"][target] - FIRST
        assert batch.next_fields["event"][b, t] == columns["event"][target]
        gap = int(columns["time"][target]) - int(columns["time"][target - 1])
        assert batch.next_fields["gap"][b, t] == int(2 * np.log2(1 + gap))
        assert batch.inputs["input_ids"][b, t] == columns["event"][target - 1]
        assert batch.inputs["slot_ids"][b, t] == columns["slot"][target - 1]
        if batch.position[b, t] > 0:
            assert batch.document[b, t] == batch.document[b, t - 1]
            assert batch.inputs["input_ids"][b, t - 1] == columns["event"][target - 2]
            assert owner[target - 2] == owner[target]
    empty = batch.document == PADDING
    assert (batch.target[empty] == IGNORED).all()


def test_an_empty_row_has_no_targets():
    store = random_store(2)
    plan = pack_rows(training_windows(store, 16, np.random.default_rng(0)), 64)
    batch = collate(columns_of(store), plan, np.array([0, -1]), 64, FIELDS)
    assert (batch.document[1] == PADDING).all() and (batch.target[1] == IGNORED).all()
    assert (batch.document[0] != PADDING).any()


def test_training_never_sees_later_splits():
    store = random_store(4, users=30)
    batches = TrainingBatches(store, max_length=32, rows_per_step=4, seed=0, fields=FIELDS)
    before = [next(batches.micro_batches(s)) for s in range(batches.steps_per_epoch)]
    later = np.asarray(store.columns["split"]) > 0
    for name in ("event", "location", "behavior", "slot", "weekday"):
        store.columns[name][later] = 1
    after = [next(batches.micro_batches(s)) for s in range(batches.steps_per_epoch)]
    for a, b in zip(before, after, strict=True):
        assert (a.target == b.target).all()
        assert all((a.inputs[name] == b.inputs[name]).all() for name in a.inputs)


def test_row_length_is_the_cap_rounded_up():
    assert [row_length_for(n) for n in (1, 64, 65, 90, 128, 256)] == [64, 64, 128, 128, 128, 256]
