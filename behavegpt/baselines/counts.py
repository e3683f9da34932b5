"""Count baselines for the next behavior: hard to beat on many logs, so they stand beside the model
in every table.

Global tables are counted on the training split only. At prediction time a baseline sees the user's
whole past before the row, of any split (more than the model's window), and nothing at or after it:
neither the row's time nor later events. Events with an unknown behavior are no evidence. Back-off
is by pseudo-counts: P(b) = (n_b + w Q(b)) / (n + w).

    most_frequent       f(b), the frequency of b in training
    by_hour             what followed, in training, an event at this hour of a weekday or of the
                        weekend; Q = f
    by_place            what followed, in training, an event at this place; Q = f
    markov              what followed, in training, the user's last behavior; Q = f
    global_markov2      what followed, in training, the user's last two behaviors; Q = markov
    repeat_last         the user's last behavior; Q = f
    user_most_frequent  b in the user's past; Q = f
    user_recent         the same, each count decayed by exp(-age / d), age in known events;
                        Q = user_most_frequent
    user_by_hour        b after the user's events in these 90 minutes of the day;
                        Q = user_most_frequent
    user_by_place       b after the user's events at this place; Q = user_most_frequent
    user_markov         b after the same last behavior in this user's past; Q = markov
    mixture             sum_j s_j P_j of all of the above, s_j >= 0, sum_j s_j = 1

With the time or the place of the target `given`, by_hour, user_by_hour, by_place and user_by_place
look at those of the target in place of the event before it: what happened at this hour, at this
place.

`tune` chooses w, and d, of each by NDCG@3 on the validation split, the shorter context Q before the
longer. The shares s are those that make the truth there likeliest, then moved towards single
baselines as long as NDCG@3 gains from it. A log without places leaves by_place and user_by_place
with their Q.

Shapes: N rows of a chunk, P members of a mixture, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from behavegpt.data.given import check_schema, moved
from behavegpt.data.memory_columns import Columns, store_columns
from behavegpt.data.memory_dense import RECENT, Chain, Level, Replay
from behavegpt.data.memory_keys import CONTEXTS
from behavegpt.data.memory_tables import Counted, Tables, fit_tables
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TRAIN, VALID, EventStore

CELLS = 20_000_000  # scores held at once
ROWS = 131_072  # rows held at once, when there are few classes
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # that `tune` tries
DECAYS = (2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)  # in events, that `tune` tries
# at least and at most, evenly spaced, with `TUNING_CELLS` scores in between
TUNING_ROWS = (2_000, 100_000)
TUNING_CELLS = 20_000_000
STEPS = 300  # of the fit of a mixture
MOVES = (0.1, 0.25, 0.5, 1.0)  # of the shares towards one baseline
ROUNDS = 4  # of moves


class Baseline(NamedTuple):
    """One row of the table above."""

    context: str | None  # of the memory's; None: the prior alone
    shorter: str | None  # the baseline that it is smoothed towards
    weight: float  # before tuning
    tuned: bool = True


BASELINES = {  # a shorter context stands before the longer ones
    "most_frequent": Baseline(None, None, 0.0, tuned=False),
    "by_hour": Baseline("global_at_weekend_hour", "most_frequent", 1.0),
    "by_place": Baseline("global_at_place", "most_frequent", 1.0),
    "markov": Baseline("global_after_behavior", "most_frequent", 1.0),
    "global_markov2": Baseline("global_after_two", "markov", 3.0),
    # with more it would be another one
    "repeat_last": Baseline("user_last", "most_frequent", 0.5, tuned=False),
    "user_most_frequent": Baseline("user", "most_frequent", 0.1),
    "user_recent": Baseline(RECENT, "user_most_frequent", 0.3),
    "user_by_hour": Baseline("user_at_hour", "user_most_frequent", 3.0),
    "user_by_place": Baseline("user_at_place", "user_most_frequent", 3.0),
    "user_markov": Baseline("user_after_behavior", "markov", 3.0),
}
MIXTURE = "mixture"
NAMES = (*BASELINES, MIXTURE)
DECAY = 15.0  # before tuning


@dataclass(frozen=True)
class CountModel:
    """One baseline: chains of contexts, what the training split says of them, and the share of each
    chain."""

    name: str
    tables: Tables
    chains: tuple[Chain, ...]
    shares: tuple[float, ...] = (1.0,)
    given: tuple[str, ...] = ()  # of the target

    def settings(self) -> dict[str, float]:
        """What `tune` chose: the weight of the back-off and the decay, or a mixture's shares of 0.1
        % and more."""
        if self.name == MIXTURE:
            shares = zip(BASELINES, self.shares, strict=True)
            return {name: round(share, 3) for name, share in shares if share >= 0.001}

        last = self.chains[0][-1] if self.chains[0] else Level("", 0.0)
        # a decay of infinity is none
        return {"weight": last.weight} | ({"decay": last.decay} if np.isfinite(last.decay) else {})


def fit(store: EventStore, given: tuple[str, ...] = ()) -> dict[str, CountModel]:
    """Count the training split and return the baselines by name, with default weights and equal
    shares; `given`: what they know of the target.

    Raises ConfigError for the place in a log without places.
    """
    check_schema(given, store.schema)

    columns = _columns(store, given)

    classes, users = store.behaviors.classes, len(store.offsets) - 1
    used = np.asarray(store.columns["split"]) == TRAIN

    # one fold: the model is asked about later splits only, so no row is counted with itself
    folds = np.zeros(users, np.int64)
    counted = Counted(used, classes, folds)
    tables = fit_tables(columns, store.offsets, counted, contexts=CONTEXTS, followers=classes)

    models: dict[str, CountModel] = {}
    for name, baseline in BASELINES.items():
        made = _with_level(models, tables, name, baseline.weight, DECAY)
        models[name] = replace(made, given=given)

    # equal shares until `tune` has looked at the validation split
    models[MIXTURE] = _mixture(models, np.full(len(BASELINES), 1 / len(BASELINES)))
    return models


def tune(models: dict[str, CountModel], store: EventStore) -> dict[str, CountModel]:
    """The same baselines with the weights and decays that are best in NDCG@3 on the validation
    split, and its mixture.

    At most 100,000 evenly spaced rows are looked at, fewer with many classes; without any the
    models stay as they are.
    """
    rows = target_rows(store, VALID)
    # at most so many rows that N x K scores fit in memory
    most = int(np.clip(TUNING_CELLS // max(store.behaviors.classes, 1), *TUNING_ROWS))

    # evenly spaced over the users, at least every row
    rows = rows[:: -(-len(rows) // most) or 1]
    if not len(rows):
        return models

    given = models[MIXTURE].given
    columns = _columns(store, given)

    tuned: dict[str, CountModel] = {}
    for name, baseline in BASELINES.items():
        # each baseline builds on the tuned shorter one, so the order of BASELINES matters
        weights = WEIGHTS if baseline.tuned else (baseline.weight,)
        decays = DECAYS if baseline.context == RECENT else (DECAY,)
        tables = models[name].tables
        candidates = [
            _with_level(tuned, tables, name, weight, decay)
            for decay in decays
            for weight in weights
        ]
        ndcg3 = _ndcg3(_replay(candidates, store, columns).judge(rows)[0])  # (candidates,)
        tuned[name] = replace(candidates[int(ndcg3.argmax())], given=given)

    replay = _replay(tuned.values(), store, columns)
    return tuned | {MIXTURE: _mixture(tuned, _best_shares(replay, rows))}


def scores(
    model: CountModel, store: EventStore, rows: np.ndarray, cells: int = CELLS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows (N,), probabilities (N, K) float32) in chunks of at most `cells` scores, each row
    once, in order.

    `rows` are flat indices of events, ascending, as `target_rows` gives them; the row itself is
    what is predicted. Raises ValueError when they are not ascending.
    """
    if len(rows) > 1 and not (np.diff(rows) > 0).all():
        raise ValueError("rows must be ascending flat indices, each once")

    size = max(1, min(ROWS, cells // max(store.behaviors.classes, 1)))
    columns = _columns(store, model.given)
    replay = Replay(columns, store.offsets, model.tables, model.chains)

    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, replay.scores(part, np.array(model.shares))


def _columns(store: EventStore, given: tuple[str, ...]) -> Columns:
    """The columns that are counted, with what is given of the next event moved to each."""
    columns = store_columns(store)
    if not given:
        return columns
    # the target's time or place is read where the event's own would be
    return Columns(**moved(columns._asdict(), store.offsets, given))


def likeliest_shares(probability: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Shares (P,) >= 0 of sum 1 under which the mixed probability of the truth (N, P) has the
    greatest log-likelihood.

    Expectation maximization from equal shares: s_j <- mean_n s_j P_nj / sum_i s_i P_ni.
    """
    probability = probability.astype(np.float64)
    shares = np.full(probability.shape[1], 1 / probability.shape[1])  # (P,)
    for _ in range(steps):
        # (N, P) / (N, 1) -> (P,)
        shares *= (probability / (probability @ shares)[:, None]).mean(axis=0)
    return shares / shares.sum()


def _best_shares(replay: Replay, rows: np.ndarray) -> np.ndarray:
    """The likeliest shares (P,) on the rows, moved towards single members as long as NDCG@3 gains
    from it."""
    best = likeliest_shares(replay.judge(rows)[1])  # (P,)
    members = np.eye(len(best))  # (P, P), one member alone

    for _ in range(ROUNDS):
        # a straight line towards each single member, in steps of several lengths
        moved = [best + move * (member - best) for move in MOVES for member in members]
        ndcg3 = _ndcg3(replay.judge(rows, np.stack([best, *moved]))[0])
        # the first is `best` itself: nothing gained
        if ndcg3.argmax() == 0:
            break
        best = moved[int(ndcg3.argmax()) - 1]

    return best


def _with_level(
    models: dict[str, CountModel], tables: Tables, name: str, weight: float, decay: float
) -> CountModel:
    """A baseline on the chain of the shorter one among `models`."""
    baseline = BASELINES[name]
    shorter = models[baseline.shorter].chains[0] if baseline.shorter else ()
    if baseline.context is None:
        return CountModel(name, tables, (shorter,))
    # other contexts count all events alike
    level = Level(baseline.context, weight, decay if baseline.context == RECENT else np.inf)
    return CountModel(name, tables, ((*shorter, level),))


def _replay(models: Iterable[CountModel], store: EventStore, columns: Columns) -> Replay:
    """To ask single baselines together."""
    models = list(models)
    return Replay(columns, store.offsets, models[0].tables, [model.chains[0] for model in models])


def _mixture(models: dict[str, CountModel], shares: np.ndarray) -> CountModel:
    members = [models[name] for name in BASELINES]
    chains = tuple(m.chains[0] for m in members)
    return CountModel(MIXTURE, members[0].tables, chains, tuple(shares.tolist()), members[0].given)


def _ndcg3(rank: np.ndarray) -> np.ndarray:
    """Mean NDCG@3 (P,) of ranks (N, P) from 0."""
    # DCG of a single relevant item at this rank
    return np.where(rank < 3, 1 / np.log2(2.0 + rank), 0.0).mean(axis=0)
