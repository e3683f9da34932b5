"""Why a row of a log is rejected: the reasons by number, 0 for a good row."""

from __future__ import annotations

import numpy as np

# texts of rejects.parquet, data card and errors
REASONS = (
    "accepted",
    "a value has the wrong type",
    "user is null",
    "time is null",
    "time cannot be read",
    "time is out of range",
    "event is null",
    "order is not a number",
    "line cannot be cut into columns",
)
# in the order in which a row is looked at: the first fault is the one that is told
WRONG_TYPE, NO_USER, NO_TIME, BAD_TIME, LATE, NO_EVENT, BAD_ORDER, MALFORMED = range(
    1, len(REASONS)
)


def named_rejects(rejected: np.ndarray) -> dict[str, int]:
    """Reason -> rows of the counts (len(REASONS),), those above zero."""
    return {REASONS[reason]: int(rows) for reason, rows in enumerate(rejected) if rows}
