"""A past that grows event by event: the same bytes as reading the whole history, however it was
cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_past import KNOWN, new_past
from behavegpt.data.memory_state import ROOM, extend, pack, read_pasts, unpack
from tests.data.test_memory import log, tables_of

INTERLEAVINGS = 10_000


def part(columns: Columns, begin: int, end: int) -> Columns:
    return Columns(*(column[begin:end] for column in columns))


def test_random_interleavings_equal_whole_histories() -> None:
    """Ten thousand events of many users, in 10,000 random turns: after each the state answers as
    the history does."""
    columns, offsets, used = log(0, users=400, longest=60)
    tables = tables_of(columns, offsets, used)
    whole = read_memory(columns, tables, Spans(offsets[:-1], offsets[:-1], offsets[1:]))
    rng = np.random.default_rng(1)
    length = np.diff(offsets)
    done = np.zeros(len(length), np.int64)
    pasts = [new_past(ROOM) for _ in length]
    turns, checked = 0, []
    while turns < INTERLEAVINGS:
        user = int(rng.integers(len(length)))
        if done[user] == length[user]:  # a state that was kept, and a user who begins anew
            done[user], pasts[user] = 0, new_past(ROOM)
        elif rng.random() < 0.1:
            pasts[user] = unpack(pack(pasts[user]))
        end = min(done[user] + int(rng.integers(1, 6)), length[user])
        begin = offsets[user]
        pasts[user] = extend(pasts[user], tables, part(columns, begin + done[user], begin + end))
        done[user] = end
        checked.append((read_pasts([pasts[user]], tables), begin + end - 1))
        turns += 1
    for field in ("classes", "probability", "age"):
        found = np.concatenate([getattr(readings, field) for readings, _ in checked])
        expected = [
            getattr(whole, field)[whole.start[row] : whole.start[row + 1]] for _, row in checked
        ]
        assert found.tobytes() == np.concatenate(expected).tobytes(), field
    rows = np.array([row for _, row in checked])
    for field in ("rest", "evidence", "reliability", "context"):
        found = np.concatenate([getattr(readings, field) for readings, _ in checked])
        assert found.tobytes() == getattr(whole, field)[rows].tobytes(), field


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_what_is_kept_does_not_depend_on_how_it_grew(chunk: int) -> None:
    columns, offsets, used = log(3, users=20, longest=200)
    tables = tables_of(columns, offsets, used)
    for begin, end in itertools.pairwise(offsets):
        whole = extend(new_past(int(end - begin)), tables, part(columns, begin, end))
        grown = new_past(ROOM)
        for at in range(begin, end, chunk):
            grown = extend(grown, tables, part(columns, at, min(at + chunk, end)))
        kept, expected = pack(grown), pack(whole)
        assert all(kept[name].tobytes() == expected[name].tobytes() for name in expected)
        again = pack(unpack(kept))
        assert all(again[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_past_that_was_kept_before_it_knew_its_last_event_still_reads() -> None:
    """Folders of before hold two numbers of the clock: they know nothing that is given."""
    columns, offsets, used = log(3, users=5, longest=40)
    tables = tables_of(columns, offsets, used)
    past = extend(new_past(ROOM), tables, part(columns, offsets[0], offsets[1] - 1))
    kept = pack(past)
    older = unpack(kept | {"clock": kept["clock"][:2]})
    for found, expected in zip(
        read_pasts([older], tables), read_pasts([past], tables), strict=True
    ):
        assert found.tobytes() == expected.tobytes()
    following = part(columns, offsets[1] - 1, offsets[1])
    grown = [pack(extend(known, tables, following)) for known in (older, past)]
    assert all(grown[0][name].tobytes() == grown[1][name].tobytes() for name in grown[0])


def test_room_follows_what_differs_not_what_repeats() -> None:
    columns, offsets, used = log(0, users=3, longest=30)
    tables = tables_of(columns, offsets, used)
    past = new_past(ROOM)
    for _ in range(300):
        past = extend(past, tables, part(columns, offsets[0], offsets[1]))
    assert past.number[KNOWN] > 300 and len(past.slot_class) < 2_000
