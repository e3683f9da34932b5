"""A prepared folder read with another vocabulary: ids are mapped by label when the columns are
opened.

The folder stays as it is, and so serves any number of models. Labels that the other vocabulary does
not hold become unknown; a field that the folder lacks is constantly unknown, without taking memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.bins import Bins
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST, PAD, UNKNOWN, Vocabulary
from behavegpt.errors import CheckpointError

EXAMPLES = 3
RULES = ("input_fields", "features", "slot_minutes", "tz", "behavior_is_event", "has_baskets")


def reencode(store: EventStore, vocabulary: Mapping[str, Vocabulary]) -> EventStore:
    """The store with the ids of `vocabulary`; counts are those of the store's training events."""
    # the store itself stays as it is: its columns are mapped, and others may read them
    columns, counted = dict(store.columns), {}
    for field, target in vocabulary.items():
        ours = store.vocabulary.get(field)
        if ours is None:  # one value for every event, in the memory of one
            columns[field] = np.broadcast_to(np.uint8(UNKNOWN), (store.manifest.events,))
            counted[field] = replace_counts(target, np.zeros(target.classes, np.int64))
            continue
        if ours.hash != target.hash:
            # id in the folder -> id of the model; labels that the model lacks become unknown
            lookup = np.concatenate([[PAD, UNKNOWN], target.encode(ours.values)])
            lookup = lookup.astype(np.min_scalar_type(len(target) - 1))
            columns[field] = lookup[store.columns[field]]
        # the folder's own, under the model's ids: what DRO and priors need
        counts = training_counts(columns[field], columns["split"], len(target))
        counted[field] = replace_counts(target, counts)

    manifest = store.manifest.model_copy(
        update={
            "vocabulary": {field: v.hash for field, v in counted.items()},
            "columns": {name: str(column.dtype) for name, column in columns.items()},
        }
    )

    return replace(store, manifest=manifest, vocabulary=counted, columns=columns)


def training_counts(column: np.ndarray, split: np.ndarray, ids: int) -> np.ndarray:
    """Training events of each label (ids - FIRST,) int64 of a column (events,)."""
    return np.bincount(column[np.asarray(split) == TRAIN], minlength=ids)[FIRST:].astype(np.int64)


def replace_counts(vocabulary: Vocabulary, counts: np.ndarray) -> Vocabulary:
    """The same labels with other counts."""
    return replace(vocabulary, counts=counts)


def fit_store(store: EventStore, tokenizer: EventTokenizer) -> EventStore:
    """The store in a model's ids, if the model knows all its labels and reads times the same way.

    Raises CheckpointError with the difference, and how to adapt the model, otherwise.
    """
    # all differences at once, so that one reading of the error is enough
    lines = schema_difference(tokenizer.event_schema, store.schema)
    for field, ours in store.vocabulary.items():
        known = tokenizer.vocabulary.get(field)
        if known is not None and (new := new_labels(known, ours)):
            lines.append(
                f"{field}: {_examples(new)} unknown to the model, which knows {known.classes:,}"
            )

    # a field of the model that the data lack, unless the model never used it
    lines += [
        f"{field}: {known.classes:,} labels in the model, none in the data"
        for field, known in tokenizer.vocabulary.items()
        if field not in store.vocabulary and known.classes
    ]

    if lines:
        remedy = (
            "Adapt the model: behavegpt finetune adapt/new_behavior "
            f"base=MODEL data.path={store.path} out=RUN (adapt/cross_domain for another "
            "domain); or predict from raw logs with `behavegpt predict`."
        )
        # events become no baskets by fine-tuning
        if tokenizer.event_schema.has_baskets != store.schema.has_baskets:
            what = "with" if tokenizer.event_schema.has_baskets else "without"
            remedy = f"Prepare the data {what} --group for this model."
        raise CheckpointError(
            f"{store.path} does not match the schema this model was trained with: "
            f"{'; '.join(lines)}. {remedy}"
        )

    hashes = {field: v.hash for field, v in tokenizer.vocabulary.items()}
    same = hashes == dict(store.manifest.vocabulary)
    return store if same else reencode(store, tokenizer.vocabulary)


def schema_difference(ours: EventSchema, theirs: EventSchema) -> list[str]:
    """What a model's ids and the data's do not share beside the labels."""
    return [
        f"{name}: {getattr(ours, name)} in the model, {getattr(theirs, name)} in the data"
        for name in RULES
        if getattr(ours, name) != getattr(theirs, name)
    ]


def new_labels(known: Vocabulary, other: Vocabulary) -> list[str]:
    """Labels of `other`, in its order, that `known` does not hold."""
    if isinstance(known, Bins):
        return []  # every number has a range
    new = pc.invert(pc.is_in(other.values, value_set=known.values))
    return other.values.filter(new).to_pylist()


def empty_vocabulary() -> Vocabulary:
    """The vocabulary of a field that the data lack: padding and unknown alone."""
    return Vocabulary(pa.array([], pa.string()), np.zeros(0, np.int64))


def _examples(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:EXAMPLES])
    return f"{len(labels):,} labels ({shown}{', …' if len(labels) > EXAMPLES else ''})"
