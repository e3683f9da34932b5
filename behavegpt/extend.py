"""Behaviors that a trained model did not know, appended without training.

Rows of new labels are those that `finetune --mode new_behavior` begins with; the frequencies know
them as never seen. A model with memory or a history head predicts them as soon as a history holds
them; without either they wait for `finetune`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from behavegpt import decision
from behavegpt.adapt.cross_domain import target_config
from behavegpt.adapt.mode_table import cells
from behavegpt.adapt.settings import AdaptSettings
from behavegpt.adapt.transfer import apply_transfer, plan_transfer
from behavegpt.data.memory_tables import with_classes
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST, UNKNOWN
from behavegpt.errors import ConfigError
from behavegpt.filters import as_labels
from behavegpt.generation import constraints
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.timing.files import load_gaps, save_gaps
from behavegpt.trained_folder import model_folder
from behavegpt.training.model_folder import open_model, save_model

LEFT = (decision.FILE, constraints.FILE)  # beside the model, and learned for the old behaviors


def add_behaviors(model: str | Path, labels: Collection[object], out: Path) -> dict[str, Any]:
    """Write the model of a folder to `out` with these behaviors behind those it knows; retired ones
    among them are predicted again.

    Returns how many are `added`, are `back` and were `known`, and what beside the model was `left`.
    Raises ConfigError for labels that it predicts already, and for baselines, CheckpointError for
    no model folder.
    """
    folder = model_folder(model)
    # the vocabulary as it was trained, with retired behaviors
    trained, old = open_model(folder)
    if trained.config.model_type != BehaveGPTConfig.model_type:
        raise ConfigError(
            f"{folder}: a {trained.config.architecture}; behaviors can be added only to a "
            "BehaveGPT. Train the baseline again."
        )

    new, back = _sorted(labels, old, trained)
    tokenizer = _grown(old, new)
    extended = _extended(trained, old, tokenizer) if new else trained
    # a retired behavior has kept its row and its counts: taking it off the list is all
    kept = [number for number in trained.config.retired or () if number not in back]
    extended.config.retired = kept or None

    def add_times(_: Any, place: Path) -> None:
        gaps = load_gaps(folder, old)
        if gaps is not None:
            # nothing is known of what follows a new behavior: the mean of all gaps
            label = np.append(gaps.label, np.zeros(len(new)))
            save_gaps(replace(gaps, label=label), tokenizer, place)

    save_model(extended, tokenizer, out, add_times)
    left = [name for name in LEFT if (folder / name).is_file()]
    known = old.behaviors.classes
    return {"added": len(new), "back": len(back), "known": known, "left": left}


def _sorted(
    labels: Collection[object], old: EventTokenizer, trained: BehaveGPTForBehaviorPrediction
) -> tuple[list[str], set[int]]:
    """Labels that are new, and classes that were retired. Raises ConfigError for others."""
    texts = list(dict.fromkeys(as_labels(labels, old)))
    # through the vocabulary: a label that it maps to unknown is one that it does not hold
    ids = old.behaviors.encode(texts)
    retired = set(trained.config.retired or ())
    new, back = [], set()

    for text, number in zip(texts, (ids - FIRST).tolist(), strict=True):
        if not text or not text.strip():
            raise ConfigError("add: an empty label is not a behavior; remove it.")
        if number == UNKNOWN - FIRST:
            new.append(text)
        elif number in retired:
            back.add(number)
        else:
            raise ConfigError(f"add: the model already predicts {text[:100]!r}; remove it.")
    return new, back


def _grown(old: EventTokenizer, new: list[str]) -> EventTokenizer:
    """The tokenizer with new behaviors."""
    field = "event" if old.event_schema.behavior_is_event else "behavior"
    grown = {**old.vocabulary, field: old.vocabulary[field].grow(new)}
    return EventTokenizer(old.event_schema, grown, old.max_length)


def _extended(
    base: BehaveGPTForBehaviorPrediction, old: EventTokenizer, tokenizer: EventTokenizer
) -> BehaveGPTForBehaviorPrediction:
    """The model for more behaviors: what is known row by row, the rest as of a new model."""
    # rows of new labels are drawn: the same labels give the same ones
    torch.manual_seed(0)
    config = target_config(base.config, tokenizer, None, base.config.user_features or ())
    model = BehaveGPTForBehaviorPrediction(config)
    counts = torch.tensor(tokenizer.behaviors.counts)
    model.set_prior(counts)

    weights = base.state_dict()
    # the same table of parts as fine-tuning has: one rule for what is copied
    row = cells("new_behavior", AdaptSettings(), grow=True)
    apply_transfer(plan_transfer(row, weights, old, tokenizer, model), weights, model)
    if base.counts is not None:
        more = tokenizer.behaviors.classes - old.behaviors.classes
        tables = with_classes(base.counts.tables, int(old.behaviors.counts.sum()), more)
        model.counts = base.counts._replace(tables=tables)
    return model
