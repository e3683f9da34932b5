"""Windows, rows and tensors: every target once, histories intact, no event later than the
target."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch

from behavegpt.batch import IGNORED, PADDING, PackedBatch
from behavegpt.data.collate import BatchFields, collate, collate_inputs, gap_buckets
from behavegpt.data.loader import (
    Share,
    TrainingBatches,
    columns_of,
    evaluation_batches,
    memory_of,
    row_length_for,
)
from behavegpt.data.memory_counts import count_store
from behavegpt.data.pack import (
    Windows,
    count_unseen,
    evaluation_windows,
    pack_rows,
    target_rows,
    training_windows,
)
from behavegpt.data.store import TEST, TRAIN, VALID, EventStore
from behavegpt.data.vocabulary import FIRST
from tests.helpers import random_store

FIELDS = BatchFields(("location", "weekday", "slot", "event"))


def slow_target_rows(store, split):
    wanted, classes = store.columns["split"] == split, store.column("behavior") >= FIRST
    pairs = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    return [i for begin, end in pairs for i in range(begin + 1, end) if wanted[i] and classes[i]]


def user_of(store, events):
    return np.searchsorted(store.offsets, events, side="right") - 1


@pytest.mark.parametrize("split", [TRAIN, VALID, TEST])
def test_target_rows_against_a_loop(split):
    for longest in (60, 3):
        store = random_store(3, longest=longest)
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
    for plan in plans:
        assert (user_of(store, plan.start) == user_of(store, plan.start + plan.length)).all()
    assert len({tuple(np.sort(p.length)) for p in plans}) == 1
    assert len({tuple(p.start) for p in plans}) > 1


@pytest.mark.parametrize("world,micro", [(1, 1), (2, 1), (1, 4), (2, 2), (1, 3), (3, 1), (3, 5)])
def test_ranks_and_micro_batches_share_the_same_rows(world, micro):
    store = random_store(1, users=60)
    batches = TrainingBatches(store, max_length=32, rows_per_step=8, seed=5, fields=FIELDS)
    for step in range(batches.steps_per_epoch + 2):
        whole = next(batches.micro_batches(step)).row
        parts = [b.row for r in range(world) for b in batches.micro_batches(step, micro, r, world)]
        assert len(parts) == world * micro and len({part.shape for part in parts}) == 1
        for rows in (whole, torch.cat(parts)):
            assert sorted(rows[rows >= 0].tolist()) == sorted(whole[whole >= 0].tolist())


@pytest.mark.parametrize("max_length", [1, 2, 8, 33, 90])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_evaluation_target_once_with_enough_context(max_length, world):
    store = random_store(7, users=40, longest=150)
    for split in (VALID, TEST):
        windows = evaluation_windows(store, split, max_length)
        # no window reaches into the history of another user, before or behind
        assert (
            user_of(store, windows.start) == user_of(store, windows.start + windows.length)
        ).all()
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
    batch = collate(columns, plan, np.arange(plan.rows), 64, FIELDS._replace(next=("event", "gap")))
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


# ---- windows and rows at their edges


def one_user(events: int, train: int) -> EventStore:
    """A store of one history, `train` events of it to be trained on and the rest to be tested."""
    store = random_store(users=1)
    columns = {name: np.zeros(events, column.dtype) for name, column in store.columns.items()}
    columns["behavior"] += FIRST
    columns["split"][train:] = TEST
    return replace(store, columns=columns, offsets=np.array([0, events]))


@pytest.mark.parametrize(
    "events,first,windows",
    [
        # (start, length, score_from): a history that fits is read once, as a whole
        (9, 1, [(0, 8, 0)]),
        (9, 6, [(0, 8, 5)]),
        # one event more: half a window at a time
        (10, 1, [(0, 4, 0), (0, 8, 4), (1, 8, 7)]),
        (10, 8, [(1, 8, 6)]),
        (30, 22, [(17, 8, 4), (21, 8, 4)]),
    ],
)
def test_what_a_target_sees_of_a_history(events, first, windows):
    found = evaluation_windows(one_user(events, first), TEST, 8)
    assert list(zip(found.start, found.length, found.score_from, strict=True)) == windows


def test_users_without_events_have_no_targets():
    store = replace(one_user(5, 3), offsets=np.array([0, 0, 5, 5]))
    assert [target_rows(store, split).tolist() for split in (TRAIN, VALID, TEST)] == [
        [1, 2],
        [],
        [3, 4],
    ]
    windows = evaluation_windows(store, TEST, 8)
    assert (windows.start.tolist(), windows.length.tolist()) == ([0], [4])
    windows = training_windows(store, 8, np.random.default_rng(0))
    assert (windows.start.tolist(), windows.length.tolist()) == ([0], [2])


def test_windows_of_one_event_see_one_event():
    found = evaluation_windows(one_user(5, 1), TEST, 1)
    assert list(zip(found.start, found.length, found.score_from, strict=True)) == [
        (start, 1, 0) for start in range(4)
    ]


def test_the_remainder_of_a_history_stands_at_each_place_alike():
    """11 targets in windows of 4: the one of 3 comes first, second or last."""
    store, places = one_user(12, 12), Counter()
    for seed in range(300):
        windows = training_windows(store, 4, np.random.default_rng(seed))
        assert (windows.score_from == 0).all()
        places[tuple(zip(windows.start, windows.length, strict=True))] += 1
    assert set(places) == {
        ((0, 3), (3, 4), (7, 4)),
        ((0, 4), (4, 3), (7, 4)),
        ((0, 4), (4, 4), (8, 3)),
    }
    assert min(places.values()) > 60


def test_every_set_of_small_windows_fills_rows_without_overlap():
    """All up to six windows of 1 to 5 events, in rows of 5; as few rows as first-fit decreasing."""
    for count in range(7):
        for lengths in combinations_with_replacement(range(1, 6), count):
            length = np.array(lengths, np.int64)
            plan = pack_rows(Windows(np.arange(count) * 10, length, np.zeros_like(length)), 5)
            assert sorted(plan.windows.start) == [10 * n for n in range(count)]
            assert plan.windows.length.tolist() == [lengths[s // 10] for s in plan.windows.start]
            for r in range(plan.rows):
                inside = slice(plan.pointer[r], plan.pointer[r + 1])
                ends = np.cumsum(plan.windows.length[inside])
                assert ends[-1] <= 5
                assert plan.offset[inside].tolist() == [0, *ends[:-1]]
            room: list[int] = []
            for size in sorted(lengths, reverse=True):
                place = next((r for r, left in enumerate(room) if left >= size), len(room))
                room += [5] * (place == len(room))
                room[place] -= size
            assert plan.rows == len(room), lengths


def test_rows_and_equal_windows_are_shuffled_by_the_seed_alone():
    windows = Windows(np.arange(64), np.repeat([3, 5], 32), np.zeros(64, int))
    plain, again = pack_rows(windows, 8), pack_rows(windows, 8)
    assert plain.windows.start.tolist() == again.windows.start.tolist()
    assert plain.windows.start[0] == 32 and plain.windows.start[1] == 0, "longest first, in order"
    shuffled = [pack_rows(windows, 8, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    orders = [plan.windows.start.tolist() for plan in shuffled]
    assert orders[0] == orders[1] != orders[2]
    partners = [set(zip(order[::2], order[1::2], strict=True)) for order in orders]
    assert len(partners[0]) == 32 and len(partners[0] & partners[2]) < 10
    different = Windows(np.arange(4), np.array([5, 6, 7, 8]), np.zeros(4, int))
    assert pack_rows(different, 8).windows.length.tolist() == [8, 7, 6, 5]
    firsts = {
        int(pack_rows(different, 8, np.random.default_rng(seed)).windows.length[0])
        for seed in range(40)
    }
    assert firsts == {5, 6, 7, 8}, "nor do rows stand as they were filled"


def test_gaps_are_cut_in_half_octaves():
    """The first bucket holds what is below sqrt(2) - 1 seconds, the last all beyond 2^27.5."""
    seconds = [-5, 0, 1, 2, 3, 7, 2**27, 2**28 - 1, 2**40]
    assert gap_buckets(np.array(seconds)).tolist() == [0, 0, 2, 3, 4, 6, 54, 55, 55]


def test_alone_a_rank_evaluates_every_target():
    store, options = random_store(2), {"max_length": 16, "rows_per_batch": 3, "fields": FIELDS}
    rows = np.concatenate(
        [batch.row.flatten().numpy() for batch in evaluation_batches(store, TEST, **options)]
    )
    assert sorted(rows[rows >= 0]) == slow_target_rows(store, TEST)


def test_padding_is_nothing_and_a_plan_may_have_no_targets():
    store = random_store(2)
    plan = pack_rows(training_windows(store, 16, np.random.default_rng(0)), 64)
    rows, columns = np.array([plan.rows - 1, -1]), columns_of(store)
    batch = collate(columns, plan, rows, 64, FIELDS._replace(next=("event",)))
    empty = batch.document == PADDING
    assert empty[1].all() and not empty[0, 0]
    for ids in (*batch.inputs.values(), batch.position):
        assert not ids[empty].any()
    assert ((batch.row == -1) == (batch.target == IGNORED)).all()
    for ids in (batch.target, batch.next_fields["event"]):
        assert (ids[empty] == IGNORED).all()
    without = collate_inputs(columns, plan, rows, 64, FIELDS.inputs)
    assert (without.target == IGNORED).all() and (without.row == -1).all()
    assert not without.next_fields and without.memory is None
    for name, ids in without.inputs.items():
        assert (ids == batch.inputs[name]).all()


# ---- steps


def same(one: PackedBatch, other: PackedBatch) -> bool:
    assert one.memory is not None and other.memory is not None
    pairs = zip(
        [one.row, *one.inputs.values(), *one.memory.values()],
        [other.row, *other.inputs.values(), *other.memory.values()],
        strict=True,
    )
    return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)


def test_an_epoch_of_few_rows_is_one_step():
    store = random_store(1, users=3, longest=20)
    batches = TrainingBatches(store, max_length=8, rows_per_step=8, seed=0, fields=FIELDS)
    assert batches.steps_per_epoch == 1
    for step in range(3):
        rows = next(batches.micro_batches(step)).row.flatten().numpy()
        assert sorted(rows[rows >= 0]) == slow_target_rows(store, TRAIN)


@pytest.mark.parametrize("rows,steps", [(1, 5), (2, 3), (4, 2), (5, 1), (6, 1)])
def test_the_last_step_of_an_epoch_is_filled_with_empty_rows(rows, steps):
    store = random_store(3, users=20, longest=50)
    plan = pack_rows(training_windows(store, 64, np.random.default_rng(0)), 64)
    assert plan.rows == 5
    batches = TrainingBatches(store, max_length=64, rows_per_step=rows, seed=0, fields=FIELDS)
    assert batches.steps_per_epoch == steps
    asked = [batches.rows(step)[1] for step in range(steps)]
    assert np.concatenate(asked).tolist() == [*range(5), *[-1] * (rows * steps - 5)]
    assert (batches.rows(steps)[1] == asked[0]).all()


def test_batches_made_ahead_are_those_of_their_step_and_rank():
    store = random_store(6, users=20)
    options = {"max_length": 16, "rows_per_step": 4, "seed": 1, "fields": FIELDS}
    made = TrainingBatches(store, counts=count_store(store), **options)
    fresh = TrainingBatches(store, counts=count_store(store), **options)
    for asked in [(0,), (1,), (2,), (2,), (1,), (2, 2), (3, 2), (4, 2, 1, 2), (5, 2, 0, 2), (6,)]:
        fresh._ahead = {}
        found, expected = list(made.micro_batches(*asked)), list(fresh.micro_batches(*asked))
        assert len(found) == len(expected) == (asked[1] if len(asked) > 1 else 1)
        assert all(map(same, found, expected)), asked
        [ahead] = made._ahead
        assert ahead[0] == asked[0] + 1


def test_training_leaves_its_own_event_out_of_the_counts_and_evaluation_does_not():
    store = random_store(6, users=20)
    counts = count_store(store)
    assert memory_of(store, counts, leave_out=True).leave_out
    assert not memory_of(store, counts).leave_out
    made = TrainingBatches(
        store, max_length=16, rows_per_step=4, seed=1, fields=FIELDS, counts=counts
    )
    assert made.memory is not None and made.memory.leave_out
