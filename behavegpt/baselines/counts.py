"""Six count baselines for the next behavior: hard to beat on many logs, so they stand beside the model in every table.

Tables are counted on the training split only. At prediction time a baseline sees the user's whole past before the
row, of any split (more than the model's window), and nothing at or after it: neither the row's time nor later events.
Events with an unknown behavior are no evidence. Back-off is by pseudo-counts: P(b) = (n_b + w Q(b)) / (n + w).

    most_frequent       f(b), the frequency of b in training
    by_hour             b given the weekend flag and two-hour window of the user's last event, backed off to f
    user_most_frequent  b in the user's past, backed off to f
    repeat_last         the user's last behavior; the rest in the order of f
    markov              b given the user's last behavior, backed off to f
    user_markov         b after the same last behavior in this user's past, backed off to markov

Shapes: N rows of a chunk, K classes, M past events of the chunk's users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from behavegpt.data.pack import target_rows
from behavegpt.data.store import TRAIN, VALID, EventStore
from behavegpt.data.vocabulary import FIRST

CELLS = 20_000_000  # scores held at once
ROWS = 131_072  # rows held at once, when there are few classes
NONE = -1  # no known behavior yet
HOURS = 24  # (weekday or weekend) x 12 windows of two hours; context HOURS: no earlier event
GRID = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0)  # back-off weights that `tune` tries
TUNED = ("user_most_frequent", "user_markov")
TUNING_ROWS = 100_000


@dataclass(frozen=True)
class Tables:
    """What the training split says; shared by the six models."""

    frequency: np.ndarray  # (K,) sums to 1, all positive
    hours: np.ndarray  # (HOURS + 1, K) counts of what followed; the last row is empty
    pointer: np.ndarray  # (K + 1,) transitions from class a: entries pointer[a]:pointer[a + 1]
    successor: np.ndarray  # class that followed
    transitions: np.ndarray  # how often


@dataclass(frozen=True)
class CountModel:
    """One baseline: a name of `SCORERS`, its back-off weight in pseudo-events, and the shared tables."""

    name: str
    weight: float
    tables: Tables


@dataclass(frozen=True)
class _Chunk:
    """Rows and the past of their users. Users are numbered within the chunk; classes are behavior id - FIRST."""

    user: np.ndarray  # (N,)
    place: np.ndarray  # (N,) index of the row in its user's history
    last: np.ndarray  # (N,) class of the last known behavior before the row, or NONE
    hour: np.ndarray  # (N,) time context of the event before the row
    event_user: np.ndarray  # (M,)
    event_place: np.ndarray  # (M,)
    event_class: np.ndarray  # (M,)
    event_last: np.ndarray  # (M,) class of the last known behavior before the event, or NONE


def fit(store: EventStore) -> dict[str, CountModel]:
    """Count the training split and return the six baselines by name, each with its default back-off weight."""
    classes = store.behaviors.classes
    behavior = store.column("behavior")
    counts = np.zeros(classes, np.int64)
    hours = np.zeros((HOURS + 1) * classes, np.int64)
    keys, found = np.empty(0, np.int64), np.empty(0, np.int64)
    rows = target_rows(store, TRAIN)
    for part in _parts(rows, ROWS):
        chunk = _read(store, part)
        target = behavior[part].astype(np.int64) - FIRST
        hours += np.bincount(chunk.hour * classes + target, minlength=len(hours))
        known = chunk.last != NONE
        pairs = chunk.last[known] * classes + target[known]
        keys, place = np.unique(np.concatenate([keys, pairs]), return_inverse=True)
        found = np.bincount(place, np.concatenate([found, np.ones(len(pairs))]), len(keys)).astype(np.int64)
    for start in range(0, len(behavior), CELLS):
        part = np.asarray(behavior[start : start + CELLS])[store.columns["split"][start : start + CELLS] == TRAIN]
        counts += np.bincount(part, minlength=classes + FIRST)[FIRST:]
    # Less than one event spread over the classes: none is impossible, and equal counts fall in the order of the ids.
    smooth = counts + (classes - np.arange(classes)) / (2.0 * classes)
    tables = Tables(
        frequency=smooth / smooth.sum(),
        hours=hours.reshape(HOURS + 1, classes),
        pointer=np.searchsorted(keys, np.arange(classes + 1) * classes),
        successor=keys % max(classes, 1),
        transitions=found,
    )
    return {name: CountModel(name, weight, tables) for name, (weight, _) in SCORERS.items()}


def tune(models: dict[str, CountModel], store: EventStore) -> dict[str, CountModel]:
    """The same models, those of `TUNED` with the weight of `GRID` that is best in NDCG@3 on the validation split.

    At most `TUNING_ROWS` evenly spaced rows are looked at; without validation rows the weights stay.
    """
    rows = target_rows(store, VALID)
    rows = rows[:: -(-len(rows) // TUNING_ROWS) or 1]
    if not len(rows):
        return models
    best = {}
    for name in TUNED:
        candidates = [replace(models[name], weight=weight) for weight in GRID]
        best[name] = max(candidates, key=lambda model: _ndcg3(model, store, rows))
    return models | best


def scores(
    model: CountModel, store: EventStore, rows: np.ndarray, cells: int = CELLS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows (N,), probabilities (N, K) float32) in chunks of at most `cells` scores, each row once, in order.

    `rows` are flat indices of events, ascending, as `target_rows` gives them; the row itself is what is predicted.
    Raises ValueError when they are not ascending.
    """
    if len(rows) > 1 and not (np.diff(rows) > 0).all():
        raise ValueError("rows must be ascending flat indices, each once")
    scorer = SCORERS[model.name][1]
    for part in _parts(rows, max(1, min(ROWS, cells // max(store.behaviors.classes, 1)))):
        yield part, scorer(model.tables, model.weight, _read(store, part))


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _read(store: EventStore, rows: np.ndarray) -> _Chunk:
    """The past of the users of `rows` (N,) ascending: for each, all events before the last of these rows."""
    owner, user = np.unique(np.searchsorted(store.offsets, rows, side="right") - 1, return_inverse=True)
    first = store.offsets[owner]
    length = rows[np.append(user[1:] != user[:-1], True)] - first + 1  # up to the user's last row, included
    begin = np.cumsum(length) - length  # where each user's history stands below
    event_user = np.repeat(np.arange(len(owner)), length)
    event_place = np.arange(int(length.sum())) - begin[event_user]
    behavior = store.column("behavior")[first[event_user] + event_place].astype(np.int64) - FIRST
    known = behavior >= 0
    event_last = _last_known(behavior, known, begin[event_user])
    place = rows - first[user]
    before = np.maximum(rows - 1, 0)
    weekend = store.columns["weekday"][before] >= 5
    window = store.columns["slot"][before].astype(np.int64) * store.schema.slot_minutes // 120
    return _Chunk(
        user=user,
        place=place,
        last=event_last[begin[user] + place],
        hour=np.where(place > 0, weekend * 12 + window, HOURS),
        event_user=event_user[known],
        event_place=event_place[known],
        event_class=behavior[known],
        event_last=event_last[known],
    )


def _last_known(behavior: np.ndarray, known: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Class of the nearest known event strictly before each event of the same history (M,), or NONE."""
    latest = np.maximum.accumulate(np.where(known, np.arange(len(behavior)), -1))
    latest = np.append(-1, latest[:-1])
    return np.where(latest >= begin, behavior[latest], NONE)


def _past(chunk: _Chunk, classes: int, after_last: bool) -> np.ndarray:
    """How often each class occurred in the user's past of each row (N, K); `after_last`: right after the same behavior.

    Each event is added at the first row of its group (user, or user and last behavior) that comes after it, and a
    running sum down the sorted rows does the rest; the sum is taken back where the next group begins.
    """
    count, span = len(chunk.user), int(chunk.place.max()) + 1
    group, event_group = chunk.user, chunk.event_user
    if after_last:
        group, event_group = group * (classes + 1) + chunk.last + 1, event_group * (classes + 1) + chunk.event_last + 1
    key = group * span + chunk.place
    order = np.argsort(key, kind="stable")
    group = group[order]
    at = np.searchsorted(key[order], event_group * span + chunk.event_place, side="right")
    ours = at < count
    ours[ours] = group[at[ours]] == event_group[ours]
    if after_last:
        ours &= chunk.event_last != NONE
    at, seen = at[ours], chunk.event_class[ours]
    total = np.zeros((count, classes), np.float32)  # whole numbers: exact up to 2**24 events
    np.add.at(total.reshape(-1), at * classes + seen, np.float32(1))
    end = np.searchsorted(group, group, side="right")[at]
    inside = end < count
    np.subtract.at(total.reshape(-1), end[inside] * classes + seen[inside], np.float32(1))
    np.cumsum(total, axis=0, out=total)
    return total[np.argsort(order)] if after_last else total


def _backed_off(counts: np.ndarray, weight: float, prior: np.ndarray) -> np.ndarray:
    """(counts + weight * prior) / (total + weight) for counts (N, K) and a prior (K,) or (N, K); float32."""
    total = counts.sum(axis=1, keepdims=True, dtype=np.float64) + weight
    mixed = np.multiply(prior, weight, dtype=np.float32) + counts
    mixed *= (1 / total).astype(np.float32)
    return mixed.astype(np.float32, copy=False)


def _most_frequent(tables: Tables, weight: float, chunk: _Chunk) -> np.ndarray:
    return np.tile(tables.frequency.astype(np.float32), (len(chunk.user), 1))


def _by_hour(tables: Tables, weight: float, chunk: _Chunk) -> np.ndarray:
    return _backed_off(tables.hours, weight, tables.frequency)[chunk.hour]


def _user_most_frequent(tables: Tables, weight: float, chunk: _Chunk) -> np.ndarray:
    return _backed_off(_past(chunk, len(tables.frequency), after_last=False), weight, tables.frequency)


def _repeat_last(tables: Tables, weight: float, chunk: _Chunk) -> np.ndarray:
    result = _most_frequent(tables, weight, chunk)
    known = np.flatnonzero(chunk.last != NONE)
    result[known] *= np.float32(weight / (1 + weight))
    result[known, chunk.last[known]] += np.float32(1 / (1 + weight))
    return result


def _markov(tables: Tables, weight: float, chunk: _Chunk) -> np.ndarray:
    last, inverse = np.unique(chunk.last, return_inverse=True)
    low = np.where(last == NONE, 0, tables.pointer[last])
    high = np.where(last == NONE, 0, tables.pointer[last + 1])
    line = np.repeat(np.arange(len(last)), high - low)
    entry = np.arange(len(line)) + (low - np.cumsum(high - low) + high - low)[line]
    counts = np.zeros((len(last), len(tables.frequency)), np.float32)
    counts[line, tables.successor[entry]] = tables.transitions[entry]
    return _backed_off(counts, weight, tables.frequency)[inverse]


def _user_markov(tables: Tables, weight: float, chunk: _Chunk) -> np.ndarray:
    prior = _markov(tables, SCORERS["markov"][0], chunk)
    return _backed_off(_past(chunk, len(tables.frequency), after_last=True), weight, prior)


def _ndcg3(model: CountModel, store: EventStore, rows: np.ndarray) -> float:
    """Mean NDCG@3 over the rows: 1 / log2(1 + rank) for ranks up to 3, ties by class number."""
    total = 0.0
    for part, score in scores(model, store, rows):
        target = store.column("behavior")[part].astype(np.int64) - FIRST
        hit = score[np.arange(len(part)), target][:, None]
        first = np.arange(score.shape[1]) < target[:, None]
        rank = 1 + (score > hit).sum(axis=1) + ((score == hit) & first).sum(axis=1)
        total += float((1 / np.log2(1.0 + rank))[rank <= 3].sum())
    return total / len(rows)


# Name -> back-off weight before tuning (in events), function (tables, weight, chunk) -> probabilities (N, K).
SCORERS: dict[str, tuple[float, Callable[[Tables, float, _Chunk], np.ndarray]]] = {
    "most_frequent": (0.0, _most_frequent),
    "by_hour": (1.0, _by_hour),
    "user_most_frequent": (0.1, _user_most_frequent),
    "repeat_last": (0.5, _repeat_last),
    "markov": (1.0, _markov),
    "user_markov": (3.0, _user_markov),
}
