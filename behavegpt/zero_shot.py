"""Predictions on a log that nothing was trained on: the universal model, with tables counted from that log.

>>> import behavegpt                                                            # doctest: +SKIP
>>> model = behavegpt.load("universal").fit_tables("my_logs.parquet")           # doctest: +SKIP
>>> model.predict().to_table()                                                  # doctest: +SKIP
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch

from behavegpt.config import check_settings
from behavegpt.data.events import read_events
from behavegpt.data.guess import guess_schema
from behavegpt.data.memory_tables import memory_columns
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.options import PredictOptions
from behavegpt.predictions import Predictions, most_probable
from behavegpt.universal.model import UniversalModel, load_universal
from behavegpt.universal.reader import MemoryReader, make_reader

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor

UNIVERSAL = "universal"  # the name that stands for the shipped weights


def is_universal(name: str | Path) -> bool:
    """Whether a model's name means the shipped weights: `universal`, or a folder of others of the kind."""
    path = Path(name)
    return (str(name) == UNIVERSAL and not path.is_dir()) or (path / "universal.json").is_file()


def load(folder: str | Path, device: str | torch.device | None = None) -> Predictor | UniversalPredictor:
    """Open a model folder (see `predictor.load`), or the universal model by its name, `universal`."""
    if is_universal(folder):
        return load_zero_shot(folder)
    from behavegpt.predictor import load as load_trained  # takes seconds to import

    return load_trained(folder, device)


def load_zero_shot(name: str | Path = UNIVERSAL) -> UniversalPredictor:
    """The universal model by name or folder; it predicts once it has counted a log."""
    path = Path(name)
    return UniversalPredictor(load_universal(path) if path.is_dir() else load_universal())


@dataclass(frozen=True)
class UniversalPredictor:
    """The universal model, and what was counted from a log: its labels and tables."""

    model: UniversalModel
    tokenizer: EventTokenizer | None = None
    reader: MemoryReader | None = None  # of the log, with its tables
    counted: EncodedHistories | None = None  # the log itself

    def fit_tables(self, logs: Any, schema: EventSchema | None = None, **settings: Any) -> UniversalPredictor:
        """Count a log: files, a DataFrame, an Arrow table or a mapping of columns, all of it past.

        Columns are guessed where neither `schema` nor `settings` of EventSchema (user="uid", tz="Europe/London", ...)
        name them. Raises DataError.
        """
        schema = schema or guess_schema(logs, settings)[0]
        read = read_events(logs, schema)
        rejected = collections.Counter(read.rejects["reason"].to_pylist())
        if not len(read.table):
            reasons = ", ".join(f"{n} rows: {reason}" for reason, n in rejected.items()) or "no rows"
            raise DataError(f"no usable event to count ({reasons}).")
        vocabulary = {}
        for field in schema.label_columns:
            counts = pc.value_counts(read.table[field].drop_null().combine_chunks())
            vocabulary[field] = Vocabulary.from_counts(counts.field("values"), counts.field("counts"))
        tokenizer = EventTokenizer(schema, vocabulary)
        encoded = tokenizer.encode_table(read.table, rejected)
        columns = memory_columns(encoded.columns, schema.slot_minutes)
        used = np.ones(len(columns.time), bool)
        reader = make_reader(columns, encoded.offsets, used, tokenizer.behaviors.classes)
        return UniversalPredictor(self.model, tokenizer, reader, encoded)

    def predict(
        self,
        events: Any = None,
        top_k: int = 5,
        prior_correction: float = 0.0,
        on_user: Callable[[int, int], None] | None = None,
    ) -> Predictions:
        """The `top_k` most probable next behaviors of each user; arguments as in `Predictor.predict`.

        `events`: histories with the columns of the counted log, None for that log itself. Where nothing was counted
        yet, the tables come from `events`.
        """
        if self.tokenizer is None or self.reader is None or self.counted is None:
            return self.fit_tables(events).predict(None, top_k, prior_correction, on_user)
        asked = check_settings(PredictOptions, {"top_k": top_k, "prior_correction": prior_correction}, "predict")
        encoded, reader = self.counted, self.reader
        if events is not None:
            encoded = self.tokenizer.encode(events)
            columns = memory_columns(encoded.columns, self.tokenizer.event_schema.slot_minutes)
            reader = replace(reader, columns=columns, offsets=encoded.offsets)
        scored = self.model.score(reader, encoded.offsets[1:] - 1)
        pieces = ((np.searchsorted(encoded.offsets, at, side="right") - 1, logits) for at, logits in scored)
        log_prior = torch.log(torch.from_numpy(reader.tables.prior))
        return most_probable(pieces, self.tokenizer, encoded, asked, log_prior, on_user)
