"""What a user did so often in the past, spread evenly over the days to come: the statistical
baseline of forecasts over a horizon (Karpukhin et al. 2024, "HoTPP", HistoryDensity).

A behavior with r events a day of the user's past is expected at (i + 1/2) / r days from now, i = 0,
1, ..., until the horizon; one that is expected less than once stands in the middle of it. Its score
is r: what comes often is sure.

Shapes: E events of U users, N expected events.
"""

from __future__ import annotations

import numpy as np

from behavegpt.metrics.horizon import HORIZON, Timeline
from behavegpt.ragged import owners, positions

DAY = 86_400
SHORTEST = 1.0  # days of a past: of one event, or of a single day, no rate is told


def history_density(
    behavior: np.ndarray, time: np.ndarray, offsets: np.ndarray, horizon: float = HORIZON
) -> Timeline:
    """The expected events of users whose past events have these classes (E,), below 0 if unknown,
    and epoch seconds (E,), user by user as `offsets` (U + 1,) says."""
    user = owners(np.diff(offsets))  # (E,)
    first, last = time[offsets[:-1]], time[offsets[1:] - 1]
    days = np.maximum((last - first) / DAY, SHORTEST)  # (U,)

    known = behavior >= 0
    pairs, count = np.unique(
        np.stack([user[known], behavior[known]]), axis=1, return_counts=True
    )  # (2, P)
    rate = count / days[pairs[0]]  # (P,) a day

    often = np.maximum(np.floor(rate * horizon + 0.5), 1).astype(np.int64)  # (P,) times
    pair = owners(often)  # (N,)
    spread = (positions(often) + 0.5) / rate[pair]
    return Timeline(
        pairs[0][pair],
        pairs[1][pair],
        np.where(rate[pair] * horizon < 1, horizon / 2, spread),
        rate[pair],
    )
