"""The files beside an evaluation's metrics.json: figures by behavior, confusions and examples.

per_behavior.csv, confusion.json, examples.json
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behavegpt.data.collate import argument_name
from behavegpt.data.given import given_fields
from behavegpt.data.loader import memory_of
from behavegpt.data.memory_counts import MemorySource
from behavegpt.data.pack import target_rows
from behavegpt.data.store import EventStore
from behavegpt.io import write_json, write_text
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.predictor import Predictor
from behavegpt.training.evaluate import CONFUSION_CLASSES

TOP_BEHAVIORS = 15  # of the confusion table
TAKEN_FOR = 3  # behaviors that a behavior is most often taken for
EXAMPLES = 5
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def write_details(
    folder: Path,
    store: EventStore,
    scored: dict[str, PredictionMetrics],
    shown: list[dict[str, Any]],
) -> None:
    """Write the files of models `scored` on the same rows, and the examples `shown`."""
    _write_per_behavior(folder / "per_behavior.csv", store, scored)
    if store.behaviors.classes <= CONFUSION_CLASSES:  # beyond it confusions were not counted
        write_json(folder / "confusion.json", _confusion(scored["behavegpt"], labels_of(store)))
    write_json(folder / "examples.json", {"examples": shown})


def labels_of(store: EventStore) -> list[str]:
    """The behaviors' labels as text, in the order of the classes."""
    return [str(value) for value in store.behaviors.values.to_pylist()]


def _write_per_behavior(
    path: Path, store: EventStore, scored: dict[str, PredictionMetrics]
) -> None:
    columns = ("support", "predicted", "recall", "precision", "f1")
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


def examples(
    predictor: Predictor, store: EventStore, split: int, shift: torch.Tensor, history: int = 6
) -> list[dict[str, Any]]:
    """Some users' last events before a target, what the model expects with `shift` (K,) subtracted
    from its logits, and what happened."""
    rows = target_rows(store, split)
    users = np.searchsorted(store.offsets, rows, side="right") - 1
    deep = rows[rows - store.offsets[users] >= history]  # targets with a whole history before them
    if not len(deep):
        return []

    # spread evenly over the users; few targets give the same one more than once
    chosen = np.unique(deep[np.linspace(0, len(deep) - 1, EXAMPLES).astype(int)])
    names, counts = store.users(), predictor.model.counts
    memory = None if counts is None else memory_of(store, counts)

    shown = []
    for row in chosen:
        # one history at a time: five examples are worth no batch
        user = int(np.searchsorted(store.offsets, row, side="right") - 1)
        probabilities = _probabilities_at(predictor, store, int(row), memory, shift)
        best = probabilities.topk(min(3, len(probabilities)))
        labels = predictor.tokenizer.labels(best.indices.numpy())

        past = slice(int(row) - history, int(row))
        events = zip(_times(store, past), *_texts(store, past), strict=True)
        predicted = zip(labels, best.values, strict=True)
        shown.append(
            {
                "user": names[user].as_py(),
                "history": [list(event) for event in events],
                "predicted": [[str(label), round(float(p), 4)] for label, p in predicted],
                "actual": store.behaviors.decode(store.column("behavior")[row : row + 1])[0],
            }
        )
    return shown


@torch.no_grad()
def _probabilities_at(
    predictor: Predictor,
    store: EventStore,
    row: int,
    memory: MemorySource | None,
    shift: torch.Tensor,
) -> torch.Tensor:
    """Probabilities (K,) of the behavior of the event at a row, from the user's events before
    it, with `shift` (K,) subtracted from the logits."""
    model = predictor.model
    user = int(np.searchsorted(store.offsets, row, side="right") - 1)
    begin = max(int(store.offsets[user]), row - model.config.max_length)

    inputs = {}
    for field in model.config.columns:
        ids = torch.from_numpy(store.column(field)[begin:row].astype(np.int64))[None]  # (1, R)
        inputs[argument_name(field)] = ids.to(model.device)
    last = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    last[0, -1] = True

    # the counts as they were after the event before, as the network sees them
    memory_then = None if memory is None else memory.at(np.array([row - 1]))
    given = {}
    for field in given_fields(predictor.given):
        ids = torch.from_numpy(store.columns[field][row : row + 1].astype(np.int64))  # (1,)
        given[field] = ids.to(model.device)

    output = model(**inputs, select=last, memory=memory_then, given=given or None)
    logits: torch.Tensor = output.logits[0]
    return (logits.float().cpu() - shift).softmax(-1)


def _times(store: EventStore, part: slice) -> list[str]:
    """Local times: `Mon 2012-04-02 18:30`."""
    minutes = store.columns["slot"][part].astype(int) * store.schema.slot_minutes
    weekdays = np.asarray(store.columns["weekday"][part]).astype(int)
    moments = np.asarray(store.columns["time"][part]).astype(np.int64) + store.manifest.time_origin

    # the local day is the one of the three around that of UTC with this weekday; day 0 was Thursday
    days = moments // 86_400
    days += (weekdays - (days + 3) + 1) % 7 - 1
    dates = days.astype("datetime64[D]").astype(str)

    return [
        f"{_DAYS[weekday]} {date} {minute // 60:02d}:{minute % 60:02d}"
        for weekday, date, minute in zip(weekdays, dates, minutes, strict=True)
    ]


def _texts(store: EventStore, part: slice) -> tuple[list[str], list[str]]:
    """Events and behaviors of some rows as text; one beyond the vocabulary is `unknown`."""
    event = store.vocabulary["event"].decode(store.column("event")[part])
    behavior = store.behaviors.decode(store.column("behavior")[part])
    return [text or "unknown" for text in event], [text or "unknown" for text in behavior]
