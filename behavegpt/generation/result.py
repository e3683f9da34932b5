"""Generated: drawn futures in ids, and as a table with the columns of the log they continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.tabular import Tabular


@dataclass(frozen=True, repr=False)
class Generated(Tabular):
    """R generated events of U users, sorted by user, sample and step; each column (R,)."""

    users: pa.StringArray  # (U,) labels
    # user (index), sample, step, time (epoch seconds), gap (seconds), ids of the fields
    columns: dict[str, np.ndarray]
    top: np.ndarray  # (R, n) the most probable behaviors (classes), best first; n as asked for
    probability: np.ndarray  # (R, n) float32
    policies: dict[str, str]  # field -> how it was drawn
    settings: dict[str, Any]
    unknown: dict[str, int]  # field -> given events whose label the model never saw
    rejected: dict[str, int]  # reason -> given rows that could not be used
    tokenizer: EventTokenizer

    def __len__(self) -> int:
        return len(self.columns["time"])

    @classmethod
    def join(
        cls,
        parts: Sequence[Mapping[str, np.ndarray]],
        encoded: EncodedHistories,
        tokenizer: EventTokenizer,
        policies: dict[str, str],
        settings: dict[str, Any],
    ) -> Generated:
        """Put the steps of all batches together."""
        merged: dict[str, np.ndarray] = {}
        for name in parts[0]:
            merged[name] = np.concatenate([part[name] for part in parts])

        # rows are drawn step by step and end at different ones
        order = np.lexsort((merged["step"], merged["sample"], merged["user"]))
        columns = {name: values[order] for name, values in merged.items()}
        # no columns of them where no probabilities were asked for
        none = np.zeros((len(order), 0))
        top = columns.pop("top", none).astype(np.int64)
        probability = columns.pop("probability", none)

        return cls(
            encoded.users,
            columns,
            top,
            probability.astype(np.float32),
            policies,
            settings,
            encoded.unknown,
            encoded.rejected,
            tokenizer,
        )

    def to_table(self) -> pa.Table:
        """The events with the log's own column names, ready for `prepare`; `sample` too if there
        are several."""
        schema, columns = self.tokenizer.event_schema, self.columns
        microseconds = pa.array(columns["time"] * 1_000_000, pa.int64())
        times = microseconds.cast(pa.timestamp("us", tz=schema.tz))

        table: dict[str, Any] = {schema.user: self._users(), schema.time: times}
        for field, column in schema.label_columns.items():
            labels = self.tokenizer.vocabulary[field].decode_array(columns[field])
            table[column] = labels.cast(pa.float64()) if field in schema.numeric else labels
        if schema.order is not None:
            table[schema.order] = columns["step"]
        if self.settings["samples"] > 1:
            table["sample"] = columns["sample"]

        # how they were drawn goes with the table, also into a parquet file
        notes = {"policies": self.policies, "settings": self.settings}
        metadata = {f"behavegpt.{name}": str(value) for name, value in notes.items()}
        return pa.table(table).replace_schema_metadata(metadata)

    def probabilities_table(self) -> pa.Table:
        """Columns user, sample, step, rank (from 1), behavior, probability, before temperature and
        top-p."""
        count = self.top.shape[1]
        labels = self.tokenizer.labels(self.top).ravel()
        return pa.table(
            {
                "user": self._users().take(pa.array(np.repeat(np.arange(len(self)), count))),
                "sample": np.repeat(self.columns["sample"], count),
                "step": np.repeat(self.columns["step"], count),
                "rank": np.tile(np.arange(1, count + 1), len(self)),
                "behavior": pa.array(labels.tolist(), pa.string()),
                "probability": self.probability.ravel(),
            }
        )

    def _users(self) -> pa.StringArray:
        return self.users.take(pa.array(self.columns["user"]))
