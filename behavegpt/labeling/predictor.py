"""What a model with a label head says of users.

>>> import behavegpt                                                            # doctest: +SKIP
>>> model = behavegpt.load_label("runs/churn/model")                            # doctest: +SKIP
>>> model.predict("shop.parquet", at="2011-11-01").to_pandas()                  # doctest: +SKIP

Shapes: U users, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.devices import choose_device
from behavegpt.errors import CheckpointError, DataError
from behavegpt.ingest.asked import seconds_of
from behavegpt.ingest.histories import EventData, as_logs, rows_as_columns
from behavegpt.labeling.folder import holds_label_model, label_folder
from behavegpt.labeling.train import Examples, outputs
from behavegpt.model.label import BehaveGPTForUserLabels
from behavegpt.probing.features import aggregates
from behavegpt.probing.past import MICROS, Past, shown
from behavegpt.tabular import Tabular
from behavegpt.training.model_folder import WEIGHTS, check_files, read_pretrained


@dataclass(frozen=True, repr=False)
class UserLabels(Tabular):
    """What is said of U users."""

    users: pa.StringArray  # (U,)
    label: str
    classes: tuple[str, ...]  # empty for numbers
    values: np.ndarray  # (U, K) probabilities, or (U, 1) numbers
    at: int  # epoch seconds; all events that were looked at are earlier
    unknown: Mapping[str, int]  # events whose label the model does not know, by field
    rejected: Mapping[str, int]  # rows that could not be read, by reason

    def __len__(self) -> int:
        return len(self.users)

    def to_table(self) -> pa.Table:
        """Columns user and the label: a number, or the most probable class, then `p(CLASS)` of
        each."""
        columns: dict[str, Any] = {"user": self.users}
        if not self.classes:
            return pa.table(columns | {self.label: self.values[:, 0]})
        # object: numpy's texts would be as wide as the longest class
        best = np.array(self.classes, object)[self.values.argmax(1)]
        columns[self.label] = pa.array(best, pa.string())
        shares = zip(self.classes, self.values.T, strict=True)
        return pa.table(columns | {f"p({name})": share for name, share in shares})


class LabelPredictor:
    """A model with a label head and its tokenizer."""

    def __init__(self, model: BehaveGPTForUserLabels, tokenizer: EventTokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def reading(self, columns: Mapping[str, Any]) -> LabelPredictor:
        """The predictor of logs whose columns differ from the training log's."""
        return LabelPredictor(self.model, self.tokenizer.reading(columns))

    def with_features(self, users: EventData) -> LabelPredictor:
        """The predictor that knows what a table says of the users, as Predictor.with_features."""
        return LabelPredictor(self.model, self.tokenizer.with_features(users))

    def predict(
        self, events: EventData, *, at: Any = None, columns: Mapping[str, Any] | None = None
    ) -> UserLabels:
        """What is said of each user with an event before `at`, a time or a date of the log's zone;
        by default all events count.

        `events`: files, a table, a mapping of columns or a list of rows; `columns`: how they differ
        from the model's, such as {"user": "uid"}. Raises DataError without any event.
        """
        if columns:
            return self.reading(columns).predict(events, at=at)
        tokenizer = self.tokenizer
        schema = tokenizer.event_schema

        moment = None if at is None else seconds_of(at, schema)
        rows: Any = events
        # rows as a web service has them; all readers take columns
        if isinstance(rows, (list, tuple)) and rows and isinstance(rows[0], Mapping):
            rows = rows_as_columns(rows)
        # as a table, not in ids: aggregates count events of unknown labels too
        read = tokenizer.read(as_logs(rows, schema))
        table, rejected = read.table, Counter(read.rejects["reason"].to_pylist())
        if moment is None and len(table):
            # a second behind the last event: aggregates tell how long ago it was
            moment = pc.max(table["time"]).as_py() // MICROS + 1

        before = table if moment is None else table.filter(pc.less(table["time"], moment * MICROS))
        if moment is None or not len(before):
            when = "at all" if moment is None else f"before {shown(moment)}"
            raise DataError(f"the log has no usable event {when}; name a later date.")
        # without a predictor: a label head asks for no vectors of another model
        past = Past(before, tokenizer.encode_table(before, rejected), None, moment)
        said = outputs(self.model, Examples(past.encoded, aggregates(past, schema)))
        config, encoded = self.model.config, past.encoded
        classes = tuple(config.classes or ())
        return UserLabels(
            *(encoded.users, config.label, classes, said, moment, encoded.unknown),
            encoded.rejected,
        )


def load_label(folder: str | Path, device: str | torch.device | None = None) -> LabelPredictor:
    """Open the folder that `finetune_label` wrote, or its `model`. Raises CheckpointError."""
    path = label_folder(folder)
    check_files(
        path, ("config.json", WEIGHTS, "preprocessor_config.json"), "a label model's folder"
    )
    if not holds_label_model(path):
        raise CheckpointError(
            f"{path}: not a model with a label head; open it with behavegpt.load."
        )

    model, tokenizer = read_pretrained(BehaveGPTForUserLabels, path)
    torch.nn.Module.to(model, choose_device(device))
    return LabelPredictor(model, tokenizer)
