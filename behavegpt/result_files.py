"""Result files of a run, read for its figures and its report; damage is one error that names the
file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.errors import DataError
from behavegpt.figures import MODEL

REMEDY = "evaluate the run again"


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """A result file with the keys `needed`; raises DataError naming it when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {REMEDY}.") from None

    missing = [key for key in needed if not isinstance(value, dict) or key not in value]
    if missing or not isinstance(value, dict):
        raise DataError(f"{path}: not an object with {missing or 'keys'}; {REMEDY}.")
    return value


def read_per_behavior(path: Path) -> list[dict[str, Any]]:
    """Rows of per_behavior.csv, figures as floats; raises DataError naming the file when it is
    damaged."""
    # a behavior may look like a number
    texts = ("model", "behavior")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row |= {name: float(row[name]) for name in row if name not in texts}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {REMEDY}.") from None
    return rows


def best_baseline(rows: Sequence[dict[str, Any]]) -> str | None:
    """The model other than ours with the best mean recall over the rows; None without one."""
    recall: dict[str, list[float]] = {}
    for row in rows:
        recall.setdefault(row["model"], []).append(row["recall"])

    # a mean over behaviors, each counted once: macro recall
    recall.pop(MODEL, None)
    return max(recall, key=lambda name: float(np.mean(recall[name])), default=None)
