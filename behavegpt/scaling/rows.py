"""Rows of a sweep, as the fit reads them.

A finished run has `status` "done" and `params`, `events`, `loss` (nats per held-out target); a
failed one has `status` "failed" and a `reason`, and no loss. Rows of other programs need `params`,
`events` and `loss` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt.errors import DataError
from behavegpt.grid import Row, read_rows

# which parameters N counts -> key
COUNTS = {"total": "params", "without_embeddings": "params_without_embeddings"}


def usable_rows(paths: Sequence[Path], count: str = "total") -> list[Row]:
    """The finished rows of some files with `params` counted as asked, the best learning rate of
    each run alone.

    Raises DataError naming the file and row for a figure that is missing, not finite or not
    positive.
    """
    rows = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file; give the rows.jsonl of a sweep.")

        for number, row in enumerate(read_rows(path), 1):
            # a row of another program has no status
            if row.get("status", "done") == "done":
                rows.append({**row, "params": figure(path, number, row, COUNTS[count])})
                for name in ("events", "loss"):
                    figure(path, number, row, name)

    return best_rates(rows)


def best_rates(rows: Sequence[Row]) -> list[Row]:
    """Of runs that differ in the learning rate alone, the one with the lowest `choice_loss`.

    That is the loss on the validation split, so that the choice does not flatter the loss that is
    fitted.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for number, row in enumerate(rows):
        rated = row.get("choice_loss") is not None
        # rows without a choice loss have nothing to choose by: each stands for itself
        cell = (
            tuple(row.get(key) for key in ("name", "shape", "params", "events", "seed"))
            if rated
            else (number,)
        )
        if cell not in best or row["choice_loss"] < best[cell]["choice_loss"]:
            best[cell] = row

    return list(best.values())


def figure(path: Path, number: int, row: Row, name: str) -> float:
    # of JSON that others wrote: a text or NaN would be fitted, or fail deep within
    value = row.get(name)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not (math.isfinite(value) and value > 0)
    ):
        raise DataError(
            f"{path}, row {number}: {name!r} is {value!r}, not a positive number; a row needs "
            "params, events and loss. Remove the row, or run the sweep again."
        )

    return value
