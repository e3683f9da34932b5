"""The count experts against a plain reading of their definitions, and what they may not know."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit

from behavegpt.data import compiled as compiling
from behavegpt.data import memory
from behavegpt.data.compiled import kernel
from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_columns import Columns
from behavegpt.data.memory_keys import GLOBAL
from behavegpt.data.memory_past import DECAYS, EXPERTS, FORGET, WEIGHTS, WORST
from behavegpt.data.memory_read import Readings
from behavegpt.data.memory_tables import FOLDS, Counted, Tables, fit_tables

CLASSES, PLACES = 9, 5


def log(seed: int, users: int = 12, longest: int = 40) -> tuple[Columns, np.ndarray, np.ndarray]:
    """Columns, offsets and which events are in training."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, longest, users)
    offsets = np.concatenate([[0], np.cumsum(length)])
    count = int(offsets[-1])
    time = np.concatenate([np.sort(rng.integers(0, 40 * 86400, n)) for n in length])
    columns = Columns(
        behavior=rng.integers(-1, CLASSES, count).astype(np.int32),
        event=rng.integers(1, 7, count).astype(np.int32),
        location=rng.integers(1, PLACES, count).astype(np.int32),
        slot=(time // 1800 % 48).astype(np.int16),
        weekday=(time // 86400 % 7).astype(np.int16),
        time=time.astype(np.int64),
    )
    return columns, offsets, time < 28 * 86400


def tables_of(columns: Columns, offsets: np.ndarray, used: np.ndarray) -> Tables:
    return fit_tables(columns, offsets, Counted(used, CLASSES, np.arange(len(offsets) - 1) % FOLDS))


def read_all(
    columns: Columns, offsets: np.ndarray, tables: Tables, **options: np.ndarray
) -> Readings:
    folds = options.pop("folds", None)
    spans = Spans(offsets[:-1], offsets[:-1], offsets[1:], folds)
    return read_memory(columns, tables, spans, **options)


class Plain:
    """The same by dictionaries and definitions, one class at a time."""

    def __init__(
        self, columns: Columns, offsets: np.ndarray, used: np.ndarray, fold: int | None = None
    ) -> None:
        self.columns = columns
        trained = columns.behavior[used & (columns.behavior >= 0)]
        counts = np.bincount(trained, minlength=CLASSES) + 0.5
        self.prior = counts / counts.sum()
        self.shared: dict[object, Counter[int]] = defaultdict(Counter)
        for u in range(len(offsets) - 1):
            if fold is not None and u % FOLDS == fold:
                continue
            for t in range(offsets[u] + 1, offsets[u + 1]):
                if used[t] and columns.behavior[t] >= 0:
                    for key in self.global_contexts(offsets[u], t - 1):
                        if key is not None:
                            self.shared[key][columns.behavior[t]] += 1

    def known(self, begin: int, t: int) -> list[int]:
        return [int(b) for b in self.columns.behavior[begin : t + 1] if b >= 0]

    def global_contexts(self, begin: int, t: int) -> list[object]:
        c, past = self.columns, self.known(begin, t)
        last, before = (past[-1] if past else None), (past[-2] if len(past) > 1 else None)
        return [
            None if last is None else ("b", last),
            None if before is None else ("bb", last, before),
            ("w", c.weekday[t] >= 5, c.slot[t] // 2),
            None if c.event[t] < 2 else ("ep", c.event[t], c.location[t]),
            None if last is None else ("bh", last, c.slot[t] // 4),
        ]

    def own_contexts(self, begin: int, t: int) -> list[object]:
        c, past = self.columns, self.known(begin, t)
        return [
            past[-1] if past else None,
            (past[-1], past[-2]) if len(past) > 1 else None,
            c.slot[t] // 3,
            None if c.location[t] < 2 else c.location[t],
            (c.weekday[t], c.slot[t] // 6),
        ]

    def chances(self, begin: int, t: int) -> np.ndarray:
        """(J, K) what each expert says after events begin .. t."""
        c, past = self.columns, self.known(begin, t)
        rows = [self.prior]
        weight = dict(zip(EXPERTS, WEIGHTS, strict=True))

        def add(name: str, counts: np.ndarray, shorter: np.ndarray) -> None:
            rows.append((counts + weight[name] * shorter) / (counts.sum() + weight[name]))

        for name, key in zip(GLOBAL, self.global_contexts(begin, t), strict=True):
            followed = Counter[int]() if key is None else self.shared[key]
            found = np.array([followed[k] for k in range(CLASSES)], float)
            add(f"global_{name}", found, rows[1] if name == "after_two" else self.prior)
        add("user", np.bincount(past, minlength=CLASSES).astype(float), self.prior)
        user = rows[-1]
        for number, key in enumerate(self.own_contexts(begin, t)):
            found = np.zeros(CLASSES)
            for s in range(begin + 1, t + 1):
                if (
                    key is not None
                    and c.behavior[s] >= 0
                    and self.own_contexts(begin, s - 1)[number] == key
                ):
                    found[c.behavior[s]] += 1
            add(EXPERTS[len(rows)], found, user)
        for decay in DECAYS:
            found = np.zeros(CLASSES)
            for ago, b in enumerate(reversed(past)):
                found[b] += np.exp(-ago / decay)
            add(f"user_recent_{decay:.0f}", found, user)
        add("user_last", np.bincount(past[-1:], minlength=CLASSES).astype(float), self.prior)
        return np.stack(rows)


@pytest.mark.parametrize("fold", [None, 3])
def test_experts_are_what_they_say(fold: int | None) -> None:
    columns, offsets, used = log(0)
    tables = tables_of(columns, offsets, used)
    folds = None if fold is None else np.full(len(offsets) - 1, fold)
    readings = read_all(columns, offsets, tables, **({} if folds is None else {"folds": folds}))
    plain = Plain(columns, offsets, used, fold)
    assert np.allclose(tables.prior, plain.prior)
    for u in range(len(offsets) - 1):
        judged = np.zeros(len(EXPERTS) + 1)
        for t in range(offsets[u], offsets[u + 1]):
            expected = plain.chances(offsets[u], t)
            candidates = slice(*readings.start[t : t + 2])
            classes = readings.classes[candidates]
            assert len(set(classes.tolist())) == len(classes)
            assert set(plain.known(offsets[u], t)) <= set(classes.tolist())
            assert np.allclose(readings.probability[candidates].T, expected[:, classes], atol=1e-5)
            held = readings.reliability[t, :-1] * max(judged[-1], 1)
            assert np.allclose(held, judged[:-1], atol=1e-3) and np.isclose(
                readings.reliability[t, -1], judged[-1]
            )
            if (
                t + 1 < offsets[u + 1]
                and columns.behavior[t + 1] >= 0
                and plain.known(offsets[u], t)
            ):
                came = np.maximum(np.log(expected[:, columns.behavior[t + 1]]), WORST)
                judged = FORGET * judged + np.append(came, 1)


def test_the_rest_is_a_share_of_the_prior() -> None:
    columns, offsets, used = log(1)
    # a class nobody showed
    columns = columns._replace(behavior=np.where(columns.behavior == 7, -1, columns.behavior))
    tables = tables_of(columns, offsets, used)
    readings = read_all(columns, offsets, tables)
    plain = Plain(columns, offsets, used)
    for u in range(len(offsets) - 1):
        for t in range(offsets[u], offsets[u + 1]):
            assert np.allclose(
                readings.rest[t] * tables.prior[7], plain.chances(offsets[u], t)[:, 7], atol=1e-6
            )


def test_nothing_later_is_known() -> None:
    """Changing all later events, the target included, changes no reading."""
    columns, offsets, used = log(2)
    tables = tables_of(columns, offsets, used)
    before = read_all(columns, offsets, tables)
    rng = np.random.default_rng(0)
    for t in (offsets[3] + 5, offsets[5], offsets[7] + 1):
        later = slice(t + 1, offsets[np.searchsorted(offsets, t, side="right")])
        changed = Columns(*(column.copy() for column in columns))
        changed.behavior[later] = rng.integers(0, CLASSES, later.stop - later.start)
        changed.location[later], changed.event[later], changed.slot[later] = 2, 3, 5
        after = read_all(changed, offsets, tables)
        for field in ("rest", "evidence", "reliability", "context"):
            assert np.array_equal(getattr(before, field)[t], getattr(after, field)[t])
        for field in ("classes", "probability", "age"):
            one, other = (getattr(r, field)[r.start[t] : r.start[t + 1]] for r in (before, after))
            assert np.array_equal(one, other)


def test_a_window_reads_what_the_whole_history_says() -> None:
    columns, offsets, used = log(3)
    tables = tables_of(columns, offsets, used)
    whole = read_all(columns, offsets, tables)
    users = np.flatnonzero(np.diff(offsets) > 20)
    low = offsets[users] + 9
    part = read_memory(columns, tables, Spans(offsets[users], low, low + 6))
    position = (low[:, None] + np.arange(6)).ravel()
    assert np.array_equal(part.context, whole.context[position])
    assert np.array_equal(part.reliability, whole.reliability[position])
    flat = np.concatenate([np.arange(*whole.start[t : t + 2]) for t in position])
    assert np.array_equal(part.probability, whole.probability[flat])


def test_a_fold_leaves_out_the_users_own_events() -> None:
    """With one user a fold, what is left is what a table without that user holds."""
    columns, offsets, used = log(4, users=FOLDS)
    tables = tables_of(columns, offsets, used)
    folded = read_all(columns, offsets, tables, folds=np.arange(FOLDS))
    for u in range(FOLDS):
        others = used.copy()
        others[offsets[u] : offsets[u + 1]] = False
        alone = tables_of(columns, offsets, others)._replace(prior=tables.prior)
        begin, end = offsets[u : u + 1], offsets[u + 1 : u + 2]
        part = read_memory(columns, alone, Spans(begin, begin, end))
        shared = slice(1, 1 + len(GLOBAL))
        assert np.allclose(
            part.evidence[:, shared], folded.evidence[offsets[u] : offsets[u + 1], shared]
        )
        assert np.allclose(
            part.reliability, folded.reliability[offsets[u] : offsets[u + 1]], atol=1e-6
        )


def test_code_older_than_the_loops_is_dropped() -> None:
    """numba's cache knows of changes in the file of a function alone, and the loops stand in
    several."""
    compiled = memory._replay
    columns, offsets, used = log(0)
    read_all(columns, offsets, tables_of(columns, offsets, used))
    index = next(Path(compiled.stats.cache_path).glob("memory._replay-*.nbi"))
    kernel(compiled.py_func)
    assert index.exists()
    os.utime(index, (0, 0))
    kernel(compiled.py_func)
    assert not index.exists()


def test_stale_code_may_be_dropped_by_another_process_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes that start after an upgrade both find the old files."""
    compiled = memory._replay
    folder = Path(compiled.stats.cache_path)
    gone = folder / "memory._replay-gone.nbi"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone] if self == folder else [])
    with pytest.raises(FileNotFoundError):
        gone.stat()
    monkeypatch.setattr("behavegpt.data.compiled.max", lambda times: 0.0, raising=False)
    assert kernel(compiled.py_func).py_func is compiled.py_func


def test_without_a_folder_for_compiled_code_the_kernels_work_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container whose package and home are read-only."""

    def nowhere(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compiling, "njit", nowhere)
    compiling._warn_of_no_cache.cache_clear()
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        doubled = kernel(lambda values: values * 2)
    assert doubled(np.arange(3)).tolist() == [0, 2, 4]
