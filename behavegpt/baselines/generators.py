"""Trivial generators of futures: each next event is a copy of an event that happened. They often
win.

    repeat_window    the user's last events again, in order, with their time gaps
    user_by_hour     a random own time gap, then a random own event of about this hour: frequencies
                     by hour
    markov           what followed, after what time, in a random training event with the same
                     behavior and about the same hour as the last one

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
    # the user of each known event
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
    # no devices: the generators run on the CPU
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
    behavior = np.asarray(store.column("behavior")).astype(np.int64)  # (E,)
    rows = np.flatnonzero((behavior >= FIRST) & (np.asarray(store.columns["split"]) == TRAIN))
    owner = np.searchsorted(store.offsets, rows, side="right") - 1  # (rows,) user
    begin = np.searchsorted(owner, owner)  # (rows,) where the user begins
    position = np.arange(len(rows)) - begin  # (rows,) place among the user's known events

    # each user's first cut lies at a random place
    block = (position - 1 + rng.integers(steps, size=store.manifest.users)[owner]) // steps
    # the first event of a block; a user's event 0 is history only
    first = np.flatnonzero((position > 0) & ((position == 1) | (block != np.roll(block, 1))))

    # one ascending number for each (user, block)
    code = (block - block.min()) + (block.max() - block.min() + 1) * owner
    end = np.searchsorted(code, code[first], side="right")  # (blocks,) behind the block's last
    kept = end - first >= least
    first, end = first[kept, None], end[kept, None]

    # (B, past), (B, steps) indices
    before, after = first + np.arange(-past, 0), first + np.arange(steps)
    # the appended class K is what -1 points at: padding
    classes = np.append(behavior[rows] - FIRST, store.behaviors.classes)
    histories = np.where(before >= begin[first], before, -1)  # (B, past)
    futures = np.where(after < end, after, -1)  # (B, steps)

    return torch.from_numpy(classes[histories]), torch.from_numpy(classes[futures])


def last_classes(histories: Histories, past: int, classes: int) -> torch.Tensor:
    """The last `past` classes of each history (N, past), `classes` to the left of shorter ones."""
    index = histories.offsets[1:, None] + np.arange(-past, 0)  # (N, past)
    # index -1 is the appended padding class
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
    trained = np.asarray(store.column("behavior")).astype(np.int64)  # (E,)
    rows = np.flatnonzero((trained >= FIRST) & (np.asarray(store.columns["split"]) == TRAIN))

    names = [name for name in histories.columns if name in store.columns or name == "behavior"]
    # candidates: the users' own events first, then all training events
    columns = {
        name: np.append(
            histories.columns[name], np.asarray(store.column(name))[rows].astype(np.int64)
        )
        for name in names
    }

    # the training events belong to a further user `count`
    user = np.append(
        np.repeat(np.arange(count), np.diff(histories.offsets)), np.full(len(rows), count)
    )

    # sorted: all candidates of one (user, class) side by side
    key = user * size + columns["behavior"] - FIRST
    order = np.argsort(key, kind="stable")
    key = key[order]
    sought = np.arange(count)[:, None] * size + classes  # (N, T)
    low, high = np.searchsorted(key, sought, "left"), np.searchsorted(key, sought, "right")
    none = low == high  # the user has none of this class
    low = np.where(none, np.searchsorted(key, count * size + classes), low)
    high = np.where(none, np.searchsorted(key, count * size + classes, side="right"), high)

    # a random one of each stretch
    chosen = order[low + (rng.random(classes.shape) * (high - low)).astype(np.int64)]  # (N, T)
    # whole gaps are drawn apart from the events: the method says nothing of times
    drawn_gaps = np.stack([_random_gap(histories, rng) for _ in range(classes.shape[1])], axis=1)

    return {name: column[chosen] for name, column in columns.items()}, _gaps(histories)[drawn_gaps]


def _repeat_window(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    end = histories.offsets[1:]  # (N,)

    length = np.minimum(np.diff(histories.offsets), steps)
    # a history shorter than the future is repeated from its oldest event that counts
    index = (end - length)[:, None] + np.arange(steps) % length[:, None]  # (N, T)
    futures = {name: column[index] for name, column in histories.columns.items()}
    return futures, _gaps(histories)[index]


def _user_by_hour(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    begin, count = histories.offsets[:-1], np.diff(histories.offsets)
    windows = DAY // 60 // WINDOW
    window = _window(histories.columns["slot"], histories.schema)  # (E,)
    user = np.repeat(np.arange(len(begin)), count)  # (E,)
    order = np.lexsort((window, user))  # own events by window

    key = (user * windows + window)[order]  # ascending, one number for each (user, window)
    gaps = _gaps(histories)
    time = histories.columns["time"][histories.offsets[1:] - 1]  # (N,) of the last event
    chosen = np.empty((len(begin), steps), np.int64)
    waited = np.empty((len(begin), steps), np.int64)

    for step in range(steps):
        waited[:, step] = gaps[_random_gap(histories, rng)]
        # the hour follows from the time that has passed, not from the copied event's own
        time = time + waited[:, step]
        wanted = np.arange(len(begin)) * windows + _window(
            calendar(time, histories.schema)[1], histories.schema
        )
        low, high = np.searchsorted(key, wanted), np.searchsorted(key, wanted, side="right")  # (N,)
        none = low == high

        # no own event at this hour: any
        low, high = np.where(none, begin, low), np.where(none, begin + count, high)
        chosen[:, step] = order[low + (rng.random(len(begin)) * (high - low)).astype(np.int64)]

    return {name: column[chosen] for name, column in histories.columns.items()}, waited


def _markov(
    histories: Histories, store: EventStore, steps: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    windows = DAY // 60 // WINDOW
    behavior = np.asarray(store.column("behavior")).astype(np.int64)  # (E,)
    after = _followers(store, behavior)
    times = store.columns["time"].astype(np.int64)
    gap = times[after] - times[after - 1]

    # the state: behavior of the event before, and its window of the day
    key = behavior[after - 1] * windows + _window(store.columns["slot"][after - 1], store.schema)
    order = np.argsort(key, kind="stable")
    after, gap, key = after[order], gap[order], key[order]

    last = histories.offsets[1:] - 1
    state, hour = histories.columns["behavior"][last], histories.columns["slot"][last]  # (N,) each
    time = histories.columns["time"][last]
    chosen = np.empty((len(last), steps), np.int64)

    for step in range(steps):
        wanted = state * windows + _window(hour, histories.schema)
        low, high = np.searchsorted(key, wanted), np.searchsorted(key, wanted, side="right")

        # back off to the behavior at any hour, then to any event
        for least, most in (
            (state * windows, (state + 1) * windows),
            (np.zeros_like(state), key[-1:] + 1),
        ):
            none = low == high
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


def _followers(store: EventStore, behavior: np.ndarray) -> np.ndarray:
    """Training events (A,) that may be copied: with a known `behavior` (E,), behind one of the same
    user that has one too, which is the state. ValueError without any."""
    usable = (behavior >= FIRST) & (np.asarray(store.columns["split"]) == TRAIN)  # (E,)
    usable[store.offsets[:-1][np.diff(store.offsets) > 0]] = False  # has no event before it
    after = np.flatnonzero(usable)
    after = after[behavior[after - 1] >= FIRST]
    if not len(after):
        raise ValueError("the training split holds no two events in a row with known behaviors")
    return after


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
    # per user in Python: a median of ragged stretches has no vectorized form in numpy
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
