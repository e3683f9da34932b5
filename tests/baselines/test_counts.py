"""Count baselines against dictionaries filled one event at a time, and against perturbed
futures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from behavegpt.baselines import counts
from behavegpt.data.pack import target_rows
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TEST, TRAIN, VALID, EventStore, Manifest
from behavegpt.data.vocabulary import FIRST, Vocabulary

NAMES = (
    *(
        "most_frequent",
        "by_hour",
        "by_place",
        "markov",
        "global_markov2",
        "repeat_last",
        "user_most_frequent",
    ),
    *("user_recent", "user_by_hour", "user_by_place", "user_markov", "mixture"),
)


def make_store(
    behavior: np.ndarray,
    offsets: np.ndarray,
    split: np.ndarray,
    weekday: np.ndarray,
    slot: np.ndarray,
    classes: int,
    slot_minutes: int = 30,
    location: np.ndarray | None = None,
) -> EventStore:
    """A store in memory whose behaviors are its events; `behavior` and `location` hold ids (M,)."""
    seen = np.bincount(behavior[split == TRAIN], minlength=classes + FIRST)[FIRST:]
    vocabulary = Vocabulary(
        pd.array([f"b{i}" for i in range(classes)], "string[pyarrow]").__arrow_array__(), seen
    )
    columns = {"event": behavior, "split": split, "weekday": weekday, "slot": slot}
    columns["time"] = np.arange(len(behavior)) * 60
    columns |= {} if location is None else {"location": location}
    manifest = Manifest(
        format=1,
        event_schema=EventSchema.model_validate(
            {"user": "u", "time": "t", "event": "e", "slot_minutes": slot_minutes}
        ),
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
    """Skewed behaviors, unknown ones, empty users, splits by time within each user and users of one
    split."""
    rng = np.random.default_rng(seed)
    length = rng.integers(0, longest, users)
    offsets = np.concatenate([[0], np.cumsum(length)])
    total = int(offsets[-1])
    behavior = np.minimum(rng.geometric(0.35, total), classes) + FIRST - 1
    behavior[rng.random(total) < 0.15] = rng.integers(0, FIRST)
    split = np.concatenate(
        [np.sort(rng.integers(0, 3, n) if n % 4 else np.full(n, n % 3)) for n in length]
    )
    return make_store(
        behavior.astype(np.uint8),
        offsets,
        split.astype(np.uint8),
        rng.integers(0, 7, total).astype(np.uint8),
        rng.integers(0, 48, total).astype(np.uint8),
        classes,
        location=rng.integers(0, 7, total).astype(np.uint8),
    )


def collected(
    model: counts.CountModel, store: EventStore, rows: np.ndarray, cells: int = 997
) -> np.ndarray:
    parts = list(counts.scores(model, store, rows, cells))
    assert all(
        score.dtype == np.float32 and score.size <= max(cells, score.shape[1]) for _, score in parts
    )
    assert np.array_equal(np.concatenate([part for part, _ in parts]), rows)
    return np.concatenate([score for _, score in parts])


class Reference:
    """The definitions of the module's docstring, one event at a time."""

    def __init__(self, store: EventStore) -> None:
        self.columns, self.classes = store.columns, store.behaviors.classes
        self.behavior = [int(b) - FIRST for b in store.column("behavior")]
        self.user = [
            u for u in range(len(store.offsets) - 1) for _ in range(*store.offsets[u : u + 2])
        ]
        self.train = [i for i, s in enumerate(store.columns["split"]) if s == TRAIN]
        seen = Counter(self.behavior[i] for i in self.train)
        raw = [seen[c] + 0.5 for c in range(self.classes)]
        self.frequency = [x / sum(raw) for x in raw]

    def past(self, row: int) -> list[int]:
        return [j for j in range(row) if self.user[j] == self.user[row]]

    def known(self, past: list[int]) -> list[int]:
        return [self.behavior[j] for j in past if self.behavior[j] >= 0]

    def context(self, name: str, row: int) -> tuple[int, ...] | None:
        """What the behavior at a row follows; None where there is nothing of the kind."""
        past = self.past(row)
        if not past:
            return None
        known, last = self.known(past), past[-1]
        slot, place = int(self.columns["slot"][last]), int(self.columns["location"][last])
        return {
            "by_hour": (int(self.columns["weekday"][last] >= 5), slot // 2),
            "by_place": (place,) if place >= FIRST else None,
            "markov": tuple(known[-1:]) or None,
            "global_markov2": tuple(known[-2:]) if len(known) > 1 else None,
            "user_by_hour": (slot // 3,),
            "user_by_place": (place,) if place >= FIRST else None,
            "user_markov": tuple(known[-1:]) or None,
        }[name]

    def followed(self, name: str, row: int, rows: list[int]) -> dict[int, float]:
        """How often each behavior followed the context of a row, at these rows."""
        context = self.context(name, row)
        same = [i for i in rows if context is not None and self.context(name, i) == context]
        return Counter(self.known(same))

    def scores(self, name: str, chain: counts.Chain, row: int) -> list[float]:
        if name == "most_frequent":
            return self.frequency
        shorter = counts.BASELINES[name].shorter
        assert shorter is not None
        *before, level = chain
        prior = self.scores(shorter, tuple(before), row)
        past = self.past(row)
        known = self.known(past)
        seen: dict[int, float] = Counter()
        if name == "repeat_last":
            seen = Counter(known[-1:])
        elif name == "user_most_frequent":
            seen = Counter(known)
        elif name == "user_recent":
            for age, behavior in enumerate(reversed(known)):
                seen[behavior] = seen.get(behavior, 0) + math.exp(-age / level.decay)
        else:
            seen = self.followed(name, row, past if name.startswith("user") else self.train)
        total = sum(seen.values()) + level.weight
        return [(seen.get(c, 0) + level.weight * prior[c]) / total for c in range(self.classes)]

    def all_scores(self, models: dict[str, counts.CountModel], row: int) -> dict[str, list[float]]:
        found = {name: self.scores(name, models[name].chains[0], row) for name in counts.BASELINES}
        columns = zip(*found.values(), strict=True)
        shares = models["mixture"].shares
        return found | {
            "mixture": [sum(s * p for s, p in zip(shares, c, strict=True)) for c in columns]
        }


@pytest.mark.parametrize(("seed", "tuned"), [(0, False), (1, False), (2, True), (3, True)])
def test_scores_equal_counting_with_dictionaries(seed: int, tuned: bool) -> None:
    store = random_store(seed, users=20)
    reference, models = Reference(store), counts.fit(store)
    assert tuple(models) == NAMES
    models = counts.tune(models, store) if tuned else models
    rows = np.arange(store.manifest.events)  # also first events of users, which know nothing
    expected = [reference.all_scores(models, row) for row in rows.tolist()]
    for name, model in models.items():
        wanted = [scores[name] for scores in expected]
        np.testing.assert_allclose(
            collected(model, store, rows), wanted, rtol=3e-6, atol=1e-9, err_msg=name
        )


def test_contexts_with_many_followers_are_exact() -> None:
    """The memory keeps the 128 most frequent followers of a context; the baselines keep all."""
    classes = 400
    behavior = np.stack([np.zeros(classes, np.int64), np.arange(classes)], axis=1).ravel()
    zeros = np.zeros(len(behavior), np.uint8)
    store = make_store(behavior + FIRST, np.array([0, len(behavior)]), zeros, zeros, zeros, classes)
    model = counts.fit(store)["markov"]
    after_zero = collected(model, store, np.array([len(behavior) - 1]), counts.CELLS)[0]
    followed = np.bincount(behavior[1:][behavior[:-1] == 0], minlength=classes)
    np.testing.assert_allclose(
        after_zero, (followed + model.tables.prior) / (followed.sum() + 1), rtol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_distributions(name: str) -> None:
    store = random_store(7, users=60, classes=9)
    score = collected(counts.fit(store)[name], store, target_rows(store, TEST))
    np.testing.assert_allclose(score.sum(axis=1), 1, rtol=1e-5)
    assert (score > 0).all()


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
        columns["event"][future] = rng.integers(
            0, len(store.behaviors), len(columns["event"][future])
        )
        columns["weekday"][future], columns["slot"][future], columns["location"][future] = 6, 47, 3
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
    for field, table in one._asdict().items():
        np.testing.assert_array_equal(table, getattr(two, field))
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
    empty = replace(
        store, columns=store.columns | {"split": np.full_like(store.columns["split"], TEST)}
    )
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


def settings_of(models: dict[str, counts.CountModel]) -> dict[str, object]:
    return {name: (model.chains, model.shares) for name, model in models.items()}


def test_tuning_picks_the_best_on_validation_only() -> None:
    store = random_store(19, users=80)
    models = counts.fit(store)
    tuned = counts.tune(models, store)
    rows = target_rows(store, VALID)
    target = store.columns["event"][rows].astype(int) - FIRST
    reached = {name: ndcg3(collected(model, store, rows), target) for name, model in tuned.items()}
    for name in set(NAMES) - {"most_frequent", "repeat_last", "mixture"}:
        *shorter, level = tuned[name].chains[0]
        parent = counts.BASELINES[name].shorter
        assert parent is not None and tuple(shorter) == tuned[parent].chains[0]
        decays = counts.DECAYS if name == "user_recent" else (level.decay,)
        tried = [level._replace(weight=w, decay=d) for w in counts.WEIGHTS for d in decays]
        others = [replace(models[name], chains=((*shorter, other),)) for other in tried]
        best = max(ndcg3(collected(other, store, rows), target) for other in others)
        assert reached[name] == pytest.approx(best), name
    assert reached["mixture"] == max(reached.values())
    assert sum(tuned["mixture"].shares) == pytest.approx(1) and min(tuned["mixture"].shares) >= 0
    assert all(
        tuned[name].chains == models[name].chains for name in ("most_frequent", "repeat_last")
    )
    hidden = store.columns["event"].copy()
    hidden[store.columns["split"] == TEST] = FIRST
    without_test = counts.tune(models, replace(store, columns=store.columns | {"event": hidden}))
    assert settings_of(without_test) == settings_of(tuned)
    train_only = replace(
        store, columns=store.columns | {"split": np.zeros_like(store.columns["split"])}
    )
    assert counts.tune(models, train_only) is models


def test_shares_are_the_likeliest_ones() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(4), 500)[:, :3].astype(np.float32)
    probability[:, 2] *= 0.5  # never worth a share
    shares = counts.likeliest_shares(probability)

    def loss(logits: np.ndarray) -> float:
        weights = np.exp(logits) / np.exp(logits).sum()
        return -float(np.log(probability @ weights).mean())

    found = minimize(
        loss,
        np.zeros(3),
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 5000},
    )
    assert -np.log(probability @ shares).mean() == pytest.approx(found.fun, abs=1e-5)
    assert shares[2] < 1e-3 and shares.sum() == pytest.approx(1)


def test_settings_name_what_was_tuned() -> None:
    models = counts.fit(random_store(23))
    assert models["markov"].settings() == {"weight": 1.0}
    assert models["user_recent"].settings() == {"weight": 0.3, "decay": 15.0}
    assert models["most_frequent"].settings() == {"weight": 0.0}
    assert tuple(models["mixture"].settings()) == tuple(counts.BASELINES)


def test_many_classes_and_events() -> None:
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
    for model in counts.fit(store).values():
        assert (
            sum(len(part) for part, _ in counts.scores(model, store, target_rows(store, TEST)))
            == 40_000
        )


def last_fifth(path: Path, target: str) -> EventStore:
    """The protocol of the published table: users with at least 10 events, the last 20 % of each are
    the test."""
    frame = pd.read_parquet(path).sort_values(["user_id", "timestamp"], kind="stable")
    frame = frame[frame.groupby("user_id")["user_id"].transform("size") >= 10]
    size = frame.groupby("user_id").size().to_numpy()
    place = frame.groupby("user_id").cumcount().to_numpy()
    test = place >= np.repeat((size * 0.8).astype(int), size)
    order = frame.loc[~test, target].value_counts().index
    ids = (
        pd.Series(range(len(order)), order).reindex(frame[target]).fillna(-1).to_numpy(int) + FIRST
    )
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
        (
            "behavior",
            {
                "most_frequent": 0.266,
                "user_most_frequent": 0.377,
                "repeat_last": 0.324,
                "markov": 0.332,
            },
        ),
        (
            "event",
            {
                "most_frequent": 0.187,
                "user_most_frequent": 0.268,
                "repeat_last": 0.180,
                "markov": 0.238,
            },
        ),
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
