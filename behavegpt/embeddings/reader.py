"""The users of a prepared folder as a model reads them: raw vectors, block by block.

Shapes: n users of a block, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from behavegpt.data.baskets import NUMBER
from behavegpt.data.reencode import schema_difference
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import PAD, UNKNOWN
from behavegpt.embeddings.pooling import BEHAVIORS, user_vectors
from behavegpt.errors import CheckpointError
from behavegpt.history_batches import memory_columns_of
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.sources import Logs, find_logs
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.paths import local_path
from behavegpt.ragged import ranges


@dataclass(frozen=True)
class Reader:
    """A model that reads users of a store."""

    model: BehaveGPTForBehaviorPrediction
    store: EventStore
    # field -> the model's id of each of the store's, where they differ
    lookup: Mapping[str, np.ndarray]
    pool: tuple[str, ...]
    half_life: float  # days

    @property
    def columns(self) -> set[str]:
        """What the model and pooling need."""
        baskets = {NUMBER} if self.model.config.baskets else set()
        return {*self.model.config.columns, *memory_columns_of(self.model), "time", *baskets}

    @property
    def reads_all(self) -> bool:
        """Whether a vector depends on events before the window: the probabilities of a model with
        memory do."""
        return self.model.counts is not None and BEHAVIORS in self.pool

    def vectors(self, users: np.ndarray) -> np.ndarray:
        """Vectors (n, D) float32 of users (n,); only the events that the model reads are taken
        up."""
        store = self.store
        end = store.offsets[users + 1]
        length = end - store.offsets[users]
        # of baskets all: how many events the last ones hold differs from user to user
        if not self.reads_all and not self.model.config.baskets:
            length = np.minimum(length, self.model.config.max_length)
        # flat indices of the events that are read, user by user
        source = ranges(end - length, length)

        columns = {}
        for name in self.columns:
            # the store keeps one column where events are the behaviors
            stored = "event" if name == "behavior" and store.schema.behavior_is_event else name
            values = store.columns.get(stored)
            # a field that the data lack is unknown at each event
            ids = np.full(len(source), UNKNOWN, np.uint8) if values is None else values[source]
            columns[name] = self.lookup[stored][ids] if stored in self.lookup else ids
        if self.model.counts is not None:  # what was counted before is told by the date
            columns["time"] = columns["time"].astype(np.int64) + store.manifest.time_origin

        after = np.cumsum(length)
        return self._pooled(columns, after - length, after)

    def empty_history(self) -> np.ndarray:
        """Vector (D,) of a history of one unknown event at the time of the store's last one."""
        stored = self.store.columns
        last = int(np.argmax(stored["time"]))
        columns = {name: np.full(1, UNKNOWN) for name in self.columns}
        for name in ("time", "weekday", "slot"):  # those of the clock
            if name in columns:
                columns[name] = stored[name][last : last + 1]

        one = np.ones(1, np.int64)
        return self._pooled(columns, one - 1, one)[0]

    def _pooled(
        self, columns: Mapping[str, np.ndarray], begin: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        """Vectors of the histories begin:end (n,) of columns in the model's ids."""
        return user_vectors(self.model, columns, begin, end, self.pool, self.half_life)


def open_events(
    events: Sequence[str | Path] | Logs, tokenizer: EventTokenizer, work: Path, state: PartialState
) -> EventStore:
    """The prepared folder `events`, or raw logs prepared by the model's schema; they need not tell
    the behavior."""
    schema = tokenizer.event_schema
    prepared = _prepared_folder(events)
    if prepared is None:
        prepared = work / "events"
        logs = find_logs(events)
        # a vector knows the past alone, for which events are enough
        if schema.behavior and not logs.has(schema.behavior):
            schema = schema.model_copy(update={"behavior": None})
        tokenizer.warn_of_features()
        # without a table the users' features are unknown, as a field that data lack is
        features = schema.features if tokenizer.users is not None else ()
        # numbers as labels, which the model's own ranges take up exactly
        extra = (*schema.extra, *schema.numeric)
        read = {"extra": extra, "numeric": (), "user_features": features, "user_numeric": ()}
        schema = schema.model_copy(update=read)
        if state.is_main_process and not (prepared / "dataset.json").is_file():
            # all of it as training data: nothing is predicted here, so nothing is held out
            prepare(logs, prepared, schema, split="time:1,0,0", users=tokenizer.users)
        state.wait_for_everyone()

    store = open_store(prepared)
    # which columns were events and behaviors is of no matter to a vector
    classes = {name: getattr(store.schema, name) for name in ("event", "behavior")}
    lines = schema_difference(schema.model_copy(update=classes), store.schema)
    if lines:
        raise CheckpointError(
            f"{prepared}: not the kind of data this model reads: {'; '.join(lines)}. Prepare the "
            "logs by the model's schema (event_schema in its preprocessor_config.json), or give "
            "the raw logs."
        )
    return store


def _prepared_folder(events: Sequence[str | Path] | Logs) -> Path | None:
    """The prepared folder that is named; None where logs are."""
    if isinstance(events, Logs) or len(events) != 1:
        return None
    folder = local_path(events[0])
    return folder if (folder / "dataset.json").is_file() else None


def lookups_of(store: EventStore, tokenizer: EventTokenizer) -> dict[str, np.ndarray]:
    """For each field whose ids differ: the model's id of each of the store's, by label."""
    lookups = {}
    for field, ours in tokenizer.vocabulary.items():
        theirs = store.vocabulary.get(field)
        if theirs is not None and ours.hash != theirs.hash:
            lookups[field] = np.concatenate([[PAD, UNKNOWN], ours.encode(theirs.values)])
    return lookups
