"""The files beside an evaluation's metrics.json: figures by behavior, confusions and examples
(evaluation_examples.py).

per_behavior.csv, confusion.json, examples.json
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from behavegpt.data.store import EventStore
from behavegpt.io import write_json, write_text
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.training.evaluate import CONFUSION_CLASSES

TOP_BEHAVIORS = 15  # of the confusion table
TAKEN_FOR = 3  # behaviors that a behavior is most often taken for


def write_details(
    folder: Path,
    store: EventStore,
    scored: dict[str, PredictionMetrics],
    shown: dict[str, Any],
) -> None:
    """Write the files of models `scored` on the same rows, and the examples `shown`."""
    _write_per_behavior(folder / "per_behavior.csv", store, scored)
    if store.behaviors.classes <= CONFUSION_CLASSES:  # beyond it confusions were not counted
        write_json(folder / "confusion.json", _confusion(scored["behavegpt"], labels_of(store)))
    write_json(folder / "examples.json", shown)


def labels_of(store: EventStore) -> list[str]:
    """The behaviors' labels as text, in the order of the classes."""
    return [str(value) for value in store.behaviors.values.to_pylist()]


def _write_per_behavior(
    path: Path, store: EventStore, scored: dict[str, PredictionMetrics]
) -> None:
    columns = ("support", "predicted", "recall", "precision", "f1")
    # written in one piece: a reader never sees half a file
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "behavior", "train_count", *columns])

    for name, metrics in scored.items():
        figures = metrics.per_class()
        for k, label in enumerate(labels_of(store)):
            row = [f"{figures[column][k]:.6g}" for column in columns]
            writer.writerow([name, label, int(store.behaviors.counts[k]), *row])

    write_text(path, text.getvalue())


def _confusion(metrics: PredictionMetrics, labels: list[str]) -> dict[str, Any]:
    """The table of the most frequent behaviors, the rest as one, and what each is taken for."""
    # a thousand behaviors are no table that anybody reads
    top, table = metrics.confusion(TOP_BEHAVIORS)
    names = [labels[k] for k in top] + ["other"] * (len(table) - len(top))
    return {
        "labels": names,
        "counts": table.tolist(),
        "taken_for": _taken_for(metrics, labels),
    }


def _taken_for(metrics: PredictionMetrics, labels: list[str]) -> dict[str, list[list[Any]]]:
    """For each behavior the wrong ones that were predicted most often, with their number."""
    place, number = metrics.taken_for(TAKEN_FOR)
    mistakes: dict[str, list[list[Any]]] = {}
    for label, others, numbers in zip(labels, place.tolist(), number.tolist(), strict=True):
        if numbers[0]:  # in descending order: without a first one there is none
            pairs = zip(others, numbers, strict=True)
            mistakes[label] = [[labels[j], n] for j, n in pairs if n]
    return mistakes
