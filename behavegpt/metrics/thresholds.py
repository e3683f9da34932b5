"""Per-class thresholds: the predicted class is the argmax over c of log p_c - t_c, with t (K,)
learned on scored validation rows.

Macro recall plus `weight` times weighted recall is largest, for probabilities that are right, where
p_c is multiplied by weight + 1 / (K prior_c): plain argmax for a large weight, p / prior for 0.
That is where the search starts; it then moves the threshold of one group of classes after the other
along a grid, to whatever is best on the rows. Classes with few targets share a move with their
neighbors in frequency. Weight, and how much of the moves is kept, are chosen by cross-fitting over
users: what is learned on one half of them is scored on the other, and moves that are not better
there are left out.

Shape letters: N rows, C candidates of a row, K classes, G groups, J grid points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from behavegpt.metrics.ascent import Ascent, Rows
from behavegpt.metrics.prediction import PredictionMetrics

WEIGHTS = (*(2.0 ** (-power / 4) for power in range(-32, 17)), 0.0)  # 256 to 1/16, and 0
NEAR = (-2, 0, 2, 4)  # places in WEIGHTS, from the best one on, at which moves are tried
KEPT = (0.0, 0.5, 1.0)  # shares of the moves
CANDIDATES = 64  # of a row: half by probability, half by probability / prior


class Learned(NamedTuple):
    """Thresholds and what is known of them."""

    thresholds: np.ndarray  # (K,) float32
    weight: float | None  # of weighted recall in the search; None: plain argmax was best
    kept: float  # share of the moves
    groups: int
    figures: dict[str, dict[str, Any]]  # plain, cross-fitted and (optimistic) fitted on the rows


@dataclass(frozen=True)
class Search:
    """What is wanted of thresholds."""

    objective: Literal["rec_m", "f1_m"]
    keep: float  # least share of plain argmax' weighted recall
    min_targets: int  # rows of a class from which on its threshold moves alone


def candidates(logits: torch.Tensor, log_prior: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Classes (N, C) and log-probabilities (N, C) of the classes of logits (N, K) that may win;
    `log_prior` (K,).

    >>> classes, log_p = candidates(torch.tensor([[0.0, 0.0]]), torch.zeros(2))
    >>> classes.tolist(), np.exp(log_p).tolist()
    ([[0, 1]], [[0.5, 0.5]])
    """
    log_p = logits.float().log_softmax(-1)
    if log_p.shape[1] <= CANDIDATES:
        return np.tile(np.arange(log_p.shape[1]), (len(log_p), 1)), log_p.cpu().numpy()

    # half by probability, half by how far above its frequency a class is
    half = CANDIDATES // 2
    first = log_p.topk(half).indices
    lifted = (log_p - log_prior).scatter(1, first, -torch.inf)
    chosen = torch.cat([first, lifted.topk(half).indices], 1).sort(1).values
    return chosen.cpu().numpy(), log_p.gather(1, chosen).cpu().numpy()


def learn(rows: Rows, counts: np.ndarray, search: Search) -> Learned:
    """Thresholds for classes with training counts (K,) from at least two users' rows; the same rows
    give the same bytes.

    The cross-fitted weighted recall stays at `search.keep` of plain argmax' or above.
    """
    classes = len(counts)
    support = np.bincount(rows.target, minlength=classes)
    group = groups_of(support, counts, search.min_targets)
    prior = (counts + 1.0) / (counts + 1.0).sum()
    plain = figures_of(rows, np.zeros(classes), classes)

    def value(trial: Trial) -> float:
        """The objective; below all others where weighted recall is too low."""
        allowed = trial.figures["rec_w"] >= search.keep * plain["rec_w"]
        return float(trial.figures[search.objective]) if allowed else -1.0

    # plain argmax, the best thresholds of right probabilities for each weight, and moves from some
    trials = [Trial(None, 0.0, plain)]
    trials += [
        Trial(weight, 0.0, figures_of(rows, start_of(prior, weight), classes)) for weight in WEIGHTS
    ]
    place = max(range(len(WEIGHTS)), key=lambda number: value(trials[1 + number]))
    near = [WEIGHTS[min(max(place + step, 0), len(WEIGHTS) - 1)] for step in NEAR]
    for weight in dict.fromkeys(near):
        fitted = _cross_fitted(rows, start_of(prior, weight), group, weight, search.objective)
        # moves count where they are better in what they were learned by
        trials.append(max(fitted, key=lambda trial: trial.total(search.objective)))

    best = max(trials, key=value)  # the first of equals
    figures = {"plain": plain, "cross_fitted": best.figures}
    if best.weight is None:
        return Learned(np.zeros(classes, np.float32), None, 0.0, int(group.max()) + 1, figures)

    # the weight and the share were chosen across users; the moves are learned again on all of them
    thresholds = start_of(prior, best.weight)
    if best.kept:
        moves = Ascent(rows, thresholds, group).run(best.weight, search.objective)
        thresholds += best.kept * moves[group]
    thresholds = np.round(thresholds, 6).astype(np.float32)  # as many digits as a file keeps
    figures["fitted"] = figures_of(rows, thresholds, classes)
    return Learned(thresholds, best.weight, best.kept, int(group.max()) + 1, figures)


class Trial(NamedTuple):
    """Thresholds that may be taken, by how they come about, and their figures."""

    weight: float | None
    kept: float
    figures: dict[str, Any]

    def total(self, objective: str) -> float:
        """What the search makes as large as possible."""
        assert self.weight is not None
        return float(self.figures[objective] + self.weight * self.figures["rec_w"])


def start_of(prior: np.ndarray, weight: float) -> np.ndarray:
    """Thresholds (K,) that are best where probabilities are right; 0 for a class of frequency 1/K.

    >>> start_of(np.array([0.75, 0.25]), 0.0).round(3).tolist()  # p / prior
    [0.405, -0.693]
    """
    return np.asarray(-np.log((weight + 1 / (len(prior) * prior)) / (weight + 1)))


def groups_of(support: np.ndarray, counts: np.ndarray, least: int) -> np.ndarray:
    """Group (K,) of each class: its own from `least` rows (K,) on, else one with its neighbors in
    training counts (K,) that has `least` rows together, where there are so many.

    >>> groups_of(np.array([9, 2, 1, 0, 5]), np.array([90, 20, 10, 1, 50]), 3).tolist()
    [0, 2, 2, 2, 1]
    """
    order = np.argsort(-counts, kind="stable")
    alone = order[support[order] >= least]
    group = np.full(len(counts), -1)
    group[alone] = np.arange(len(alone))

    # the others in order of frequency, group by group until it has enough rows
    rest = order[support[order] < least]
    number, rows = len(alone), 0
    for label in rest:
        group[label] = number
        rows += support[label]
        if rows >= least:
            number, rows = number + 1, 0

    if number > len(alone):  # the last group may have too few rows: it joins the one before
        group[rest] = np.minimum(group[rest], number - 1)
    return group


def figures_of(rows: Rows, thresholds: np.ndarray, classes: int) -> dict[str, Any]:
    """Recall and F1 of the rows with thresholds (K,)."""
    scores = rows.log_p - thresholds[rows.classes]
    best = scores.argmax(1)[:, None]
    return _figures(rows.target, np.take_along_axis(rows.classes, best, 1)[:, 0], classes)


def _figures(target: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """Recall and F1 of rows with a target (N,) and a predicted class (N,)."""
    metrics = PredictionMetrics(classes)
    for counted, ids in (
        (metrics.support, target),
        (metrics.predicted, predicted),
        (metrics.true_positive, target[target == predicted]),
    ):
        counted += torch.from_numpy(np.bincount(ids, minlength=classes))
    figures = metrics.compute()
    return {name: figures[name] for name in ("rec_w", "rec_m", "f1_w", "f1_m")}


def _cross_fitted(
    rows: Rows, start: np.ndarray, group: np.ndarray, weight: float, objective: str
) -> list[Trial]:
    """A trial for each of KEPT, of moves that were learned on the other half of the users."""
    second = np.unique(rows.user, return_inverse=True)[1] % 2 == 1  # (N,) every other user
    predicted = np.zeros((len(KEPT), len(rows.target)), np.int64)
    for half in (second, ~second):
        moves = Ascent(rows.part(~half), start, group).run(weight, objective)
        own = rows.part(half)
        for number, kept in enumerate(KEPT):
            scores = own.log_p - (start + kept * moves[group])[own.classes]
            best = scores.argmax(1)[:, None]
            predicted[number, half] = np.take_along_axis(own.classes, best, 1)[:, 0]
    return [
        Trial(weight, kept, _figures(rows.target, ids, len(start)))
        for kept, ids in zip(KEPT, predicted, strict=True)
    ]
