"""Distributionally robust loss over behavior classes (eq. 4).

The adversary picks the class distribution p that hurts most within {p : eps_b p(b) <= pi_b}, pi the
training distribution. With cap_b = 1/eps_b, and a floor that keeps p(b) >= floor * pi_b, it is a
fractional knapsack: the classes with the largest losses are filled up to cap_b * pi_b until the
mass is spent. The gradient of the supremum is that of cross-entropy with weight w_b = p(b) / pi_b
(envelope theorem), so the loss stays a sum over events.
"""

from __future__ import annotations

import math

import torch

from behavegpt.losses.base import Loss

_ROUNDING = 1e-12  # mass that float64 sums over classes may lose; a class short of less is full
_MOST_EVENTS = 20  # events of a class in one step beyond which its average follows no faster


def worst_case(
    class_loss: torch.Tensor, prior: torch.Tensor, cap: torch.Tensor, floor: float = 0.0
) -> torch.Tensor:
    """argmax of sum_b p_b class_loss_b over floor * prior <= p <= cap * prior, sum p = 1; all (K,),
    p in float64.

    Exact, O(K log K). Classes with equal losses share in proportion to their room, so the answer
    does not depend on the order of the classes; one with prior 0 gets 0. `prior` may be counts: it
    is divided by its sum. ValueError unless floor <= cap and sum(cap * prior) >= 1, which any eps
    <= 1 ensures.

    >>> loss, prior = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.6, 0.1, 0.3])
    >>> p = worst_case(loss, prior, torch.full((3,), 2.0))  # classes 1, 2 at their caps, 0 the rest
    >>> [round(share, 6) for share in p.tolist()]
    [0.2, 0.2, 0.6]
    """
    loss, prior, cap = class_loss.double(), prior.double(), cap.double()

    prior = prior / prior.sum()
    # (K,) what a class can take beyond the floor, and the mass that there is to give
    room = (cap - floor) * prior
    budget = 1.0 - floor

    if bool((room < 0).any()) or float(room.sum()) < budget - 1e-9:
        raise ValueError(
            f"no distribution fits: caps must be at least the floor {floor} and leave room for "
            "mass 1"
        )

    # the classes with the largest losses are filled first, until the mass is spent
    ordered, order = loss.sort(descending=True)
    spent = room[order].cumsum(0)
    last = int(torch.searchsorted(spent, budget).clamp(max=len(loss) - 1))
    # ties share what is left in proportion, so all classes at this loss count together
    threshold = ordered[last]  # the dual variable: the loss at which the mass runs out

    above, level = loss > threshold, loss == threshold
    left, level_room = budget - room[above].sum(), room[level].sum()

    # a level that fits whole but for rounding is filled whole
    share = torch.where(
        left >= level_room - _ROUNDING, 1.0, left / level_room.clamp(min=_ROUNDING)
    ).clamp(0, 1)

    return prior * (floor + (above + level * share) * (cap - floor))


def dual_value(
    class_loss: torch.Tensor, prior: torch.Tensor, cap: torch.Tensor, floor: float = 0.0
) -> torch.Tensor:
    """min over eta of (1-floor) eta + sum_b (cap_b-floor) prior_b max(loss_b-eta, 0), plus floor *
    mean loss -> ().

    Equal to the worst-case expected loss (strong duality). The minimum lies at one of the losses.

    >>> loss, prior = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.6, 0.1, 0.3])
    >>> cap = torch.full((3,), 2.0)
    >>> round(float(dual_value(loss, prior, cap)), 6)  # 0.2 * 1 + 0.2 * 3 + 0.6 * 2
    2.0
    """
    loss, prior, cap = class_loss.double(), prior.double(), cap.double()
    prior = prior / prior.sum()
    eta, order = loss.sort(descending=True)  # (K,) descending

    room = ((cap - floor) * prior)[order]
    # the dual function at each candidate: only classes with losses above eta add to it
    values = (1.0 - floor) * eta + (room * eta).cumsum(0) - eta * room.cumsum(0)
    return floor * (prior * loss).sum() + values.min()


# ---- caps 1/eps_b from training counts, all (K,) float64 -> (K,) >= 1; the rarer, the larger


def effective_number_cap(counts: torch.Tensor, n0: float) -> torch.Tensor:
    """(K,) 1 / (1 - exp(-n_b / (n0 N/K))): free of scale; classes well above n0 times the mean
    count have eps near 1."""
    # expm1: 1 - exp(-x) loses all digits for a rare class among many events
    return 1.0 / -torch.expm1(-counts.clamp(min=1) / (n0 * counts.mean()))


def effective_number_beta_cap(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """(1 - beta^n_max) / (1 - beta^n_b): effective number of samples (Cui et al. 2019), 1 at the
    largest class."""
    # expm1 of n log(beta), as beta^n is close to 1 for small n
    return torch.expm1(counts.max() * math.log(beta)) / torch.expm1(
        counts.clamp(min=1) * math.log(beta)
    )


def power_cap(counts: torch.Tensor, gamma: float, max_cap: float) -> torch.Tensor:
    """(n_max / n_b)^gamma, at most max_cap."""
    # bounded: one event in a million would otherwise allow the whole mass
    return (counts.max() / counts.clamp(min=1)).pow(gamma).clamp(max=max_cap)


def confidence_cap(counts: torch.Tensor, c: float) -> torch.Tensor:
    """1 + c / sqrt(n_b): the width of a confidence interval of the class's loss."""
    return 1.0 + c / counts.clamp(min=1).sqrt()


def uniform_cap(counts: torch.Tensor, epsilon: float) -> torch.Tensor:
    """1/epsilon for every class: conditional value at risk over classes."""
    return torch.full_like(counts, 1.0 / epsilon)


class DROLoss(Loss):
    """Cross-entropy weighted by the worst case over classes (eq. 4), from `start` of training on.

    Class losses are moving averages over the events seen, from log K; they are tracked before
    `start` too, while the weights are 1. Weights average to 1 over the training events and are at
    most `cap`; a class that was never seen in training gets weight 0. The state stays on the CPU:
    all ranks must find the same weights to the last bit, GPU sums may differ between runs, and not
    every GPU has float64.
    """

    def __init__(
        self,
        counts: torch.Tensor,
        cap: torch.Tensor,
        floor: float = 0.8,
        start: float = 0.8,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(counts, start)
        self.prior = self.counts / self.counts.sum()  # (K,) float64
        self.cap = cap.double().cpu()
        self.floor = floor
        self.momentum = momentum
        # the loss of even odds: at 0 a class that was not seen yet would count as solved
        self.class_loss = torch.full_like(self.prior, math.log(len(counts)))
        self._set_weights()

    def update(self, class_loss: torch.Tensor, class_count: torch.Tensor) -> None:
        """Average the step's mean losses (K,) into the classes that were seen, at a rate that grows
        with their events (K,)."""
        # on the CPU in float64, where all ranks compute the same bits
        count = class_count.cpu().double()
        mean = class_loss.cpu().double() / count.clamp(min=1)

        # n events move the average as n updates by one event would: 1 - (1 - momentum)^n; 0 if not
        # seen
        rate = 1.0 - (1.0 - self.momentum) ** count.clamp(max=_MOST_EVENTS)
        self.class_loss = self.class_loss + rate * (mean - self.class_loss)

        if self.active:
            self._set_weights()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Progress () and the averaged class losses (K,), both float64."""
        return {**super().state_dict(), "class_loss": self.class_loss}

    def inherit(self, state: dict[str, torch.Tensor], rows: torch.Tensor) -> None:
        """Known classes start from the averages that the other run reached, new ones from log K;
        class k was class rows[k] (K,) there."""
        if "class_loss" in state:  # absent where the other run trained with another loss
            known = rows >= 0
            self.class_loss[known] = state["class_loss"].to(self.class_loss)[rows[known]]
            self._set_weights()

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        super()._load(state)
        self.class_loss = state["class_loss"].to(self.class_loss)  # (K,) float64

    def _active_weight(self) -> torch.Tensor:
        p = worst_case(self.class_loss, self.prior, self.cap, self.floor)  # (K,)

        # weight of the gradient, p / pi (envelope theorem); a class that training never saw has
        # none
        return torch.where(
            self.prior > 0, p / self.prior.clamp(min=torch.finfo(torch.float64).tiny), 0.0
        )
