"""What is given of the target: nothing else of it is known, in bulk, live, in states and in
counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from behavegpt.baselines import counts
from behavegpt.data.given import check_names, describe, moved
from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_counts import Counts, count_events, counted_columns, history_source
from behavegpt.data.memory_files import FILE, load_counts, save_counts
from behavegpt.data.memory_live import LiveMemory
from behavegpt.data.memory_past import EXPERTS, new_past
from behavegpt.data.memory_state import Moments, extend, moments_of, pack, read_pasts
from behavegpt.data.pack import target_rows
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TEST
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import ConfigError, DataError
from behavegpt.ingest.asked import read_asked
from behavegpt.model.config import GIVEN_FIELDS
from behavegpt.universal.worlds import World, random_world
from tests.data.test_memory import log, tables_of
from tests.data.test_memory_counts import ordered, raw, same, trained
from tests.data.test_memory_state import part
from tests.helpers import random_store

TIME, BOTH = ("time",), ("time", "location")


@pytest.fixture(scope="module")
def world() -> World:
    return random_world(14, events=3_000)


@pytest.fixture(scope="module", params=[TIME, BOTH, ("location",)], ids=" ".join)
def counted(request: pytest.FixtureRequest, world: World) -> Counts:
    used = trained(world)
    return count_events(world.columns, world.offsets, used, world.classes, 30, request.param)


def asked_at(columns: Columns, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What may be given of some events."""
    return {name: getattr(columns, name)[rows] for name in ("weekday", "slot", "location")}


def test_columns_move_inside_each_history() -> None:
    columns = {"slot": np.arange(5), "weekday": np.arange(5) % 7, "event": np.arange(5)}
    offsets = np.array([0, 3, 3, 5])
    found = moved(columns, offsets, TIME)
    assert found["slot"].tolist() == [1, 2, 2, 4, 4]
    assert found["event"] is columns["event"]
    asked = {"slot": np.array([7, 8, 9]), "weekday": np.array([0, 0, 0])}
    assert moved(columns, offsets, TIME, asked)["slot"].tolist() == [1, 2, 7, 4, 9]


def test_fields_are_those_of_the_models() -> None:
    from behavegpt.data.given import FIELDS

    assert FIELDS == GIVEN_FIELDS


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((), "past events alone; the target's own time and place are hidden"),
        (TIME, "the target's own time, which is given; its location is hidden"),
        (BOTH, "the target's own time and location, which are given"),
    ],
)
def test_protocols_state_what_was_given(given: tuple[str, ...], text: str) -> None:
    assert describe(given).endswith(text)


def test_nothing_but_what_is_given_is_known_of_the_target(world: World, counted: Counts) -> None:
    """All else of the target and of later events is drawn again: nothing changes. What is given is
    changed: the counts change."""
    rng = np.random.default_rng(0)
    ids, offsets = raw(world.columns), world.offsets
    last = np.flatnonzero(np.diff(offsets) > 8)[:25]
    position = offsets[last] + 5
    before = history_source(ids, offsets, counted).at(position)

    other = {name: values.copy() for name, values in ids.items()}
    for at, end in zip(position, offsets[last + 1], strict=True):
        for name, values in other.items():
            kept = at + 2 if name in ("weekday", "slot", "location") else at + 1
            if name != "time":
                values[kept:end] = rng.permutation(ids[name])[: end - kept]
    after = history_source(other, offsets, counted).at(position)
    assert same(ordered(before), ordered(after))

    fields = [field for name in counted.given for field in GIVEN_FIELDS[name]]
    for field in fields:
        changed = dict(ids)
        changed[field] = ids[field].copy()
        changed[field][position + 1] = (ids[field][position + 1] + 3) % 7
        told = history_source(changed, offsets, counted).at(position)
        assert not same(ordered(before), ordered(told)), field


def test_hidden_fields_of_the_target_change_nothing(world: World) -> None:
    used = trained(world)
    counted = count_events(world.columns, world.offsets, used, world.classes, 30, TIME)
    ids = raw(world.columns)
    position = world.offsets[:-1][np.diff(world.offsets) > 3] + 1
    changed = {**ids, "location": ids["location"].copy()}
    changed["location"][position + 1] += 1
    before, after = (history_source(x, world.offsets, counted).at(position) for x in (ids, changed))
    assert same(before, after)


def test_what_is_asked_about_a_history_is_as_its_next_event(world: World, counted: Counts) -> None:
    """The last event is cut off, and its time and place are told."""
    ids, offsets = raw(world.columns), world.offsets
    users = np.flatnonzero(np.diff(offsets) > 4)
    position = offsets[users + 1] - 2
    whole = history_source(ids, offsets, counted).at(position)
    kept = np.concatenate([np.arange(offsets[u], offsets[u + 1] - 1) for u in users])
    shorter = np.concatenate([[0], np.cumsum(np.diff(offsets)[users] - 1)])
    cut = {name: values[kept] for name, values in ids.items()}
    asked = asked_at(world.columns, position + 1)
    told = history_source(cut, shorter, counted, asked).at(shorter[1:] - 1)
    assert same(whole, told, 1e-6)


def test_histories_that_go_on_are_told_of_each_event_before_it_comes(
    world: World, counted: Counts
) -> None:
    length = np.diff(world.offsets)
    users = np.flatnonzero(length > 12)[[4, 0, 2, 1]]
    begin, steps = world.offsets[users], 6
    ids = raw(world.columns)
    live = LiveMemory(ids, begin, begin + 6, counted, steps)
    source = history_source(ids, world.offsets, counted)
    rows = np.arange(len(users))
    for step in range(steps):
        if step == 3:
            rows = np.array([3, 1])
            live.take(rows)
        known = begin[rows] + 5 + step
        following = {name: values[known + 1] for name, values in ids.items()}
        live.ask({**following, "behavior": following["behavior"] * 0, "event": known * 0})
        assert same(live.tensors(np.arange(len(rows))), source.at(known), 1e-6), step
        live.append(following)


@pytest.mark.parametrize("given", [TIME, BOTH], ids=" ".join)
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_states_answer_as_whole_histories(given: tuple[str, ...], chunk: int) -> None:
    columns, offsets, used = log(3, users=20, longest=60)
    known = Columns(**moved(columns._asdict(), offsets, given))
    tables = tables_of(known, offsets, used)
    checked = 0
    for begin, end in itertools.pairwise(offsets):
        if end - begin < 2:
            continue
        past = new_past(4)
        for at in range(begin, end - 1, chunk):
            past = extend(past, tables, part(columns, at, min(at + chunk, end - 1)), given=given)
        kept = pack(past)
        moments = moments_of(part(columns, end - 1, end), given)
        found = read_pasts([past], tables, moments)
        span = Spans(*(np.array([x]) for x in (begin, end - 2, end - 1)))
        expected = read_memory(known, tables, span)
        for name in expected._fields:
            assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name
        again = pack(past)
        assert all(again[name].tobytes() == kept[name].tobytes() for name in kept)
        checked += 1
    assert checked > 10


def test_an_expert_of_the_hour_knows_what_happens_then() -> None:
    """One user, two behaviors, each at an hour of its own, in random order: with the hour given
    there is nothing left to guess."""
    rng = np.random.default_rng(0)
    behavior = rng.integers(0, 2, 400).astype(np.int32)
    columns = Columns(
        behavior=behavior,
        event=behavior + 2,
        location=np.zeros(400, np.int32),
        slot=np.where(behavior == 0, 16, 40).astype(np.int16),
        weekday=np.zeros(400, np.int16),
        time=np.arange(400, dtype=np.int64) * 7200,
    )
    offsets, used = np.array([0, 400]), np.arange(400) < 300
    expert = EXPERTS.index("user_at_hour")
    for given, sure in (((), False), (TIME, True)):
        counted = count_events(columns, offsets, used, 2, 30, given)
        told = history_source(raw(columns), offsets, counted).at(np.arange(300, 399))
        truth = told["classes"].numpy() == behavior[301:400][told["owner"].numpy()]
        chance = told["probability"].numpy()[truth, expert]
        assert bool(chance.min() > 0.95) is sure and bool(chance.mean() < 0.6) is not sure


def test_an_expert_of_the_place_knows_what_is_done_there() -> None:
    """Of all users, whatever they did before: eight places, one behavior at each."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, 8, 2000)
    columns = Columns(
        behavior=place.astype(np.int32),
        event=rng.integers(2, 300, 2000).astype(np.int32),
        location=(place + 2).astype(np.int32),
        slot=rng.integers(0, 48, 2000).astype(np.int16),
        weekday=np.zeros(2000, np.int16),
        time=np.arange(2000, dtype=np.int64) * 7200,
    )
    offsets, used = np.arange(0, 2001, 10), np.arange(2000) < 1600
    expert = EXPERTS.index("global_after_event_and_place")
    for given, sure in ((TIME, False), (BOTH, True)):
        counted = count_events(columns, offsets, used, 8, 30, given)
        told = history_source(raw(columns), offsets, counted).at(np.arange(1600, 1999, 10))
        truth = told["classes"].numpy() == place[1601:2000:10][told["owner"].numpy()]
        chance = told["probability"].numpy()[truth, expert]
        assert bool(chance.size and chance.min() > 0.9) is sure


@pytest.mark.parametrize("given", [(), TIME, BOTH], ids=str)
def test_counts_keep_what_was_given(world: World, given: tuple[str, ...], tmp_path: Path) -> None:
    used = trained(world)
    counted = count_events(world.columns, world.offsets, used, world.classes, 30, given)
    save_counts(counted, tmp_path)
    assert load_counts(tmp_path).given == given
    assert (b'"given"' in (tmp_path / FILE).read_bytes()[:2000]) is bool(given)
    assert counted_columns(raw(world.columns), counted).slot.tolist() == (
        world.columns.slot.tolist()
    )


@pytest.mark.parametrize(
    ("given", "field", "reads"),
    [
        ((), "slot", ()),
        (TIME, "slot", ("by_hour", "user_by_hour")),
        (TIME, "location", ()),
        (BOTH, "location", ("by_place", "user_by_place")),
    ],
)
def test_baselines_read_what_is_given_of_the_target(
    given: tuple[str, ...], field: str, reads: tuple[str, ...]
) -> None:
    """A target with another hour or place: only the baselines that look at it answer otherwise, and
    none looks at what came."""
    store = random_store(5, users=40)
    row = target_rows(store, TEST)[-1:]
    column = np.array(store.columns[field])
    column[row] = (column[row] + 20) % 48 if field == "slot" else 2 + column[row] % 2
    behavior = np.array(store.columns["behavior"])
    behavior[row] = 2 + (behavior[row] - 1) % 5
    moved_store = store.__class__(
        store.path,
        store.manifest,
        store.vocabulary,
        {**store.columns, field: column, "behavior": behavior},
        store.offsets,
    )
    for name, model in counts.fit(store, given).items():
        before, after = (next(counts.scores(model, kept, row))[1] for kept in (store, moved_store))
        assert np.array_equal(before, after) is (name not in (*reads, *["mixture"][: len(reads)]))


def test_baselines_refuse_a_place_where_there_is_none() -> None:
    store = random_store(5)
    schema = store.schema.model_copy(update={"location": None})
    manifest = store.manifest.model_copy(update={"event_schema": schema})
    nowhere = store.__class__(store.path, manifest, store.vocabulary, store.columns, store.offsets)
    with pytest.raises(ConfigError, match="the log has no location"):
        counts.fit(nowhere, BOTH)


TOKENIZER = EventTokenizer(
    EventSchema(user="u", time="t", event="e", location="l", tz="Asia/Tokyo"),
    {
        name: Vocabulary(pa.array(values), np.ones(len(values), np.int64))
        for name, values in {"event": ["a"], "location": ["home", "7"]}.items()
    },
)
USERS = pa.array(["x", "y"])


@pytest.mark.parametrize(
    ("at", "weekday", "slot"),
    [
        ("2026-11-28 18:30", [5, 5], [37, 37]),  # a wall clock of the log's zone
        ("2026-11-28T09:30Z", [5, 5], [37, 37]),
        (np.datetime64("2026-11-28T18:30"), [5, 5], [37, 37]),
        ({"y": "2026-11-28 18:30", "x": "2026-11-30 00:10"}, [0, 5], [0, 37]),
        (["2026-11-30 00:10", "2026-11-28 18:30"], [0, 5], [0, 37]),
    ],
)
def test_times_are_told_for_all_or_for_each(
    at: object, weekday: list[int], slot: list[int]
) -> None:
    asked, unknown = read_asked(TOKENIZER, USERS, at)
    assert asked["weekday"].tolist() == weekday and asked["slot"].tolist() == slot
    assert unknown == 0 and "location" not in asked


def test_places_that_nobody_saw_are_unknown_ones() -> None:
    asked, unknown = read_asked(TOKENIZER, USERS, None, {"x": 7, "y": "elsewhere"})
    assert asked["location"].tolist() == [3, 1] and unknown == 1


@pytest.mark.parametrize(
    ("at", "location", "message"),
    [
        ("half past six", None, "'half past six' is not a time; write one like"),
        (18.5, None, "is a float; write a time like"),
        ("1950-01-01", None, "outside 1970"),
        ({"x": "2026-11-28 18:30"}, None, "user 'y': no `at`"),
        ({"z": "2026-11-28 18:30"}, None, "no user 'z'"),
        (["2026-11-28 18:30"], None, "1 values for 2 users"),
        (None, 1.5, "write the place as it stands"),
        (None, "", "empty place"),
    ],
)
def test_what_cannot_be_read_is_refused(at: object, location: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_asked(TOKENIZER, USERS, at, location)


def test_names_of_what_is_given() -> None:
    assert check_names(["location", "time"]) == BOTH and check_names("time") == TIME
    with pytest.raises(ConfigError, match="'hour' is none of time, location"):
        check_names(["hour"])
    assert Moments._fields == ("slot", "weekday", "location")
