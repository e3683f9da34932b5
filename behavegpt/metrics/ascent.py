"""Coordinate ascent over per-class thresholds: the threshold of one group of classes after the
other is moved along a grid, to whatever is best on scored rows.

Exact and fast: a group wins or loses a row against one rival, so all points of the grid are scored
by counting at which of them each row changes hands.

Shape letters: N rows, C candidates of a row, n rows that a group may win, G groups, J grid points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GRID = np.round(np.arange(-30, 31) * 0.1, 1)  # (J,) moves of a group's threshold, in nats
BY_SIZE = np.argsort(np.abs(GRID), kind="stable")  # among equals the smallest move is taken
SWEEPS = 2  # over all groups, at most; most of the gain is in the first


class Rows(NamedTuple):
    """Scored rows, reduced to the classes that may win; only log p and its differences matter."""

    classes: np.ndarray  # (N, C) int64, different ones in a row
    log_p: np.ndarray  # (N, C) float32
    target: np.ndarray  # (N,) int64
    user: np.ndarray  # (N,) int64

    def part(self, mask: np.ndarray) -> Rows:
        """Those of a mask (N,)."""
        return Rows(*(values[mask] for values in self))


class Ascent:
    """Coordinate ascent over the groups' moves, on some rows and from some start."""

    def __init__(self, rows: Rows, start: np.ndarray, group: np.ndarray) -> None:
        """From thresholds `start` (K,); `group` (K,) of each class."""
        self.rows, self.classes = rows, len(start)
        self.groups = int(group.max()) + 1
        self.member = group[rows.classes]  # (N, C)
        self.value = _that_may_win(rows.log_p - start[rows.classes], self.member)  # (N, C)
        self.moves = np.zeros(self.groups)
        self.support = np.bincount(rows.target, minlength=self.classes)

        # the candidates that may win, by group: those of g lie at pointer[g] : pointer[g + 1]
        row, column = np.nonzero(np.isfinite(self.value))
        order = np.argsort(self.member[row, column], kind="stable")
        self.row, self.column = row[order], column[order]
        owners = self.member[self.row, self.column]
        self.pointer = np.searchsorted(owners, np.arange(self.groups + 1))

        # columns of each row's best candidate and of the next one
        self.first = np.zeros(len(rows.target), np.int64)
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

        # against whom the group wins or loses each row: the best candidate of another group
        wins = self.first[row] == column
        rival = np.where(wins, self.second[row], self.first[row])
        own = self.value[row, column]
        other = self.value[row, rival] - self.moves[self.member[row, rival]]
        # a move t wins where own - t > other: at so many points from the beginning of the grid
        points = np.searchsorted(GRID, own - other)

        totals = self._totals(Contest(row, column, rival, wins, points), weight, objective)
        best = GRID[BY_SIZE[totals[BY_SIZE].argmax()]]
        if best == self.moves[group]:
            return

        # only rows in whose best two the group was, or is now, can change
        runner_up = self.second[row]
        second = self.value[row, runner_up] - self.moves[self.member[row, runner_up]]
        self.moves[group] = best
        self._rank(row[wins | (runner_up == column) | (own - best > second)])

    def _totals(self, contest: Contest, weight: float, objective: str) -> np.ndarray:
        """The objective (J,) at each point of the grid, up to a constant."""
        contest = contest.undecided()
        target = self.rows.target[contest.row]
        own = self.rows.classes[contest.row, contest.column]
        rival = self.rows.classes[contest.row, contest.rival]

        # sums over the classes that a move can touch, not over all K
        changed = np.zeros(self.classes, bool)
        changed[own] = changed[rival] = True
        touched = np.flatnonzero(changed)
        place = np.cumsum(changed) - 1  # of a touched class among them
        won, lost = place[own], place[rival]

        # predictions and hits of each touched class at each point, (J, touched)
        counted = []
        for total, is_own, is_rival in (
            (self.predicted, np.ones(len(own)), np.ones(len(own))),
            (self.hits, own == target, rival == target),
        ):
            now = np.where(contest.wins, won, lost), np.where(contest.wins, is_own, is_rival)
            without = total[touched] - np.bincount(*now, len(touched))
            counted.append(without + contest.sums(won, lost, is_own, is_rival, len(touched)))
        predicted, hits = counted

        # recall is hits / support, F1 is 2 hits / (support + predicted)
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
        # what changes sides at each number of points: own values come in, the rival's go out
        entering = np.zeros((len(GRID) + 1) * size)
        for index, values in ((won, own), (lost, -rival.astype(float))):
            entering += np.bincount(self.points * size + index, values, len(entering))

        # a row is won at all points before its own number of them
        gained = entering.reshape(len(GRID) + 1, size)[:0:-1].cumsum(0)[::-1]
        return np.asarray(gained + np.bincount(lost, rival, size))


def _that_may_win(value: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Values (N, C) with minus infinity where another candidate of the same group (N, C) is
    better, or the best of all is ahead by more than any moves."""
    # by group, the best first: all but the first of a group are beaten whatever its move
    order = np.lexsort((-value, member), axis=1)
    sorted_member = np.take_along_axis(member, order, 1)
    repeated = np.zeros(value.shape, bool)
    repeated[:, 1:] = sorted_member[:, 1:] == sorted_member[:, :-1]
    worse = np.zeros(value.shape, bool)
    np.put_along_axis(worse, order, repeated, 1)

    # two moves can bring a candidate nearer by the width of the grid, no further
    worse |= value < value.max(1, keepdims=True) - (GRID[-1] - GRID[0])
    return np.where(worse, -np.inf, value)
