"""History density, against what its docstring says."""

from __future__ import annotations

import numpy as np

from behavegpt.baselines.history_density import DAY, history_density


def test_rates_become_times_and_scores():
    # ten days of user 0: behavior 4 ten times, 1 once, an unknown one; a single event of user 1
    time = np.concatenate([np.linspace(0, 10, 12) * DAY, [3 * DAY]]).astype(np.int64)
    behavior = np.array([4] * 10 + [1, -1] + [2])
    found = history_density(behavior, time, np.array([0, 12, 13]), horizon=5.0)
    by_kind = {
        (u, b): (found.days[at].tolist(), found.score[at].tolist())
        for u, b in zip(*np.unique(np.stack([found.user, found.behavior]), axis=1), strict=True)
        for at in [(found.user == u) & (found.behavior == b)]
    }
    assert by_kind == {
        (0, 1): ([2.5], [0.1]),  # less than once: the middle of the horizon
        (0, 4): ([0.5, 1.5, 2.5, 3.5, 4.5], [1.0] * 5),
        (1, 2): ([0.5, 1.5, 2.5, 3.5, 4.5], [1.0] * 5),  # a past of one event is a day long
    }
