"""The decision rule of a trained model: what is subtracted from the logits before the best behavior
is taken.

Nothing by default; TAU * log(training frequency), the prior correction; or the model's own
per-class thresholds, learned on the validation split and kept in MODEL/thresholds.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behavegpt.checksums import put
from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.io import read_json, write_text
from behavegpt.metrics.ascent import Rows
from behavegpt.metrics.thresholds import CANDIDATES, Search, candidates, learn
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.options import DecisionOptions
from behavegpt.training.evaluate import score
from behavegpt.training.model_folder import DAMAGED
from behavegpt.training.settings import DecisionSettings

FILE = "thresholds.json"
FORMAT = 1
CELLS = 4_000_000  # candidates of all rows; of more rows, evenly spaced ones are read
LEARN = "learn them with `behavegpt thresholds MODEL DATA`, or train with decision.thresholds=true"


@dataclass(frozen=True)
class Thresholds:
    """A model's thresholds, and how they were learned."""

    values: np.ndarray  # (K,) float32, subtracted from the logits
    facts: dict[str, Any]  # objective, weight, figures on validation, ...


def log_frequency(counts: Any) -> torch.Tensor:
    """Logarithm of each class's share of the training counts (K,), one added to each, float32."""
    # one more event of each class: one that training never saw still has a logarithm
    smoothed = torch.tensor(np.asarray(counts), dtype=torch.float32) + 1
    return torch.log(smoothed / smoothed.sum())


def shift_of(
    options: DecisionOptions, log_prior: torch.Tensor, thresholds: Thresholds | None
) -> torch.Tensor:
    """What the rule subtracts from the logits, (K,). Raises ConfigError where the model has no
    thresholds."""
    # softmax(logits - tau log prior) is p / prior^tau: rare classes are lifted
    if not options.thresholds:
        return options.prior_correction * log_prior
    if thresholds is None:
        raise ConfigError(f"this model has no thresholds; {LEARN}.")
    return torch.from_numpy(thresholds.values)


def learn_thresholds(
    model: BehaveGPTForBehaviorPrediction, store: EventStore, settings: DecisionSettings
) -> Thresholds:
    """Thresholds of a model from the validation split of a prepared folder in its ids; the test
    split is not read.

    The mode of the model is restored. Raises DataError where validation holds no targets of two
    users.
    """
    scored = _validation_rows(model, store)
    # thresholds are checked on other users than they were learned on
    if scored is None or len(np.unique(scored.user)) < 2:
        raise DataError(
            f"{store.path}: thresholds are learned from validation targets of two users at least; "
            "prepare with another --split."
        )

    search = Search(settings.objective, settings.keep, settings.min_targets)
    learned = learn(scored, np.asarray(store.behaviors.counts), search)

    facts = {
        "objective": search.objective,
        "keep": search.keep,
        "min_targets": search.min_targets,
        "content_hash": store.manifest.content_hash,
        "rows": len(scored.target),
        "groups": learned.groups,
        "weight": learned.weight,
        "kept": learned.kept,
        "validation": learned.figures,
    }
    return Thresholds(learned.thresholds, facts)


def _validation_rows(model: BehaveGPTForBehaviorPrediction, store: EventStore) -> Rows | None:
    """The validation split's targets, scored; of very many, every n-th event."""
    split = SPLITS["valid"]
    # rounded up; each target keeps its CANDIDATES best classes
    every = -(-len(target_rows(store, split)) * CANDIDATES // CELLS)
    log_prior = log_frequency(store.behaviors.counts).to(model.device)
    parts: list[tuple[np.ndarray, ...]] = []

    with torch.no_grad():
        for batch in score(model, store, split):
            chosen = batch.row % max(every, 1) == 0  # (N,) bool
            row = batch.row[chosen].cpu().numpy()
            user = np.searchsorted(store.offsets, row, side="right") - 1
            target = batch.target[chosen].cpu().numpy()
            parts.append((*candidates(batch.logits[chosen], log_prior), target, user, row))

    if not parts:
        return None

    columns = [np.concatenate(values) for values in zip(*parts, strict=True)]
    order = np.argsort(columns.pop(), kind="stable")  # by row, however they were packed
    return Rows(*(values[order] for values in columns))


def save_thresholds(thresholds: Thresholds, tokenizer: EventTokenizer, folder: Path) -> None:
    """Write FOLDER/thresholds.json, beside a model's weights and known to its manifest."""
    put(folder, FILE, _text(thresholds, tokenizer))


def thresholds_of(
    store: EventStore, tokenizer: EventTokenizer, settings: DecisionSettings
) -> Callable[[BehaveGPTForBehaviorPrediction, Path], None]:
    """Learns the thresholds of a trained model and writes them, where the settings ask for it."""

    def write(model: BehaveGPTForBehaviorPrediction, folder: Path) -> None:
        if settings.thresholds:
            learned = learn_thresholds(model, store, settings)
            write_text(folder / FILE, _text(learned, tokenizer))

    return write


def load_thresholds(folder: Path, tokenizer: EventTokenizer) -> Thresholds | None:
    """What `save_thresholds` wrote; None where there is no such file. Raises CheckpointError when
    it is damaged, or of other labels."""
    path = folder / FILE
    if not path.is_file():
        return None

    remedy = "delete it; `behavegpt thresholds MODEL DATA` then learns others"
    facts = read_json(path, CheckpointError, remedy)
    values, known = facts.pop("thresholds", None), facts.pop("format", None)
    if known != FORMAT:
        raise CheckpointError(f"{path}: format {known!r} is not known to this version; {remedy}.")
    if facts.pop("tokenizer_hash", None) != tokenizer.hash:
        raise CheckpointError(f"{path}: of a model with other labels; {remedy}.")

    # a ragged or non-numeric list fails like one of the wrong length
    try:
        thresholds = np.array(values, np.float32)
    except (TypeError, ValueError):
        thresholds = np.zeros(0, np.float32)
    if thresholds.shape != (tokenizer.behaviors.classes,) or not np.isfinite(thresholds).all():
        raise CheckpointError(
            f"{path}: no list of {tokenizer.behaviors.classes} finite thresholds; {DAMAGED}."
        )
    return Thresholds(thresholds, facts)


def _text(thresholds: Thresholds, tokenizer: EventTokenizer) -> str:
    """thresholds.json: the facts, and the values to six decimals."""
    values = [round(float(value), 6) for value in thresholds.values]
    header = {"format": FORMAT, "tokenizer_hash": tokenizer.hash, **thresholds.facts}
    return json.dumps(header | {"thresholds": values}, indent=1, ensure_ascii=False) + "\n"
