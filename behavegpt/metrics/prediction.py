"""Metrics of next-behavior prediction (Appendix B), streamed: integer counts that add up over
batches and ranks.

N scored rows, K behavior classes. `b` runs over classes, TP_b are the rows of class b that were
predicted as b, support_b = TP_b + FN_b its rows, predicted_b = TP_b + FP_b the rows predicted as b.

Which averages: the weighted figures weight each class by its support, as sklearn does; they are
what the names mean. Equations 6 and 7 as printed weight it by TP_b instead, so that a perfect model
scores 1 but the rest is not a mean; they are given too, as `prec_w_eq6` and `rec_w_eq7`. Macro
figures average over the classes with support in the scored rows; over all |B| classes, as equations
8 and 9 read, they are `prec_m_all` and `rec_m_all`. `f1_m` is the mean over the classes with
support of each one's F1, which is not the F1 of the two means, and `f1_w` the mean weighted by
support, which may lie outside weighted precision and recall. 0/0 counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from behavegpt.errors import BehaveGPTError


def predicted_and_rank(
    scores: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best class and 0-based rank of the target: scores (N, K), target (N,) -> two (N,) int64.

    rank = #{j : s_j > s_t} + #{j < t : s_j = s_t}; equal scores go to the lower class index, which
    is the more frequent class. BehaveGPTError if a score is NaN.

    >>> scores = torch.tensor([[0.2, 0.5, 0.5], [0.1, 0.9, 0.3]])
    >>> best, rank = predicted_and_rank(scores, torch.tensor([2, 0]))
    >>> best.tolist(), rank.tolist()
    ([1, 1], [1, 2])
    """
    best = scores.argmax(dim=1)  # the first one among equals; NaN counts as the largest
    missing = int(scores.gather(1, best[:, None]).isnan().sum())
    if missing:
        raise BehaveGPTError(
            f"the scores of {missing} of {len(scores)} rows are not numbers (NaN): training has "
            "diverged or the weights are damaged; train again with a lower train.lr or use an "
            "earlier checkpoint."
        )

    own = scores.gather(1, target[:, None])
    # ties go by the index alone, so that a constant score is no better than chance
    before = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
    ahead = (scores > own) | ((scores == own) & before)
    # torch sums booleans into int64 seven times slower
    return best, ahead.sum(1, dtype=torch.int32).long()


class PredictionMetrics:
    """Counts of a stream of scored rows, and the figures made of them.

    Holds 3 K integers, a histogram of ranks up to max(ks) and, with `confusion`, K x K integers:
    nothing per row.

    >>> metrics = PredictionMetrics(3).update(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> figures = metrics.compute()
    >>> round(figures["rec_w"], 4), round(figures["rec_m"], 4), figures["hr@3"]
    (0.6667, 0.75, 1.0)
    """

    def __init__(
        self, classes: int, ks: Sequence[int] = (1, 3, 5), confusion: bool = False
    ) -> None:
        self.classes = classes
        self.ks = tuple(sorted(set(ks)))

        # one tensor, so that one all-reduce adds up everything
        sizes = [classes, classes, classes, self.ks[-1] + 1, classes * classes if confusion else 0]
        self._state = torch.zeros(sum(sizes), dtype=torch.int64)
        # views into the state; the last rank collects all that lie beyond max(ks)
        self.true_positive, self.predicted, self.support, self.ranks, self._pairs = (
            self._state.split(sizes)
        )

    @property
    def rows(self) -> int:
        """Rows scored so far."""
        return int(self.support.sum())

    def update(self, scores: torch.Tensor, target: torch.Tensor) -> Self:
        """Count scores (N, K) of any device and float type against target (N,) int64 in [0, K)."""
        best, rank = predicted_and_rank(scores, target)
        # counted on the CPU, in integers: any order of batches and ranks gives the same figures
        best, rank, target = best.cpu(), rank.cpu(), target.cpu()

        # rank 0 is a hit: `best` breaks ties by the same rule
        self.true_positive += torch.bincount(target[rank == 0], minlength=self.classes)
        self.predicted += torch.bincount(best, minlength=self.classes)
        self.support += torch.bincount(target, minlength=self.classes)
        self.ranks += torch.bincount(rank.clamp(max=self.ks[-1]), minlength=self.ks[-1] + 1)
        if len(self._pairs):
            self._pairs.index_add_(0, target * self.classes + best, torch.ones_like(target))
        return self

    def state(self) -> torch.Tensor:
        """All counts as one flat int64 tensor on the CPU; states add up, so all-reduce it with a
        sum.

        >>> metrics = PredictionMetrics(2, ks=(1,)).update(torch.eye(2), torch.tensor([0, 0]))
        >>> metrics.state().tolist()
        [1, 0, 1, 1, 2, 0, 1, 1]
        """
        return self._state.clone()

    def load_state(self, state: torch.Tensor) -> Self:
        """Take over the counts of `state()`; ValueError if it has another length."""
        if state.shape != self._state.shape:
            raise ValueError(
                f"a state of {tuple(self._state.shape)} counts is needed, got {tuple(state.shape)}"
            )
        self._state.copy_(state)
        return self

    def merge(self, other: PredictionMetrics) -> Self:
        """Add the counts of other rows."""
        # the views stay those of this state
        return self.load_state(self._state + other._state)

    def with_unseen(self, number: int) -> PredictionMetrics:
        """The same counts, and `number` rows whose label no model could name: all misses, of one
        more, last class.

        >>> metrics = PredictionMetrics(2).update(torch.eye(2), torch.tensor([0, 1])).with_unseen(2)
        >>> metrics.hit_rate(5), round(metrics.compute()["rec_m"], 4)
        (0.5, 0.6667)
        """
        if not number:
            return self

        more = PredictionMetrics(self.classes + 1, self.ks)
        for name in ("true_positive", "predicted", "support"):  # nothing is predicted as it
            getattr(more, name)[:-1] = getattr(self, name)
        more.ranks.copy_(self.ranks)

        more.support[-1] = number
        more.ranks[-1] += number  # beyond every k
        return more

    def per_class(self) -> dict[str, np.ndarray]:
        """(K,) arrays: support, predicted, true_positive, recall TP/(TP+FN), precision TP/(TP+FP),
        f1 2TP/(2TP+FN+FP).

        >>> metrics = PredictionMetrics(2).update(torch.eye(2), torch.tensor([0, 0]))
        >>> metrics.per_class()["recall"].tolist()
        [0.5, 0.0]
        """
        counts = {
            name: getattr(self, name).numpy().copy()
            for name in ("support", "predicted", "true_positive")
        }
        hit = counts["true_positive"]
        return {
            **counts,
            "recall": _ratio(hit, counts["support"]),
            "precision": _ratio(hit, counts["predicted"]),
            "f1": _ratio(2 * hit, counts["support"] + counts["predicted"]),
        }

    def hit_rate(self, k: int) -> float:
        """HR@k = rows whose target is among the k best / N, for k <= max(ks); HR@1 is weighted
        recall.

        >>> scores, target = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1])
        >>> PredictionMetrics(3).update(scores, target).hit_rate(3)
        1.0
        """
        return float(self.ranks[:k].sum()) / max(self.rows, 1)

    def ndcg(self, k: int) -> float:
        """NDCG@k = sum over rows with rank < k of 1/log2(rank + 2), divided by N: one relevant
        class per row.

        >>> scores, target = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1])
        >>> round(PredictionMetrics(3).update(scores, target).ndcg(3), 4)
        0.6309
        """
        # of a rank, not of a row: the histogram has all that is needed
        gain = 1.0 / np.log2(np.arange(k) + 2.0)
        return float(gain @ self.ranks[:k].numpy()) / max(self.rows, 1)

    def compute(self, train_counts: torch.Tensor | np.ndarray | None = None) -> dict[str, Any]:
        """All figures; with training counts (K,) also macro recall of head, mid, tail and of ten
        frequency groups.

        The groups cut the classes, sorted by training count, into equal numbers of classes; a group
        none of whose classes has support is None.

        >>> metrics = PredictionMetrics(2).update(torch.eye(2), torch.tensor([0, 0]))
        >>> figures = metrics.compute(np.array([5, 1]))
        >>> figures["prec_w"], figures["rec_m_all"], figures["head"], figures["tail"]
        (1.0, 0.25, 0.5, None)
        """
        figures: dict[str, Any] = {**self._averages()}
        for k in self.ks:  # at 1 both are weighted recall
            if k > 1:
                figures[f"hr@{k}"], figures[f"ndcg@{k}"] = self.hit_rate(k), self.ndcg(k)
        if train_counts is None:
            return figures

        thirds = self._recall_by_group(np.asarray(train_counts), 3)
        deciles = self._recall_by_group(np.asarray(train_counts), 10)
        return {
            **figures,
            **dict(zip(("head", "mid", "tail"), thirds, strict=True)),
            "recall_by_decile": deciles,
        }

    def confusion(self, top: int) -> tuple[np.ndarray, np.ndarray]:
        """The classes with most support (T,), T = min(top, K), and their counts true x predicted
        (T+1, T+1) int64.

        The last row and column gather all other classes; they are left out when there are none.
        ValueError without `confusion=True`.

        >>> metrics = PredictionMetrics(3, confusion=True)
        >>> metrics = metrics.update(torch.eye(3), torch.tensor([0, 0, 2]))
        >>> [part.tolist() for part in metrics.confusion(1)]
        [[0], [[1, 1], [0, 1]]]
        """
        counts = self._true_by_predicted().numpy()
        # stable: the same table, whichever version of numpy sorts
        labels = np.argsort(-self.support.numpy(), kind="stable")[:top]

        # a class's place in the table; all others share the last one
        group = np.full(self.classes, len(labels))
        group[labels] = np.arange(len(labels))
        size = len(labels) + (len(labels) < self.classes)
        member = np.eye(size, dtype=np.int64)[group]  # (K, size)
        return labels, member.T @ counts @ member

    def taken_for(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """For each class the wrong classes predicted most often, and how often: (K, most) int64
        each. ValueError without `confusion=True`.

        >>> metrics = PredictionMetrics(2, confusion=True)
        >>> metrics = metrics.update(torch.eye(2), torch.tensor([0, 0]))
        >>> [part.tolist() for part in metrics.taken_for(1)]
        [[[1], [0]], [[1], [0]]]
        """
        counts = self._true_by_predicted().clone()
        counts.fill_diagonal_(0)  # the right predictions
        # also classes that were never taken for anything: their count is 0
        number, place = counts.topk(min(most, self.classes), dim=1)
        return place.numpy(), number.numpy()

    def _true_by_predicted(self) -> torch.Tensor:
        """The confusion counts (K, K). ValueError where they were not kept."""
        if not len(self._pairs):
            raise ValueError(
                "confusion counts were not kept; construct PredictionMetrics(..., confusion=True)"
            )
        return self._pairs.view(self.classes, self.classes)

    def _averages(self) -> dict[str, float]:
        """Recall, precision and F1, averaged in the ways of the module's description."""
        table = self.per_class()
        support, hits = table["support"], table["true_positive"]
        present, rows = support > 0, max(self.rows, 1)

        figures: dict[str, float] = {}
        # weighted by support; over classes with support; over all classes; as printed, by TP_b
        for short, name, printed in (
            ("rec", "recall", "rec_w_eq7"),
            ("prec", "precision", "prec_w_eq6"),
        ):
            values = table[name]
            figures[f"{short}_w"] = float(support @ values) / rows
            figures[f"{short}_m"] = float(values[present].mean()) if present.any() else 0.0
            figures[f"{short}_m_all"] = float(values.mean())
            figures[printed] = float(hits @ values) / rows

        figures["f1_w"] = float(support @ table["f1"]) / rows
        figures["f1_m"] = float(table["f1"][present].mean()) if present.any() else 0.0
        return figures

    def _recall_by_group(self, train_counts: np.ndarray, groups: int) -> list[float | None]:
        """Macro recall of `groups` runs of classes from the most to the least frequent in training.

        With fewer classes than groups a class stands in several.
        """
        recall = _ratio(self.true_positive.numpy(), self.support.numpy())
        order = np.argsort(-train_counts, kind="stable")

        result: list[float | None] = []
        for group in range(groups):
            # cut evenly: sizes differ by one at most
            low, high = group * self.classes // groups, (group + 1) * self.classes // groups
            members = order[low : max(high, low + 1)]
            scored = members[self.support.numpy()[members] > 0]  # the others have no recall
            result.append(float(recall[scored].mean()) if len(scored) else None)
        return result


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
