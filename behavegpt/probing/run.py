"""`behavegpt.probe`: what the vectors of users know, beside counts and aggregates of the same past.

>>> import behavegpt                                                            # doctest: +SKIP
>>> result = behavegpt.probe("demo", "shop.parquet", "labels.csv", "2011-10-10")  # doctest: +SKIP
>>> result.to_pandas()                                                          # doctest: +SKIP
>>> result.differences.to_pandas()                                              # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.config import check_settings
from behavegpt.errors import DataError
from behavegpt.ingest.asked import seconds_of
from behavegpt.loading import load
from behavegpt.predictor import Predictor
from behavegpt.probing.features import aggregates, label_counts
from behavegpt.probing.labels import Labels, read_labels
from behavegpt.probing.past import (
    WEEK,
    Log,
    check_date,
    past_of,
    read_log,
    shown,
    trained_until,
    users_before,
)
from behavegpt.probing.result import ProbeResult, Score, Scores
from behavegpt.probing.scoring import Fold, make_folds, score_folds
from behavegpt.probing.settings import Kind, ProbeSettings
from behavegpt.zero_shot import UniversalPredictor

# name of a set -> the blocks of features it joins
SETS = {
    "vectors": ("vectors",),
    "counts": ("counts",),
    "aggregates": ("aggregates",),
    "counts + aggregates": ("counts", "aggregates"),
    "all": ("vectors", "counts", "aggregates"),
}
DIFFERENCES = (("vectors", "counts + aggregates"), ("all", "counts + aggregates"))
LEAST_OF_A_CLASS = 10  # users, or two a fold
Step = Callable[[str], None]  # what is fitted now


class Question(NamedTuple):
    """Users, what is to be said of them, and the folds that all sets of features share."""

    users: pa.StringArray  # (N,), sorted
    target: np.ndarray  # (N,) int64 classes or float64 values
    labels: Labels
    folds: list[Fold]


def probe(
    model: str | Path | Predictor | UniversalPredictor,
    log: Any,
    labels: Any,
    at: Any,
    *,
    label: str | None = None,
    label_user: str | None = None,
    columns: Mapping[str, Any] | None = None,
    step: Step = lambda name: None,
    **settings: Any,
) -> ProbeResult:
    """Predict labels of users from their vectors, from counts, from aggregates, and from all.

    Events of `log` (files, a table, a mapping of columns) at or after `at`, a time or a date in the
    log's zone, are ignored. `labels`: a file or a table with the column `label` and the user column
    `label_user`; either may be omitted if it is unambiguous. `columns`: columns that differ from
    the model's, such as {"user": "uid"}. `settings`: those of ProbeSettings, such as folds=5,
    pool=("last", "behaviors"), stale_weeks=(0, 1, 2, 4). Raises ConfigError and DataError.
    """
    chosen = check_settings(ProbeSettings, settings, "probe")
    predictor = model if isinstance(model, (Predictor, UniversalPredictor)) else load(model)
    read = read_log(predictor, log, columns or {})
    moment = seconds_of(at, read.schema)
    check_date(read, moment, max(chosen.stale_weeks, default=0))

    rule = read.schema.label_rules.get("user")
    known = read_labels(labels, label, label_user, read.schema.user, rule, chosen.task)
    asked, aged = ask(known, read, moment, chosen), None
    if chosen.stale_weeks:  # its users too are looked at before anything is fitted
        aged = ask(known, read, moment - max(chosen.stale_weeks) * WEEK, chosen)

    work = Work(predictor, read, chosen, step)
    scores = work.scores(asked, moment, 0, chosen.probes)

    stale = work.staleness(aged, moment) if aged else []
    facts = {
        "model": name_of(model),
        "at": shown(moment),
        **_facts(known, read, asked, moment),
        **_training(predictor, moment),
        "stale_users": len(aged.users) if aged else None,
        "settings": chosen.model_dump(mode="json"),
    }
    rows = (scores, _differences(scores), stale)
    return ProbeResult(facts, *(Scores(tuple(part)) for part in rows))


def name_of(model: str | Path | Predictor | UniversalPredictor) -> str:
    """How a result names the model that it was asked with."""
    # a path as it was given: the result may be read on another machine
    return str(model) if isinstance(model, (str, Path)) else repr(model)


def _differences(scores: list[Score]) -> list[Score]:
    """The figures of one set less those of another, row by row of the same probe and folds."""
    differences = []
    for first, second in DIFFERENCES:
        others = {(row.probe, row.metric): row for row in scores if row.features == second}
        differences += [
            row.minus(others[row.probe, row.metric]) for row in scores if row.features == first
        ]
    return differences


class Work(NamedTuple):
    """What all figures share."""

    predictor: Predictor | UniversalPredictor
    log: Log
    settings: ProbeSettings
    step: Step

    def scores(
        self, asked: Question, moment: int, weeks: int, probes: tuple[Kind, ...]
    ) -> list[Score]:
        """A row for each set, probe and metric, of features as they were at `moment`."""
        # once for all sets: vectors cost most of the time
        blocks = self._blocks(asked, moment)
        folds, rows = self.settings.folds, []
        for name, parts in SETS.items():
            # (N, F) of the set
            features = np.concatenate([blocks[part] for part in parts], axis=1)
            for probe in probes:
                self.step(f"{name}, {probe}")
                figures = score_folds(features, asked.target, asked.labels.task, probe, asked.folds)
                rows += [
                    Score(name, None, probe, metric, weeks, features.shape[1], values, folds)
                    for metric, values in figures.items()
                ]
        return rows

    def staleness(self, asked: Question, moment: int) -> list[Score]:
        """The scores by the first probe at each age, of the same users: those with events before
        the oldest moment."""
        rows = []
        for age in sorted(self.settings.stale_weeks):
            rows += self.scores(asked, moment - age * WEEK, age, self.settings.probes[:1])
        return rows

    def _blocks(self, asked: Question, moment: int) -> dict[str, np.ndarray]:
        """Features (N, F) float32 of the events before `moment`, by block."""
        past = past_of(self.predictor, self.log, moment, asked.users)
        return {
            "vectors": past.vectors(self.settings.pool),
            "counts": label_counts(past, self.log.schema, self.settings.top_labels)[0],
            "aggregates": aggregates(past, self.log.schema),
        }


def ask(labels: Labels, log: Log, moment: int, settings: ProbeSettings) -> Question:
    """The labeled users with events before `moment`, and their folds. Raises DataError where they,
    or those of a class, are too few."""
    held = pc.is_in(labels.users, users_before(log, moment)).to_numpy(zero_copy_only=False)
    users, target = labels.users.filter(pa.array(held)), labels.values[held]
    if len(users) < settings.min_users:
        raise DataError(
            f"{len(users):,} of the {len(labels.users):,} labeled users have an event before "
            f"{shown(moment)}; at least {settings.min_users} are needed (min_users). Do the "
            f"labels write users as the log does? There: {_some(labels.users)}; in the log: "
            f"{_some(users_before(log, moment))}."
        )

    # a fold without a class could not be scored
    least = max(LEAST_OF_A_CLASS, 2 * settings.folds)
    for number, name in enumerate(labels.classes):
        members = int((target == number).sum())
        if members < least:
            raise DataError(
                f"column {labels.column!r}: the class {name[:60]!r} has {members} users with an "
                f"event before {shown(moment)}; at least {least} are needed (10, or two a fold). "
                "Join it with another one, or leave its users out."
            )
    # scikit-learn would fit a constant and call it perfect
    if not labels.classes and target.min() == target.max():
        raise DataError(
            f"column {labels.column!r}: all users with an event before {shown(moment)} have the "
            f"value {target[0]:g}; there is nothing to predict."
        )
    # drawn once: every set of features is judged by the same users
    folds = make_folds(target, labels.task, settings.folds, settings.seeds)
    return Question(users, target, labels, folds)


def _some(users: pa.Array) -> str:
    return ", ".join(repr(user[:40]) for user in users[:3].to_pylist()) or "none"


def _facts(labels: Labels, log: Log, asked: Question, moment: int) -> dict[str, Any]:
    """Whose labels were predicted, and how they are spread."""
    users = len(asked.users)
    facts: dict[str, Any] = {
        "label": labels.column,
        "task": labels.task,
        "users": users,
        "labeled_without_events": len(labels.users) - users,
        "unlabeled_users": len(users_before(log, moment)) - users,
        "rows_without_user_or_label": labels.skipped,
    }
    if labels.classes:
        # a figure of a class of 1 % and one of 50 % say different things
        shares = np.bincount(asked.target, minlength=len(labels.classes)) / users
        return facts | {"classes": dict(zip(labels.classes, shares.tolist(), strict=True))}
    quantiles = np.quantile(asked.target, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    return facts | {"values": dict(zip(names, quantiles.tolist(), strict=True))}


def _training(predictor: Predictor | UniversalPredictor, moment: int) -> dict[str, Any]:
    """What is known of the events that the model was trained on: of whether its weights know the
    future of these users."""
    # a model that was trained on what came later may know the labels by other means
    until = trained_until(predictor)
    return {
        "trained_until": None if until is None else shown(until),
        "trained_on_later_events": None if until is None else until > moment,
    }
