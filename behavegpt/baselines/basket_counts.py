"""Count baselines for the next basket: they know the user's whole past before it, as sets, and
nothing of the basket itself.

P(b) is the share of b among what is in a basket, smoothed as in counts.py:
P(b) = (n_b + w Q(b)) / (n + w), n the sum of n_b.

    most_frequent       training baskets that hold b
    markov              training baskets with b whose user's basket before held a, over all a of the
                        last basket; Q = most_frequent
    repeat_last         b in the last basket; Q = most_frequent
    user_most_frequent  the user's baskets that hold b; Q = most_frequent
    user_recent         the same, each decayed by exp(-age / d), age in baskets;
                        Q = user_most_frequent
    mixture             sum_j s_j P_j of all of the above, s_j >= 0, sum_j s_j = 1

`fit` chooses w, and d, by NDCG@10 on the validation split, the shorter context Q before the longer,
and the shares s that make the validation baskets likeliest.

Shapes: M baskets that are asked for, with N targets, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from behavegpt.baselines.counts import DECAYS, WEIGHTS, likeliest_shares
from behavegpt.data.baskets import Baskets
from behavegpt.data.compiled import kernel
from behavegpt.data.pack import target_counts, target_rows
from behavegpt.data.store import TRAIN, VALID, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.metrics.baskets import ndcg_of_scores
from behavegpt.ragged import owners

CUT = 10  # of the NDCG that the choices are made by
CELLS = 20_000_000  # scores held at once, and looked at by a choice
SHORTER = {
    "markov": "most_frequent",
    "repeat_last": "most_frequent",
    "user_most_frequent": "most_frequent",
    "user_recent": "user_most_frequent",
}
NAMES = ("most_frequent", *SHORTER, "mixture")


class Choice(NamedTuple):
    """Weight of the back-off, and the decay of user_recent."""

    weight: float
    decay: float


@dataclass(frozen=True)
class BasketCounts:
    """What was counted from training baskets, and how the past of a user is smoothed."""

    frequency: np.ndarray  # (K,) float64, sums to 1
    followed: csr_array  # (K, K) float32: [a, b] training baskets with b after one with a
    choices: dict[str, Choice]
    shares: np.ndarray  # (len(NAMES) - 1,) of the mixture


class _Past(NamedTuple):
    """Counts (M, K) float32 of the baskets before each that is asked for."""

    number: np.ndarray  # baskets that held a class
    recent: np.ndarray  # decayed


def fit(store: EventStore) -> BasketCounts:
    """Count the training split and choose on the validation split; defaults where that is empty."""
    baskets = _baskets(store)
    counts = target_counts(store) + 0.5
    is_follower = baskets.columns["split"] == TRAIN
    is_follower[baskets.offsets[:-1][np.diff(baskets.offsets) > 0]] = False  # users' first ones
    after = np.flatnonzero(is_follower)
    held = _held(baskets, len(counts))
    followed = (held[after - 1].T @ held[after]).tocsr()

    choices = {name: Choice(1.0, 15.0) for name in SHORTER}
    shares = np.full(len(NAMES) - 1, 1 / (len(NAMES) - 1))
    model = BasketCounts(counts / counts.sum(), followed, choices, shares)

    rows = target_rows(store, VALID)
    asked = np.unique(baskets.number_of(rows))
    most = max(1, CELLS // len(counts) // 4)
    asked = asked[:: -(-len(asked) // most) or 1]  # evenly spaced
    return _tuned(model, baskets, asked) if len(asked) else model


def scores(
    model: BasketCounts, name: str, store: EventStore, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows (N,), probabilities (N, K) float32) of a baseline in chunks; `rows`: those of
    `target_rows`."""
    baskets = _baskets(store)
    size = max(1, int(CELLS / len(model.frequency) / baskets.targets_each))
    asked, of_row = np.unique(baskets.number_of(rows), return_inverse=True)

    for start in range(0, len(asked), size):
        chunk = asked[start : start + size]
        inside = (of_row >= start) & (of_row < start + len(chunk))
        yield rows[inside], _scores(model, name, baskets, chunk)[of_row[inside] - start]


def _baskets(store: EventStore) -> Baskets:
    assert store.baskets is not None
    return store.baskets


def _members(baskets: Baskets) -> tuple[np.ndarray, np.ndarray]:
    """The classes of all baskets one after the other, and where each basket's begin (M + 1,)."""
    classes = baskets.behavior[baskets.is_target].astype(np.int64) - FIRST
    return classes, np.append(0, np.cumsum(baskets.is_target))[baskets.begin]


def _scores(model: BasketCounts, name: str, baskets: Baskets, asked: np.ndarray) -> np.ndarray:
    """Probabilities (M, K) of what is in the baskets (M,), from those before them."""
    if name == "mixture":
        parts = (_scores(model, part, baskets, asked) for part in NAMES[:-1])
        return np.sum([s * part for s, part in zip(model.shares, parts, strict=True)], axis=0)
    if name == "most_frequent":
        return np.tile(model.frequency.astype(np.float32), (len(asked), 1))

    shorter = _scores(model, SHORTER[name], baskets, asked)
    weight, decay = model.choices[name]
    return _smoothed(_counts(model, name, baskets, asked, decay), weight, shorter)


def _smoothed(counts: np.ndarray, weight: float, shorter: np.ndarray) -> np.ndarray:
    return (counts + weight * shorter) / (counts.sum(1, keepdims=True) + weight)


def _counts(
    model: BasketCounts, name: str, baskets: Baskets, asked: np.ndarray, decay: float
) -> np.ndarray:
    """n_b (M, K) float32 of a baseline."""
    classes = len(model.frequency)
    if name in ("markov", "repeat_last"):
        last = _held(baskets, classes)[asked - 1]
        found: np.ndarray = (last @ model.followed if name == "markov" else last).toarray()
        return found

    past = _Past(*np.zeros((2, len(asked), classes), np.float32))
    user = np.searchsorted(baskets.offsets, asked, side="right") - 1
    _replay(*_members(baskets), baskets.offsets[user], asked, np.float32(np.exp(-1 / decay)), past)
    return past.recent if name == "user_recent" else past.number


def _held(baskets: Baskets, classes: int) -> csr_array:
    """Which basket holds which class, (all baskets, K) of 1."""
    columns, begin = _members(baskets)
    ones = np.ones(len(columns), np.float32)
    return csr_array((ones, columns, begin), shape=(len(begin) - 1, classes))


def _tuned(model: BasketCounts, baskets: Baskets, asked: np.ndarray) -> BasketCounts:
    """The model with the choices that are best on the baskets asked (M,)."""
    member = _held(baskets, len(model.frequency))[asked].toarray() > 0  # (M, K) bool
    found = {"most_frequent": _scores(model, "most_frequent", baskets, asked)}
    for name, shorter in SHORTER.items():
        best = -1.0
        for decay in DECAYS if name == "user_recent" else (15.0,):
            counts = _counts(model, name, baskets, asked, decay)
            for weight in WEIGHTS:
                tried = _smoothed(counts, weight, found[shorter])
                figure = float(ndcg_of_scores(tried, member, CUT).mean())
                if figure > best:
                    best, found[name] = figure, tried
                    model.choices[name] = Choice(weight, decay)

    owner = owners(member.sum(1))  # (N,) basket of each target
    target = np.nonzero(member)[1]
    chance = np.stack([found[name][owner, target] for name in NAMES[:-1]], axis=1)
    return BasketCounts(model.frequency, model.followed, model.choices, likeliest_shares(chance))


@kernel
def _replay(
    classes: np.ndarray,
    begin: np.ndarray,
    first: np.ndarray,
    asked: np.ndarray,
    left: np.float32,
    past: _Past,
) -> None:
    """Fill the past of the baskets asked (M,), ascending, whose users' first ones are `first`."""
    number = np.zeros(past.number.shape[1], np.float32)
    recent = np.zeros(past.number.shape[1], np.float32)
    done = np.int64(-1)  # baskets before it are in the two

    for row in range(len(asked)):
        if done < first[row]:
            number[:] = 0
            recent[:] = 0
            done = first[row]
        while done < asked[row]:
            recent *= left
            for i in range(begin[done], begin[done + 1]):
                number[classes[i]] += 1
                recent[classes[i]] += 1
            done += 1

        past.number[row] = number
        past.recent[row] = recent
