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

from behavegpt.metrics.prediction import PredictionMetrics

GRID = np.round(np.arange(-30, 31) * 0.1, 1)  # moves of a group's threshold, in nats
BY_SIZE = np.argsort(np.abs(GRID), kind="stable")  # among equals the smallest move is taken
WEIGHTS = (*(2.0 ** (-power / 4) for power in range(-32, 17)), 0.0)  # 256 to 1/16, and 0
NEAR = (-2, 0, 2, 4)  # places in WEIGHTS, from the best one on, at which moves are tried
KEPT = (0.0, 0.5, 1.0)  # shares of the moves
SWEEPS = 2  # over all groups, at most; most of the gain is in the first
CANDIDATES = 64  # of a row: half by probability, half by probability / prior


class Rows(NamedTuple):
    """Scored rows, reduced to the classes that may win; only log p and its differences matter."""

    classes: np.ndarray  # (N, C) int64, different ones in a row
    log_p: np.ndarray  # (N, C) float32
    target: np.ndarray  # (N,) int64
    user: np.ndarray  # (N,) int64

    def part(self, mask: np.ndarray) -> Rows:
        """Those of a mask (N,)."""
        return Rows(*(values[mask] for values in self))


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

    starts = [figures_of(rows, start_of(prior, weight), classes) for weight in WEIGHTS]
    trials = [Trial(None, 0.0, plain)]
    trials += [Trial(weight, 0.0, found) for weight, found in zip(WEIGHTS, starts, strict=True)]
    place = max(range(len(WEIGHTS)), key=lambda number: value(trials[1 + number]))
    for weight in {WEIGHTS[min(max(place + step, 0), len(WEIGHTS) - 1)]: None for step in NEAR}:
        found = _cross_fitted(rows, start_of(prior, weight), group, weight, search.objective)
        # moves count where they are better in what they were learned by
        trials.append(max(found, key=lambda t: t.total(search.objective)))
    best = max(trials, key=value)  # the first of equals
    told = {"plain": plain, "cross_fitted": best.figures}
    if best.weight is None:
        return Learned(np.zeros(classes, np.float32), None, 0.0, int(group.max()) + 1, told)
    thresholds = start_of(prior, best.weight)
    if best.kept:
        moves = _Ascent(rows, thresholds, group).run(best.weight, search.objective)
        thresholds += best.kept * moves[group]
    thresholds = np.round(thresholds, 6).astype(np.float32)  # as many digits as a file keeps
    told["fitted"] = figures_of(rows, thresholds, classes)
    return Learned(thresholds, best.weight, best.kept, int(group.max()) + 1, told)


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
    metrics = PredictionMetrics(classes)
    for counted, ids in (
        (metrics.support, target),
        (metrics.predicted, predicted),
        (metrics.true_positive, target[target == predicted]),
    ):
        counted += torch.from_numpy(np.bincount(ids, minlength=classes))
    found = metrics.compute()
    return {name: found[name] for name in ("rec_w", "rec_m", "f1_w", "f1_m")}


def _cross_fitted(
    rows: Rows, start: np.ndarray, group: np.ndarray, weight: float, objective: str
) -> list[Trial]:
    """A trial for each of KEPT, of moves that were learned on the other half of the users."""
    second = np.unique(rows.user, return_inverse=True)[1] % 2 == 1
    predicted = np.zeros((len(KEPT), len(rows.target)), np.int64)
    for half in (second, ~second):
        moves = _Ascent(rows.part(~half), start, group).run(weight, objective)
        own = rows.part(half)
        for number, kept in enumerate(KEPT):
            scores = own.log_p - (start + kept * moves[group])[own.classes]
            best = scores.argmax(1)[:, None]
            predicted[number, half] = np.take_along_axis(own.classes, best, 1)[:, 0]
    return [
        Trial(weight, kept, _figures(rows.target, ids, len(start)))
        for kept, ids in zip(KEPT, predicted, strict=True)
    ]


class _Ascent:
    """Coordinate ascent over the groups' moves, on some rows and from some start."""

    def __init__(self, rows: Rows, start: np.ndarray, group: np.ndarray) -> None:
        self.rows, self.classes = rows, len(start)
        self.groups = int(group.max()) + 1
        self.member = group[rows.classes]  # (N, C)
        self.value = _that_may_win(rows.log_p - start[rows.classes], self.member)
        self.moves = np.zeros(self.groups)
        self.support = np.bincount(rows.target, minlength=self.classes)
        # the candidates that may win, by group
        row, column = np.nonzero(np.isfinite(self.value))
        order = np.argsort(self.member[row, column], kind="stable")
        self.row, self.column = row[order], column[order]
        self.pointer = np.searchsorted(
            self.member[self.row, self.column], np.arange(self.groups + 1)
        )
        self.first = np.zeros(len(rows.target), np.int64)  # column of the best group's candidate
        self.second = np.zeros(len(rows.target), np.int64)
        self._rank(np.arange(len(rows.target)))

    def run(self, weight: float, objective: str) -> np.ndarray:
        """The moves (G,) after some sweeps over the groups, frequent ones first."""
        for _ in range(SWEEPS):
            before = self.moves.copy()
            for group in range(self.groups):
                self._move(group, weight, objective)
            if np.array_equal(before, self.moves):
                break
        return self.moves

    def _move(self, group: int, weight: float, objective: str) -> None:
        """Move one group's threshold to the best point of the grid, all others as they are."""
        part = slice(self.pointer[group], self.pointer[group + 1])
        row, column = self.row[part], self.column[part]
        if not len(row):
            return
        wins = self.first[row] == column
        rival = np.where(wins, self.second[row], self.first[row])
        own = self.value[row, column]
        other = self.value[row, rival] - self.moves[self.member[row, rival]]
        points = np.searchsorted(GRID, own - other)  # of the grid, at which the group wins a row
        totals = self._totals(Contest(row, column, rival, wins, points), weight, objective)
        best = GRID[BY_SIZE[totals[BY_SIZE].argmax()]]
        if best == self.moves[group]:
            return
        runner_up = self.second[row]
        second = self.value[row, runner_up] - self.moves[self.member[row, runner_up]]
        self.moves[group] = best
        self._rank(row[wins | (runner_up == column) | (own - best > second)])

    def _totals(self, contest: Contest, weight: float, objective: str) -> np.ndarray:
        """The objective (J,) at each point of the grid, up to a constant."""
        contest = contest.undecided()
        target = self.rows.target[contest.row]
        own, rival = (
            self.rows.classes[contest.row, column] for column in (contest.column, contest.rival)
        )
        changed = np.zeros(self.classes, bool)
        changed[own] = changed[rival] = True
        touched = np.flatnonzero(changed)
        place = np.cumsum(changed) - 1  # of a touched class among them
        won, lost = place[own], place[rival]
        counted = []
        for total, is_own, is_rival in (
            (self.predicted, np.ones(len(own)), np.ones(len(own))),
            (self.hits, own == target, rival == target),
        ):
            now = np.where(contest.wins, won, lost), np.where(contest.wins, is_own, is_rival)
            without = total[touched] - np.bincount(*now, len(touched))
            counted.append(without + contest.sums(won, lost, is_own, is_rival, len(touched)))
        predicted, hits = counted
        support = self.support[touched]
        part, whole = (hits, support) if objective == "rec_m" else (2 * hits, support + predicted)
        macro = np.divide(part, whole, out=np.zeros_like(hits), where=support > 0).sum(1)
        rows, present = len(self.rows.target), (self.support > 0).sum()
        return np.asarray(macro / present + weight * hits.sum(1) / rows)

    def _rank(self, row: np.ndarray) -> None:
        """Find the best and the second candidate of some rows, which are of different groups."""
        scores = self.value[row] - self.moves[self.member[row]]
        self.first[row] = best = scores.argmax(1)
        np.put_along_axis(scores, best[:, None], -np.inf, 1)
        self.second[row] = scores.argmax(1)
        ids = np.take_along_axis(self.rows.classes, self.first[:, None], 1)[:, 0]
        hit = ids[ids == self.rows.target]
        self.predicted = np.bincount(ids, minlength=self.classes)
        self.hits = np.bincount(hit, minlength=self.classes)


class Contest(NamedTuple):
    """Rows (n,) that a group may win: its candidate's column and the best other one's."""

    row: np.ndarray
    column: np.ndarray
    rival: np.ndarray
    wins: np.ndarray  # bool, at the present move
    points: np.ndarray  # of the grid, from its begin, at which it wins

    def undecided(self) -> Contest:
        """Without the rows that it neither wins now nor anywhere on the grid."""
        return Contest(*(values[self.wins | (self.points > 0)] for values in self))

    def sums(
        self, won: np.ndarray, lost: np.ndarray, own: np.ndarray, rival: np.ndarray, size: int
    ) -> np.ndarray:
        """Sums (J, size) of `own` (n,) at the indices `won` over the rows that are won, and of
        `rival` at `lost` over the others."""
        entering = np.zeros((len(GRID) + 1) * size)
        for index, values in ((won, own), (lost, -rival.astype(float))):
            entering += np.bincount(self.points * size + index, values, len(entering))
        # a row is won at all points before its own number of them
        gained = entering.reshape(len(GRID) + 1, size)[:0:-1].cumsum(0)[::-1]
        return np.asarray(gained + np.bincount(lost, rival, size))


def _that_may_win(value: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Values (N, C) with minus infinity where another candidate of the same group (N, C) is
    better, or the best of all is ahead by more than any moves."""
    order = np.lexsort((-value, member), axis=1)
    sorted_member = np.take_along_axis(member, order, 1)
    repeated = np.zeros(value.shape, bool)
    repeated[:, 1:] = sorted_member[:, 1:] == sorted_member[:, :-1]
    worse = np.zeros(value.shape, bool)
    np.put_along_axis(worse, order, repeated, 1)
    worse |= value < value.max(1, keepdims=True) - (GRID[-1] - GRID[0])
    return np.where(worse, -np.inf, value)
