"""Evaluate a model folder beside the count baselines, on the same rows, into result files.

OUT (metrics.json), and beside it per_behavior.csv, confusion.json, examples.json
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behavegpt.baselines import counts
from behavegpt.console import progress
from behavegpt.data.pack import target_rows
from behavegpt.data.reencode import fit_store
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import DataError
from behavegpt.io import write_json, write_text
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.predictor import Predictor
from behavegpt.training.evaluate import CONFUSION_CLASSES, evaluate

TOP_BEHAVIORS = 15  # of the confusion table
EXAMPLES = 5


def compare(
    predictor: Predictor,
    store: EventStore,
    out: Path,
    *,
    split: str = "test",
    baselines: bool = True,
    prior_correction: float = 0.0,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Any]:
    """Evaluate on a split and write the result files (rank 0); returns what metrics.json holds.

    Raises CheckpointError when the model does not know the data's labels, DataError when the split is empty.
    """
    store = fit_store(store, predictor.tokenizer)
    rows = len(target_rows(store, SPLITS[split]))
    if rows == 0:
        raise DataError(f"{store.path}: the {split} split holds no event to predict; prepare with another --split.")
    scored: dict[str, PredictionMetrics] = {}
    extra: dict[str, float] = {}
    with progress("evaluate behavegpt", rows) as show:
        scored["behavegpt"], extra["cross_entropy"] = evaluate(
            predictor.model,
            store,
            SPLITS[split],
            max_length=predictor.model.config.max_length,
            fields=predictor.model.config.columns,
            prior_correction=prior_correction,
            rank=rank,
            world=world,
            on_batch=_cumulative(show),
        )
    if baselines and rank == 0:
        scored |= score_baselines(store, split)
    models = {name: metrics.compute(store.behaviors.counts) for name, metrics in scored.items()}
    models["behavegpt"] |= extra
    result = {"models": models, "rows": rows, "protocol": _protocol(predictor, store, split, prior_correction)}
    if rank == 0:
        _write_results(predictor, store, out, result, scored, split)
    return result


def _write_results(
    predictor: Predictor,
    store: EventStore,
    out: Path,
    result: dict[str, Any],
    scored: dict[str, PredictionMetrics],
    split: str,
) -> None:
    write_json(out, result)
    _write_per_behavior(out.parent / "per_behavior.csv", store, scored)
    if store.behaviors.classes <= CONFUSION_CLASSES:
        top, table = scored["behavegpt"].confusion(TOP_BEHAVIORS)
        names = [_labels(store)[k] for k in top] + ["other"] * (len(table) - len(top))
        write_json(out.parent / "confusion.json", {"labels": names, "counts": table.tolist()})
    write_json(out.parent / "examples.json", {"examples": examples(predictor, store, SPLITS[split])})


def metrics_table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]], str]:
    """Columns, rows (best weighted recall first) and title of a result's table."""
    names = ("rec_w", "rec_m", "prec_w", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")
    models = sorted(result["models"].items(), key=lambda item: -item[1]["rec_w"])
    rows = [[model, *("-" if f[name] is None else f"{f[name]:.4f}" for name in names)] for model, f in models]
    return ("model", *names), rows, f"{result['rows']:,} rows, {result['protocol']['classes']} behaviors"


def score_baselines(store: EventStore, split: str) -> Iterator[tuple[str, PredictionMetrics]]:
    """Metrics of each count baseline on the same rows; they see the user's whole past."""
    rows = target_rows(store, SPLITS[split])
    behavior = store.column("behavior")
    fitted = counts.tune(counts.fit(store), store)
    for name, model in fitted.items():
        metrics = PredictionMetrics(store.behaviors.classes)
        with progress(f"evaluate {name}", len(rows)) as show:
            step = _cumulative(show)
            for part, scores in counts.scores(model, store, rows):
                target = torch.from_numpy(behavior[part].astype(np.int64) - FIRST)
                metrics.update(torch.from_numpy(scores), target)
                step(len(part))
        yield name, metrics


def examples(predictor: Predictor, store: EventStore, split: int, history: int = 6) -> list[dict[str, Any]]:
    """Some users' last events before a target, what the model expects and what happened."""
    rows = target_rows(store, split)
    users = np.searchsorted(store.offsets, rows, side="right") - 1
    deep = rows[rows - store.offsets[users] >= history]
    if not len(deep):
        return []
    chosen = deep[np.linspace(0, len(deep) - 1, EXAMPLES).astype(int)]
    found = []
    names = store.users()
    for row in np.unique(chosen):
        user = int(np.searchsorted(store.offsets, row, side="right") - 1)
        begin = max(int(store.offsets[user]), int(row) - predictor.model.config.max_length)
        batch = {
            f: torch.from_numpy(store.column(f)[begin:row].astype(np.int64))[None]
            for f in predictor.model.config.columns
        }
        inputs = {("input_ids" if f == "event" else f"{f}_ids"): ids for f, ids in batch.items()}
        inputs = {name: ids.to(predictor.model.device) for name, ids in inputs.items()}
        last = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        last[0, -1] = True
        with torch.no_grad():
            probabilities = predictor.model(**inputs, select=last).logits[0].float().softmax(-1).cpu()
        best = probabilities.topk(min(3, len(probabilities)))
        past = slice(int(row) - history, int(row))
        found.append(
            {
                "user": names[user].as_py(),
                "history": [list(event) for event in zip(_times(store, past), *_texts(store, past), strict=True)],
                "predicted": [
                    [str(label), round(float(p), 4)]
                    for label, p in zip(predictor.tokenizer.labels(best.indices.numpy()), best.values, strict=True)
                ],
                "actual": store.behaviors.decode(store.column("behavior")[row : row + 1])[0],
            }
        )
    return found


def _times(store: EventStore, part: slice) -> list[str]:
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    minutes = store.columns["slot"][part].astype(int) * store.schema.slot_minutes
    weekdays = store.columns["weekday"][part]
    return [f"{days[d]} {m // 60:02d}:{m % 60:02d}" for d, m in zip(weekdays, minutes, strict=True)]


def _texts(store: EventStore, part: slice) -> tuple[list[str], list[str]]:
    event = store.vocabulary["event"].decode(store.column("event")[part])
    behavior = store.behaviors.decode(store.column("behavior")[part])
    return [x or "unknown" for x in event], [x or "unknown" for x in behavior]


def _protocol(predictor: Predictor, store: EventStore, split: str, prior_correction: float) -> dict[str, Any]:
    config = predictor.model.config
    return {
        "task": "next behavior from past events alone; the target's own time and place are hidden",
        "split": split,
        "split_rule": store.manifest.split["rule"],
        "boundaries": store.manifest.split.get("boundaries"),
        "rows": "every event of the split with a known behavior and at least one earlier event of its user",
        "context": f"model: the last {config.max_length // 2} to {config.max_length} events; baselines: the whole past",
        "max_length": config.max_length,
        "classes": store.behaviors.classes,
        "prior_correction": prior_correction,
        "content_hash": store.manifest.content_hash,
    }


def _labels(store: EventStore) -> list[str]:
    return [str(value) for value in store.behaviors.values.to_pylist()]


def _write_per_behavior(path: Path, store: EventStore, scored: dict[str, PredictionMetrics]) -> None:
    columns = ("support", "predicted", "recall", "precision", "f1")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "behavior", "train_count", *columns])
    for name, metrics in scored.items():
        figures = metrics.per_class()
        for k, label in enumerate(_labels(store)):
            row = [f"{figures[c][k]:.6g}" for c in columns]
            writer.writerow([name, label, int(store.behaviors.counts[k]), *row])
    write_text(path, text.getvalue())


def _cumulative(show: Callable[[int, str], None]) -> Callable[[int], None]:
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        show(done, "")

    return step
