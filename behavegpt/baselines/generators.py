"""Trivial generators of futures: each next event is a copy of an event that happened. They often win.

    repeat_window    the user's last events again, in order, with their time gaps
    user_by_hour     a random own time gap, then a random own event of about this hour: frequencies by hour
    markov           what followed, after what time, in a random training event with the same behavior and about the
                     same hour as the last one

All fields of a copied event stay together. Shapes: N users, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.times import DAY, calendar
from behavegpt.data.vocabulary import FIRST

WINDOW = 120  # minutes of "about the same hour"


@dataclass(frozen=True)
class Histories:
    """Flat columns with `time` and `behavior`; user n owns events offsets[n] : offsets[n + 1], one at least."""

    columns: Mapping[str, np.ndarray]
    offsets: np.ndarray  # (N + 1,)
    schema: EventSchema


def generate(
    name: str, histories: Histories, store: EventStore, steps: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns (N, T) of the futures, and their gaps (N, T) in seconds; `store` holds the training events."""
    known = [np.flatnonzero(np.asarray(histories.columns["behavior"]) >= FIRST)]
    owner = np.searchsorted(histories.offsets, known[0], side="right") - 1
    offsets = np.searchsorted(owner, np.arange(len(histories.offsets)))
    if (np.diff(offsets) == 0).any():
        raise ValueError("every user needs an event with a known behavior")
    columns = {field: np.asarray(column)[known[0]].astype(np.int64) for field, column in histories.columns.items()}
    filtered = Histories(columns, offsets, histories.schema)
    return GENERATORS[name](filtered, store, steps, np.random.default_rng(seed))


def _repeat_window(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    end = histories.offsets[1:]
    length = np.minimum(np.diff(histories.offsets), steps)
    index = (end - length)[:, None] + np.arange(steps) % length[:, None]
    return {name: column[index] for name, column in histories.columns.items()}, _gaps(histories)[index]


def _user_by_hour(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    begin, count = histories.offsets[:-1], np.diff(histories.offsets)
    windows = DAY // 60 // WINDOW
    window = _window(histories.columns["slot"], histories.schema)
    user = np.repeat(np.arange(len(begin)), count)
    order = np.lexsort((window, user))  # own events by window
    key = (user * windows + window)[order]
    gaps, time = _gaps(histories), histories.columns["time"][histories.offsets[1:] - 1]
    chosen, waited = np.empty((len(begin), steps), np.int64), np.empty((len(begin), steps), np.int64)
    for step in range(steps):
        # the first event of a user has no gap of its own
        own = begin + np.minimum(1, count - 1) + (rng.random(len(begin)) * np.maximum(count - 1, 1)).astype(np.int64)
        waited[:, step] = gaps[own]
        time = time + waited[:, step]
        wanted = np.arange(len(begin)) * windows + _window(calendar(time, histories.schema)[1], histories.schema)
        low, high = np.searchsorted(key, wanted), np.searchsorted(key, wanted, side="right")
        none = low == high
        low, high = np.where(none, begin, low), np.where(none, begin + count, high)
        chosen[:, step] = order[low + (rng.random(len(begin)) * (high - low)).astype(np.int64)]
    return {name: column[chosen] for name, column in histories.columns.items()}, waited


def _markov(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    windows = DAY // 60 // WINDOW
    behavior = np.asarray(store.column("behavior")).astype(np.int64)
    usable = (behavior >= FIRST) & (np.asarray(store.columns["split"]) == TRAIN)
    usable[store.offsets[:-1][np.diff(store.offsets) > 0]] = False  # has no event before it
    after = np.flatnonzero(usable)
    after = after[behavior[after - 1] >= FIRST]
    if not len(after):
        raise ValueError("the training split holds no two events in a row with known behaviors")
    gap = store.columns["time"][after].astype(np.int64) - store.columns["time"][after - 1].astype(np.int64)
    key = behavior[after - 1] * windows + _window(store.columns["slot"][after - 1], store.schema)
    order = np.argsort(key, kind="stable")
    after, gap, key = after[order], gap[order], key[order]
    last = histories.offsets[1:] - 1
    state, hour = histories.columns["behavior"][last], histories.columns["slot"][last]
    time = histories.columns["time"][last]
    chosen = np.empty((len(last), steps), np.int64)
    for step in range(steps):
        wanted = state * windows + _window(hour, histories.schema)
        low, high = np.searchsorted(key, wanted), np.searchsorted(key, wanted, side="right")
        for least, most in ((state * windows, (state + 1) * windows), (np.zeros_like(state), key[-1:] + 1)):
            none = low == high  # back off to the behavior at any hour, then to any event
            low = np.where(none, np.searchsorted(key, least), low)
            high = np.where(none, np.searchsorted(key, most), high)
        chosen[:, step] = low + (rng.random(len(last)) * (high - low)).astype(np.int64)
        state = behavior[after[chosen[:, step]]]
        time = time + gap[chosen[:, step]]
        hour = calendar(time, histories.schema)[1]
    names = [name for name in histories.columns if name in store.columns]
    columns = {name: np.asarray(store.columns[name])[after[chosen]].astype(np.int64) for name in names}
    return columns | {"behavior": behavior[after[chosen]]}, gap[chosen]


def _gaps(histories: Histories) -> np.ndarray:
    """Seconds before each event; of a user's first one the median of the others', a day if there are none."""
    time = histories.columns["time"]
    gaps = np.diff(time, prepend=time[:1])
    for begin, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        gaps[begin] = np.median(gaps[begin + 1 : end]) if end - begin > 1 else DAY
    return gaps


def _window(slot: np.ndarray, schema: EventSchema) -> np.ndarray:
    return np.asarray(slot).astype(np.int64) * schema.slot_minutes // WINDOW


Generator = Callable[[Histories, EventStore, int, np.random.Generator], tuple[dict[str, np.ndarray], np.ndarray]]
GENERATORS: dict[str, Generator] = {
    "repeat_window": _repeat_window,
    "user_by_hour": _user_by_hour,
    "markov": _markov,
}
