"""Explanations of predictions as a table or an answer of the service; `explain.py` makes them.

Shape letters: U users, J experts, N last events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from behavegpt.tabular import Tabular

SHOWN = 3  # experts and events in a table
Named = list[tuple[str, float]]  # what adds how much


@dataclass(frozen=True, repr=False)
class Explanations(Tabular):
    """Explanations of the most probable behavior of each of U users."""

    users: pa.StringArray  # (U,)
    labels: np.ndarray  # (U,) object, None where filters leave nothing
    probabilities: np.ndarray  # (U,) float32, NaN where filters leave nothing
    because: list[str]  # (U,) in words
    # names of J + 1 columns of `contributions`; none of a model without memory
    experts: tuple[str, ...]
    contributions: np.ndarray  # (U, J + 1) float32 logits; positive ones speak for the behavior
    # (U, N) float32 log-probability that the behavior loses without the event, the last event
    # first; NaN where there is none, and of a user with one event
    effects: np.ndarray
    events: np.ndarray  # (U, N) object: those events as text, None where there is none

    def __len__(self) -> int:
        return len(self.users)

    def to_table(self) -> pa.Table:
        """Columns user, behavior, probability, because, experts and events, the strongest of them
        as text; without users of whom filters leave nothing."""
        experts, events = self._strongest()
        table = pa.table(
            {
                "user": self.users,
                "behavior": pa.array(self.labels, pa.string()),
                "probability": self.probabilities,
                "because": self.because,
                "experts": [_listed(carried) for carried in experts],
                "events": [_listed(past) for past in events],
            }
        )
        return table.filter(pa.array(~np.isnan(self.probabilities)))

    def answers(self) -> list[dict[str, object]]:
        """The same by user, as the service tells them; null where filters leave nothing."""
        experts, events = self._strongest()
        rows = zip(
            self.labels.tolist(),
            self.probabilities.tolist(),
            self.because,
            experts,
            events,
            strict=True,
        )
        return [
            {
                "behavior": label,
                "probability": None if label is None else probability,
                "because": text,
                "experts": [{"expert": name, "adds": value} for name, value in carried],
                "events": [{"event": name, "effect": value} for name, value in past],
            }
            for label, probability, text, carried, past in rows
        ]

    def _strongest(self) -> tuple[list[Named], list[Named]]:
        """The experts and the events that speak most for each user's behavior."""
        experts = _strongest(np.asarray(self.experts, object), self.contributions)
        return experts, _strongest(self.events, self.effects)


def _listed(named: Named) -> str:
    return "; ".join(f"{name} {value:+.2f}" for name, value in named)


def _strongest(names: np.ndarray, values: np.ndarray) -> list[Named]:
    """The SHOWN largest positive values of each row (U, n) with their names (n,) or (U, n)."""
    if not values.shape[1]:
        return [[] for _ in values]
    filled = np.nan_to_num(values, nan=-np.inf)
    # stable: equal values keep the order of the experts, and of time
    order = np.argsort(-filled, axis=1, kind="stable")[:, :SHOWN]  # (U, SHOWN)
    named = np.take_along_axis(np.broadcast_to(names, values.shape), order, 1)
    strong = np.take_along_axis(filled, order, 1)
    rows = zip(named.tolist(), strong.tolist(), strict=True)
    return [[pair for pair in zip(*row, strict=True) if pair[1] > 0] for row in rows]
