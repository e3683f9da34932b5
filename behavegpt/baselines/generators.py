"""Trivial generators of futures: each next event is a copy of an event that happened. They often
win.

    repeat_window    the user's last events again, in order, with their time gaps
    user_by_hour     a random own time gap, then a random own event of about this hour: frequencies
        by hour
    markov           what followed, after what time, in a random training event with the same
    behavior and about the
                     same hour as the last one

All fields of a copied event stay together. Shapes: N users, T steps.

Learned generators (seqgan.py, diffuseq.py, upc_sdg.py) have the same signature and take from here
what is common: the blocks they learn from, the histories they continue, and fields and times of
drawn behaviors (`dress`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.times import DAY, calendar
from behavegpt.data.vocabulary import FIRST

WINDOW = 120  # minutes of "about the same hour"


@dataclass(frozen=True)
class Histories:
    """Flat columns with `time` and `behavior`; user n owns events offsets[n] : offsets[n + 1], one
    at least."""

    columns: Mapping[str, np.ndarray]
    offsets: np.ndarray  # (N + 1,)
    schema: EventSchema


def generate(
    name: str, histories: Histories, store: EventStore, steps: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns (N, T) of the futures, and their gaps (N, T) in seconds; `store` holds the training
    events."""
    return GENERATORS[name](known(histories), store, steps, np.random.default_rng(seed))


def known(histories: Histories) -> Histories:
    """The events with a known behavior; raises ValueError when a user has none."""
    rows = np.flatnonzero(np.asarray(histories.columns["behavior"]) >= FIRST)
    owner = np.searchsorted(histories.offsets, rows, side="right") - 1
    offsets = np.searchsorted(owner, np.arange(len(histories.offsets)))
    if (np.diff(offsets) == 0).any():
        raise ValueError("every user needs an event with a known behavior")

    columns = {
        field: np.asarray(column)[rows].astype(np.int64)
        for field, column in histories.columns.items()
    }
    return Histories(columns, offsets, histories.schema)


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Torch draws from `rng` inside, and as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        yield


def blocks(
    store: EventStore, past: int, steps: int, rng: np.random.Generator, least: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of the training split as pairs (B, past) and (B, steps): each event but a user's
    first is in one future.

    Futures are cut at random places, one user after the other, and those below `least` events left
    out. The class K pads histories on the left and futures on the right.
    """
    behavior = np.asarray(store.column("behavior")).astype(np.int64)
    rows = np.flatnonzero((behavior >= FIRST) & (np.asarray(store.columns["split"]) == TRAIN))
    owner = np.searchsorted(store.offsets, rows, side="right") - 1
    begin = np.searchsorted(owner, owner)  # where the user of each row begins
    position = np.arange(len(rows)) - begin
    block = (position - 1 + rng.integers(steps, size=store.manifest.users)[owner]) // steps
    first = np.flatnonzero((position > 0) & ((position == 1) | (block != np.roll(block, 1))))
    code = (block - block.min()) + (block.max() - block.min() + 1) * owner
    end = np.searchsorted(code, code[first], side="right")
    long = end - first >= least
    first, end = first[long, None], end[long, None]
    before, after = first + np.arange(-past, 0), first + np.arange(steps)
    classes = np.append(behavior[rows] - FIRST, store.behaviors.classes)
    pairs = np.where(before >= begin[first], before, -1), np.where(after < end, after, -1)

    return torch.from_numpy(classes[pairs[0]]), torch.from_numpy(classes[pairs[1]])


def last_classes(histories: Histories, past: int, classes: int) -> torch.Tensor:
    """The last `past` classes of each history (N, past), `classes` to the left of shorter ones."""
    index = histories.offsets[1:, None] + np.arange(-past, 0)
    values = np.append(histories.columns["behavior"] - FIRST, classes)
    return torch.from_numpy(values[np.where(index >= histories.offsets[:-1, None], index, -1)])


def dress(
    classes: np.ndarray, histories: Histories, store: EventStore, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns and gaps (N, T) of drawn classes (N, T), for methods that model nothing else.

    The other fields are those of a random own event with this behavior, of a random training event
    where the user has none; the gaps are random own ones, whatever the event.
    """
    count, size = len(histories.offsets) - 1, store.behaviors.classes
    trained = np.asarray(store.column("behavior")).astype(np.int64)
    rows = np.flatnonzero((trained >= FIRST) & (np.asarray(store.columns["split"]) == TRAIN))
    names = [name for name in histories.columns if name in store.columns or name == "behavior"]
    columns = {
        n: np.append(histories.columns[n], np.asarray(store.column(n))[rows].astype(np.int64))
        for n in names
    }
    user = np.append(
        np.repeat(np.arange(count), np.diff(histories.offsets)), np.full(len(rows), count)
    )
    key = user * size + columns["behavior"] - FIRST
    order = np.argsort(key, kind="stable")
    key = key[order]
    sought = np.arange(count)[:, None] * size + classes
    low, high = np.searchsorted(key, sought, "left"), np.searchsorted(key, sought, "right")
    none = low == high
    low = np.where(none, np.searchsorted(key, count * size + classes), low)
    high = np.where(none, np.searchsorted(key, count * size + classes, side="right"), high)
    chosen = order[low + (rng.random(classes.shape) * (high - low)).astype(np.int64)]
    own = [_random_gap(histories, rng) for _ in range(classes.shape[1])]

    return {name: column[chosen] for name, column in columns.items()}, _gaps(histories)[
        np.stack(own, axis=1)
    ]


def _repeat_window(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    end = histories.offsets[1:]
    length = np.minimum(np.diff(histories.offsets), steps)
    index = (end - length)[:, None] + np.arange(steps) % length[:, None]
    return {name: column[index] for name, column in histories.columns.items()}, _gaps(histories)[
        index
    ]


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
    chosen, waited = (
        np.empty((len(begin), steps), np.int64),
        np.empty((len(begin), steps), np.int64),
    )

    for step in range(steps):
        waited[:, step] = gaps[_random_gap(histories, rng)]
        time = time + waited[:, step]
        wanted = np.arange(len(begin)) * windows + _window(
            calendar(time, histories.schema)[1], histories.schema
        )
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

    gap = store.columns["time"][after].astype(np.int64) - store.columns["time"][after - 1].astype(
        np.int64
    )
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

        for least, most in (
            (state * windows, (state + 1) * windows),
            (np.zeros_like(state), key[-1:] + 1),
        ):
            none = low == high  # back off to the behavior at any hour, then to any event
            low = np.where(none, np.searchsorted(key, least), low)
            high = np.where(none, np.searchsorted(key, most), high)

        chosen[:, step] = low + (rng.random(len(last)) * (high - low)).astype(np.int64)
        state = behavior[after[chosen[:, step]]]
        time = time + gap[chosen[:, step]]
        hour = calendar(time, histories.schema)[1]

    names = [name for name in histories.columns if name in store.columns]
    columns = {
        name: np.asarray(store.columns[name])[after[chosen]].astype(np.int64) for name in names
    }
    return columns | {"behavior": behavior[after[chosen]]}, gap[chosen]


def _random_gap(histories: Histories, rng: np.random.Generator) -> np.ndarray:
    """A random event (N,) of each user, not the first one, which has no gap of its own, unless it
    is the only one."""
    begin, count = histories.offsets[:-1], np.diff(histories.offsets)
    return (
        begin
        + np.minimum(1, count - 1)
        + (rng.random(len(begin)) * np.maximum(count - 1, 1)).astype(np.int64)
    )


def _gaps(histories: Histories) -> np.ndarray:
    """Seconds before each event; of a user's first one the median of the others', a day if there
    are none."""
    time = histories.columns["time"]
    gaps = np.diff(time, prepend=time[:1])
    for begin, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        gaps[begin] = np.median(gaps[begin + 1 : end]) if end - begin > 1 else DAY
    return gaps


def _window(slot: np.ndarray, schema: EventSchema) -> np.ndarray:
    return np.asarray(slot).astype(np.int64) * schema.slot_minutes // WINDOW


Generator = Callable[
    [Histories, EventStore, int, np.random.Generator], tuple[dict[str, np.ndarray], np.ndarray]
]
GENERATORS: dict[str, Generator] = {
    "repeat_window": _repeat_window,
    "user_by_hour": _user_by_hour,
    "markov": _markov,
}
