"""Count baselines against dictionaries filled one event at a time, and against perturbed futures."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.baselines import counts
from behavegpt.data.pack import target_rows
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TEST, TRAIN, VALID, EventStore, Manifest
from behavegpt.data.vocabulary import FIRST, Vocabulary

NAMES = ("most_frequent", "by_hour", "user_most_frequent", "repeat_last", "markov", "user_markov")


def make_store(
    behavior: np.ndarray,
    offsets: np.ndarray,
    split: np.ndarray,
    weekday: np.ndarray,
    slot: np.ndarray,
    classes: int,
    slot_minutes: int = 30,
) -> EventStore:
    """A store in memory whose behaviors are its events; `behavior` holds ids (M,)."""
    seen = np.bincount(behavior[split == TRAIN], minlength=classes + FIRST)[FIRST:]
    vocabulary = Vocabulary(pd.array([f"b{i}" for i in range(classes)], "string[pyarrow]").__arrow_array__(), seen)
    columns = {"event": behavior, "split": split, "weekday": weekday, "slot": slot}
    manifest = Manifest(
        format=1,
        event_schema=EventSchema.model_validate({"user": "u", "time": "t", "event": "e", "slot_minutes": slot_minutes}),
        events=len(behavior),
        users=len(offsets) - 1,
        time_origin=0,
        split={},
        columns={},
        vocabulary={},
        rejected={},
        content_hash="",
    )
    return EventStore(Path("nowhere"), manifest, {"event": vocabulary}, columns, offsets)


def random_store(seed: int, users: int = 30, longest: int = 40, classes: int = 6) -> EventStore:
    """Skewed behaviors, unknown ones, empty users, splits by time within each user and users of one split."""
    rng = np.random.default_rng(seed)
    length = rng.integers(0, longest, users)
    offsets = np.concatenate([[0], np.cumsum(length)])
    total = int(offsets[-1])
    behavior = np.minimum(rng.geometric(0.35, total), classes) + FIRST - 1
    behavior[rng.random(total) < 0.15] = rng.integers(0, FIRST)
    split = np.concatenate([np.sort(rng.integers(0, 3, n) if n % 4 else np.full(n, n % 3)) for n in length])
    return make_store(
        behavior.astype(np.uint8),
        offsets,
        split.astype(np.uint8),
        rng.integers(0, 7, total).astype(np.uint8),
        rng.integers(0, 48, total).astype(np.uint8),
        classes,
    )


def collected(model: counts.CountModel, store: EventStore, rows: np.ndarray, cells: int = 997) -> np.ndarray:
    parts = list(counts.scores(model, store, rows, cells))
    assert all(score.dtype == np.float32 and score.size <= max(cells, score.shape[1]) for _, score in parts)
    assert np.array_equal(np.concatenate([part for part, _ in parts]), rows)
    return np.concatenate([score for _, score in parts])


class Reference:
    """The definitions of the module's docstring, one event at a time."""

    def __init__(self, store: EventStore) -> None:
        self.store, self.classes = store, store.behaviors.classes
        self.behavior = [int(b) - FIRST for b in store.column("behavior")]
        self.user = [u for u in range(len(store.offsets) - 1) for _ in range(*store.offsets[u : u + 2])]
        train = [i for i, s in enumerate(store.columns["split"]) if s == TRAIN]
        seen = Counter(self.behavior[i] for i in train if self.behavior[i] >= 0)
        raw = [seen[c] + (self.classes - c) / (2 * self.classes) for c in range(self.classes)]
        self.frequency = [x / sum(raw) for x in raw]
        self.hour: dict[tuple[bool, int], Counter[int]] = {}
        self.next: dict[int, Counter[int]] = {}
        for i in train:
            past = self.past(i)
            if not past or self.behavior[i] < 0:
                continue
            self.hour.setdefault(self.context(past[-1]), Counter())[self.behavior[i]] += 1
            known = [self.behavior[j] for j in past if self.behavior[j] >= 0]
            if known:
                self.next.setdefault(known[-1], Counter())[self.behavior[i]] += 1

    def past(self, row: int) -> list[int]:
        return [j for j in range(row) if self.user[j] == self.user[row]]

    def context(self, i: int) -> tuple[bool, int]:
        return bool(self.store.columns["weekday"][i] >= 5), int(self.store.columns["slot"][i]) * 30 // 120

    def mix(self, seen: Counter[int], weight: float, prior: list[float]) -> list[float]:
        total = sum(seen.values()) + weight
        return [(seen[c] + weight * prior[c]) / total for c in range(self.classes)]

    def scores(self, name: str, weight: float, row: int) -> list[float]:
        past = self.past(row)
        known = [self.behavior[j] for j in past if self.behavior[j] >= 0]
        if name == "most_frequent":
            return self.frequency
        if name == "by_hour":
            seen = self.hour.get(self.context(past[-1]), Counter()) if past else Counter()
            return self.mix(seen, weight, self.frequency)
        if name == "user_most_frequent":
            return self.mix(Counter(known), weight, self.frequency)
        if name == "repeat_last":
            return self.mix(Counter(known[-1:]), weight if known else 1.0, self.frequency)
        markov = self.mix(self.next.get(known[-1], Counter()) if known else Counter(), 1.0, self.frequency)
        if name == "markov":
            return markov
        own = Counter(b for a, b in itertools.pairwise(known) if a == known[-1])
        return self.mix(own, weight, markov)


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_counting_with_dictionaries(seed: int) -> None:
    store = random_store(seed)
    reference, models = Reference(store), counts.fit(store)
    assert tuple(models) == NAMES
    rows = np.arange(store.manifest.events)  # also first events of users, which know nothing
    for name, model in models.items():
        expected = [reference.scores(name, model.weight, row) for row in rows.tolist()]
        np.testing.assert_allclose(collected(model, store, rows), expected, rtol=2e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_distributions_without_ties(name: str) -> None:
    store = random_store(7, users=60, classes=9)
    score = collected(counts.fit(store)[name], store, target_rows(store, TEST))
    np.testing.assert_allclose(score.sum(axis=1), 1, rtol=1e-5)
    assert (score > 0).all()
    assert all(len(np.unique(line)) == 9 for line in score)


@pytest.mark.parametrize("name", NAMES)
def test_chunk_size_changes_nothing(name: str) -> None:
    store = random_store(11)
    model, rows = counts.fit(store)[name], target_rows(store, TEST)
    whole = collected(model, store, rows, counts.CELLS)
    for cells in (1, 17, 300):
        np.testing.assert_array_equal(collected(model, store, rows, cells), whole)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_or_after_the_row_is_seen(name: str) -> None:
    store = random_store(13)
    model, rows = counts.fit(store)[name], target_rows(store, TEST)
    clean = collected(model, store, rows)
    rng = np.random.default_rng(0)
    user = np.searchsorted(store.offsets, rows, side="right") - 1
    for i in range(0, len(rows), 5):
        future = slice(int(rows[i]), None)
        columns = {name: column.copy() for name, column in store.columns.items()}
        columns["event"][future] = rng.integers(0, len(store.behaviors), len(columns["event"][future]))
        columns["weekday"][future], columns["slot"][future] = 6, 47
        changed = collected(model, replace(store, columns=columns), rows)
        np.testing.assert_array_equal(changed[: i + 1], clean[: i + 1])
        others = user[: i + 1] != user[i]
        np.testing.assert_array_equal(changed[: i + 1][others], clean[: i + 1][others])


def test_the_past_of_any_split_is_seen_but_tables_are_from_training() -> None:
    store = random_store(17)
    split = store.columns["split"]
    flipped = store.columns["event"].copy()
    flipped[split != TRAIN] = FIRST
    other = replace(store, columns=store.columns | {"event": flipped})
    one, two = counts.fit(store)["markov"].tables, counts.fit(other)["markov"].tables
    for field in ("frequency", "hours", "pointer", "successor", "transitions"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    rows = target_rows(store, TEST)
    rows = rows[split[rows - 1] != TRAIN]
    model = counts.fit(store)["repeat_last"]
    known = store.columns["event"][rows - 1] >= FIRST
    top = collected(model, store, rows[known]).argmax(axis=1)
    np.testing.assert_array_equal(top, store.columns["event"][rows[known] - 1] - FIRST)


def test_rows_out_of_order_are_refused() -> None:
    store = random_store(1)
    with pytest.raises(ValueError, match="ascending"):
        list(counts.scores(counts.fit(store)["markov"], store, np.array([3, 2])))


def test_no_rows_and_no_training_events() -> None:
    store = random_store(3)
    assert list(counts.scores(counts.fit(store)["markov"], store, np.empty(0, np.int64))) == []
    empty = replace(store, columns=store.columns | {"split": np.full_like(store.columns["split"], TEST)})
    for model in counts.fit(empty).values():
        assert np.isfinite(collected(model, empty, target_rows(empty, TEST))).all()


def test_slots_longer_than_two_hours() -> None:
    store = make_store(
        np.array([2, 3, 2, 3], np.uint8),
        np.array([0, 4]),
        np.zeros(4, np.uint8),
        np.array([0, 0, 6, 6], np.uint8),
        np.zeros(4, np.uint8),
        classes=2,
        slot_minutes=1440,
    )
    score = collected(counts.fit(store)["by_hour"], store, np.arange(1, 4))
    np.testing.assert_array_equal(score[0], score[1])  # both after a weekday
    assert score[2].argmax() == 1  # after a weekend day


def ndcg3(score: np.ndarray, target: np.ndarray) -> float:
    total = 0.0
    for line, true in zip(score, target, strict=True):
        best = sorted(range(len(line)), key=lambda c: (-line[c], c))[:3]
        total += 1 / math.log2(2 + best.index(true)) if true in best else 0.0
    return total / len(target)


def test_tuning_picks_the_best_weight_on_validation_only() -> None:
    store = random_store(19, users=80)
    models = counts.fit(store)
    tuned = counts.tune(models, store)
    rows = target_rows(store, VALID)
    target = store.columns["event"][rows].astype(int) - FIRST
    for name in counts.TUNED:
        by_weight = {w: ndcg3(collected(replace(models[name], weight=w), store, rows), target) for w in counts.GRID}
        assert by_weight[tuned[name].weight] == pytest.approx(max(by_weight.values()))
    assert all(tuned[name] is models[name] for name in NAMES if name not in counts.TUNED)
    hidden = store.columns["event"].copy()
    hidden[store.columns["split"] == TEST] = FIRST
    assert counts.tune(models, replace(store, columns=store.columns | {"event": hidden})) == tuned
    train_only = replace(store, columns=store.columns | {"split": np.zeros_like(store.columns["split"])})
    assert counts.tune(models, train_only) == models


def test_many_classes_and_events_take_seconds() -> None:
    rng = np.random.default_rng(0)
    length = np.full(10_000, 20)
    offsets = np.concatenate([[0], np.cumsum(length)])
    total, classes = int(offsets[-1]), 345
    store = make_store(
        (rng.zipf(1.3, total) % classes + FIRST).astype(np.uint16),
        offsets,
        np.tile(np.repeat([0, 1, 2], [14, 2, 4]), 10_000).astype(np.uint8),
        rng.integers(0, 7, total).astype(np.uint8),
        rng.integers(0, 48, total).astype(np.uint8),
        classes,
    )
    begin = time.perf_counter()
    for model in counts.fit(store).values():
        assert sum(len(part) for part, _ in counts.scores(model, store, target_rows(store, TEST))) == 40_000
    assert time.perf_counter() - begin < 30


def last_fifth(path: Path, target: str) -> EventStore:
    """The protocol of the published table: users with at least 10 events, the last 20 % of each are the test."""
    frame = pd.read_parquet(path).sort_values(["user_id", "timestamp"], kind="stable")
    frame = frame[frame.groupby("user_id")["user_id"].transform("size") >= 10]
    size = frame.groupby("user_id").size().to_numpy()
    place = frame.groupby("user_id").cumcount().to_numpy()
    test = place >= np.repeat((size * 0.8).astype(int), size)
    order = frame.loc[~test, target].value_counts().index
    ids = pd.Series(range(len(order)), order).reindex(frame[target]).fillna(-1).to_numpy(int) + FIRST
    when = pd.to_datetime(frame["timestamp"])
    return make_store(
        np.maximum(ids, 1).astype(np.uint16),
        np.concatenate([[0], np.cumsum(size)]),
        np.where(test, TEST, TRAIN).astype(np.uint8),
        when.dt.weekday.to_numpy(np.uint8),
        (when.dt.hour * 2).to_numpy(np.uint8),
        len(order),
    )


@pytest.mark.parametrize(
    ("target", "published"),
    [
        ("behavior", {"most_frequent": 0.266, "user_most_frequent": 0.377, "repeat_last": 0.324, "markov": 0.332}),
        ("event", {"most_frequent": 0.187, "user_most_frequent": 0.268, "repeat_last": 0.180, "markov": 0.238}),
    ],
)
def test_jakarta_gives_the_known_accuracies(
    shared_data: Callable[[str], Path], target: str, published: dict[str, float]
) -> None:
    store = last_fifth(shared_data("foursquare_jakarta.parquet"), target)
    rows = target_rows(store, TEST)
    truth = store.column("behavior")[rows].astype(int) - FIRST
    models = counts.fit(store)
    for name, accuracy in published.items():
        top = collected(models[name], store, rows, counts.CELLS).argmax(axis=1)
        assert (top == truth).mean() == pytest.approx(accuracy, abs=0.02), name
