"""EventTokenizer: schema and vocabularies that travel with a model, from raw labels to ids and
back."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.bins import vocabulary_type
from behavegpt.data.label_texts import infer_rules
from behavegpt.data.labels import TEXT
from behavegpt.data.schema import EventSchema, renamed
from behavegpt.data.store import EventStore
from behavegpt.data.times import DAY, zone
from behavegpt.data.vocabulary import UNKNOWN, Vocabulary
from behavegpt.errors import ConfigError
from behavegpt.ingest.events import Events, read_events
from behavegpt.ingest.sources import Logs, check_columns, find_logs
from behavegpt.ingest.user_table import UserTable, read_user_table

TOKENIZER_FILE = "preprocessor_config.json"
_DATES = 10  # events all at midnight that are taken for dates without times


@dataclass(frozen=True)
class EncodedHistories:
    """Histories of U users as flat columns; user u owns events `offsets[u]:offsets[u + 1]`."""

    users: pa.StringArray  # (U,) labels, sorted
    offsets: np.ndarray  # (U + 1,) int64
    # field ids, `behavior`, `time` (epoch seconds), each (events,) int64
    columns: dict[str, np.ndarray]
    unknown: dict[str, int]  # field -> events whose label the vocabulary does not hold
    rejected: dict[str, int]  # reason -> rows left out


class EventTokenizer:
    """Schema + vocabulary in the checkpoint folder (preprocessor_config.json), found by
    AutoFeatureExtractor.

    It has what transformers asks of a feature extractor without being made of one: to import
    transformers takes longer than a prediction of the universal model, which needs no more of it.
    """

    model_input_names = ["input_ids", "weekday_ids", "slot_ids", "location_ids", "attention_mask"]

    def __init__(
        self,
        event_schema: dict[str, Any] | EventSchema,
        vocabulary: dict[str, Any],
        max_length: int = 90,
        users: UserTable | None = None,
    ) -> None:
        """`vocabulary` maps each field to a Vocabulary or to {"values": [...], "counts": [...]} in
        id order; `users` is what is known of the users, which is not saved."""
        self.event_schema = (
            event_schema
            if isinstance(event_schema, EventSchema)
            else EventSchema.model_validate(event_schema)
        )

        # lists where it comes from JSON, vocabularies where it comes from a store
        self.vocabulary = {
            name: v
            if isinstance(v, Vocabulary)
            else vocabulary_type(self.event_schema, name)(
                pa.array(v["values"], pa.string()), np.asarray(v["counts"], np.int64)
            )
            for name, v in vocabulary.items()
        }

        missing = self.vocabulary.keys() - self.event_schema.label_rules.keys()
        if missing:  # made before rules were stored
            inferred = infer_rules({name: self.vocabulary[name].values for name in sorted(missing)})
            rules = inferred | self.event_schema.label_rules
            self.event_schema = self.event_schema.model_copy(update={"label_rules": rules})

        self.max_length, self.users = max_length, users

    @classmethod
    def from_store(cls, store: EventStore, max_length: int) -> EventTokenizer:
        """The tokenizer of a prepared folder."""
        return cls(store.schema, dict(store.vocabulary), max_length)

    def reading(self, changes: Mapping[str, Any]) -> EventTokenizer:
        """The tokenizer for logs with other columns or forms of times, such as {"user": "uid"}; see
        `renamed`."""
        return self._with(event_schema=renamed(self.event_schema, changes))

    def with_features(self, users: Any) -> EventTokenizer:
        """The tokenizer that knows the features of users: files or a frame, one row for each, as
        `prepare --users` takes them. Raises ConfigError for a model that reads none, DataError."""
        if not self.event_schema.features:
            raise ConfigError(
                "the model reads no features of users; leave the table of users out, or train on "
                "data prepared with --users."
            )
        return self._with(users=read_user_table(users, self.event_schema))

    def _with(self, **changes: Any) -> EventTokenizer:
        """The same labels read otherwise."""
        schema = changes.get("event_schema", self.event_schema)
        users = changes.get("users", self.users)
        return EventTokenizer(schema, self.vocabulary, self.max_length, users)

    @cached_property
    def by_name(self) -> EventTokenizer:
        """The tokenizer that takes users' names literally, even where the model's log wrote 1.0 as
        1."""
        rules = {**self.event_schema.label_rules, "user": TEXT}
        schema = self.event_schema.model_copy(update={"label_rules": rules})
        return self._with(event_schema=schema)

    @property
    def behaviors(self) -> Vocabulary:
        """The vocabulary of the classes; class = id - FIRST."""
        return self.vocabulary["event" if self.event_schema.behavior_is_event else "behavior"]

    @property
    def hash(self) -> str:
        """SHA-256 of what gives ids their meaning: fields, slot length, zone and the labels in id
        order."""
        schema = self.event_schema

        # columns' names are left out: another log may call its user otherwise
        parts = [
            schema.input_fields,
            schema.slot_minutes,
            schema.tz,
            {n: v.hash for n, v in self.vocabulary.items()},
        ]
        # hashes of before, without them, stay what they are
        if schema.features:
            parts.append(schema.features)
        if schema.has_baskets:
            parts.append("baskets")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, events: Any, *, warn: bool = True) -> EncodedHistories:
        """Ids of raw events: a pandas or Arrow table, a mapping of columns, or files, with the
        schema's columns.

        Labels never seen in training become UNKNOWN and are counted. Unusable rows are left out and
        counted. `warn` of dates without a time of day.
        """
        read = self.read(events, warn=warn)
        return self.encode_table(
            read.table, collections.Counter(read.rejects["reason"].to_pylist())
        )

    def read(self, events: Any, *, warn: bool = True) -> Events:
        """The labels of raw events, before they become ids; arguments as for `encode`."""
        logs = find_logs(events)
        # fields that the log tells; the model's others are unknown throughout
        present = {
            field for field, column in self.event_schema.label_columns.items() if logs.has(column)
        }

        # a log need not tell the behavior: it is what is predicted
        if self.event_schema.group is not None:
            check_columns(logs, {"group": self.event_schema.group})
        needed = self.vocabulary.keys() - present - {"event", "behavior"}
        for name in sorted(needed):
            if name in self.event_schema.label_columns:
                check_columns(logs, {name: self.event_schema.label_columns[name]})

        read = read_events(logs, self.event_schema, fields=present)
        if warn:
            self._warn_of_dates(logs, read.table)
            self.warn_of_features()
        return read

    def warn_of_features(self) -> None:
        """Warn where the model reads features of users and none are given."""
        if self.event_schema.features and self.users is None:
            warnings.warn(
                f"the model reads {', '.join(self.event_schema.features)} of each user; without a "
                "table of users (--users TABLE, in Python with_features) all are unknown.",
                stacklevel=4,
            )

    def _warn_of_dates(self, logs: Logs, table: pa.Table) -> None:
        """Warn where a log of dates alone would put all events into the first slot of the day."""
        seconds = table["time"].to_numpy() // 1_000_000

        walls = zone(self.event_schema.tz).wall(seconds)  # (E,)
        if self.event_schema.slots > 1 and len(table) >= _DATES and not (walls % DAY).any():
            warnings.warn(
                f"{logs.name}: all {len(table):,} times are at midnight, but the model tells slots "
                "of the day apart; if a column holds the time of day, join it: --time "
                f"{self.event_schema.time}+COLUMN.",
                stacklevel=4,
            )

    def encode_table(
        self, table: pa.Table, rejected: Mapping[str, int] | None = None
    ) -> EncodedHistories:
        """Ids of what `read_events` gives; a field without a column is unknown throughout."""
        users = pc.run_end_encode(table["user"].combine_chunks())  # sorted by user: one run each
        offsets = np.concatenate([[0], users.run_ends.to_numpy()]).astype(np.int64)  # (U + 1,)
        labels = users.values.cast(pa.string())  # (U,)
        features = {} if self.users is None else self.users.of(labels)

        columns: dict[str, np.ndarray] = {}
        unknown = {}
        for name, vocabulary in self.vocabulary.items():
            if name in features:
                columns[name] = np.repeat(vocabulary.encode(features[name]), np.diff(offsets))
            elif name in table.column_names:
                columns[name] = vocabulary.encode(table[name])
            else:
                columns[name] = np.full(len(table), UNKNOWN, np.int64)
            # of a field that this domain lacks, all is unknown: no news
            if name in features or name in self.event_schema.label_columns:
                unknown[name] = int((columns[name] == UNKNOWN).sum())

        columns.setdefault("behavior", columns["event"])
        baskets = ("basket",) if self.event_schema.has_baskets else ()
        for name in ("weekday", "slot", *baskets):
            columns[name] = table[name].to_numpy().astype(np.int64)
        # microseconds -> seconds, as a store keeps them
        columns["time"] = table["time"].to_numpy() // 1_000_000

        return EncodedHistories(labels, offsets, columns, unknown, dict(rejected or {}))

    def labels(self, classes: np.ndarray) -> np.ndarray:
        """Behavior labels (object array of the same shape) of classes."""
        return np.asarray(self.behaviors.values.to_numpy(False), dtype=object)[classes]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state; labels are lists in id order, so that no key changes its type."""
        return {
            "feature_extractor_type": type(self).__name__,
            "event_schema": self.event_schema.model_dump(mode="json"),
            "vocabulary": {
                name: {
                    "values": vocabulary.values.to_pylist(),
                    "counts": vocabulary.counts.tolist(),
                }
                for name, vocabulary in self.vocabulary.items()
            },
            "max_length": self.max_length,
        }

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {v.classes}" for name, v in self.vocabulary.items())
        return f"EventTokenizer({sizes}; max_length={self.max_length}, tz={self.event_schema.tz})"

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json into a folder; `from_pretrained` reads it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (Path(folder) / TOKENIZER_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], **options: Any) -> Any:
        """The tokenizer of `to_dict`'s answer; the pair of it and {} with
        `return_unused_kwargs`."""
        known = ("event_schema", "vocabulary", "max_length")
        tokenizer = cls(**{name: state[name] for name in known if name in state})
        return (tokenizer, {}) if options.get("return_unused_kwargs") else tokenizer

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> EventTokenizer:
        """The tokenizer of a model folder, or of a model on the Hub by its name; `options` of the
        download such as `revision`, `local_files_only`."""
        file = Path(name) / TOKENIZER_FILE
        if file.is_file():
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))

        from transformers import FeatureExtractionMixin

        state, _ = FeatureExtractionMixin.get_feature_extractor_dict(name, **options)
        return cls.from_dict(state)

    save_pretrained = save
