"""From raw events to the inputs of an exported model (`export_model`), without torch.

>>> import onnxruntime                                                          # doctest: +SKIP
>>> from behavegpt.graph_inputs import GraphInputs                              # doctest: +SKIP
>>> graph = onnxruntime.InferenceSession("portable/model.onnx")                 # doctest: +SKIP
>>> inputs = GraphInputs("portable")                                            # doctest: +SKIP
>>> users, feed = inputs.of("my_logs.csv")                                      # doctest: +SKIP
>>> logits, vectors = graph.run(None, feed)                                     # doctest: +SKIP
>>> inputs.labels(logits, top_k=3)                                              # doctest: +SKIP

Shapes: B rows, L events, M candidates of all rows, K classes, J experts with their mixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.data.memory_counts import history_source
from behavegpt.data.memory_files import FILE, load_counts
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import CheckpointError
from behavegpt.ingest.histories import EventData, encode_histories
from behavegpt.io import read_json
from behavegpt.paths import local_path

FACTS = "io.json"
MASK = "attention_mask"
PREFIX = "memory_"


class Input(NamedTuple):
    """Shape and type of an input of the graph."""

    axes: tuple[str, ...]
    dtype: str


# what the counts say at each row's last event, of a model with memory; the fields of
# model/mixer.py's Memory, in their order. Candidates stand row by row.
_MEMORY = (
    ("owner", ("candidates",), "int64"),  # row of each candidate, ascending
    ("classes", ("candidates",), "int64"),  # each once a row
    ("probability", ("candidates", "experts"), "float32"),  # the mixture is the last expert
    # events and seconds since the class last occurred, -1 for never
    ("age", ("candidates", "age"), "float32"),
    # any other class b has the probability rest * prior(b)
    ("rest", ("rows", "experts"), "float32"),
    ("evidence", ("rows", "counts"), "float32"),  # events behind each expert
    # mean log-probability of what came so far; last: how many events judge, at most 12.5
    ("reliability", ("rows", "experts"), "float32"),
    # events, classes, half hour of the day, weekday, seconds since the event before
    ("context", ("rows", "context"), "float32"),
)
MEMORY = {PREFIX + name: Input(axes, dtype) for name, axes, dtype in _MEMORY}


class Batch(NamedTuple):
    """Inputs of a graph, and whose rows they are."""

    users: pa.StringArray  # (B,)
    feed: dict[str, np.ndarray]


class GraphInputs:
    """Makes the inputs of the graph in a folder that `export_model` wrote."""

    def __init__(self, folder: str | Path) -> None:
        """Raises CheckpointError where the folder is none of these."""
        path = local_path(folder)
        remedy = "give a folder that `behavegpt export-model` wrote"
        facts: dict[str, Any] = read_json(path / FACTS, CheckpointError, remedy)

        self.names = [name for name in facts["inputs"] if name not in (MASK, *MEMORY)]
        self.looks_back = int(facts["looks_back"])

        self.tokenizer = EventTokenizer.from_pretrained(str(path), local_files_only=True)
        if self.tokenizer.hash != facts["tokenizer_hash"]:
            raise CheckpointError(f"{path}: {FACTS} is that of another vocabulary; {remedy}.")

        self.counts = load_counts(path) if (path / FILE).is_file() else None

    def of(self, events: EventData | EncodedHistories, users: EventData | None = None) -> Batch:
        """A row for each user of raw events, as `Predictor.predict` takes them; `users`: the table
        of what is known of them, as for `Predictor.with_features`. Raises DataError."""
        tokenizer = self.tokenizer if users is None else self.tokenizer.with_features(users)
        encoded = encode_histories(tokenizer, events)
        begin, end = encoded.offsets[:-1], encoded.offsets[1:]
        length = np.minimum(end - begin, self.looks_back)  # (B,)

        # the last events of each user from the left; behind them, masked, the last one repeated
        place = np.arange(int(length.max()))
        mask = place < length[:, None]  # (B, L)
        index = np.minimum((end - length)[:, None] + place, end[:, None] - 1)

        feed = {name: encoded.columns[_field(name)][index] * mask for name in self.names}
        feed[MASK] = mask
        feed = {name: values.astype(np.int64) for name, values in feed.items()}
        if self.counts is not None:
            # of the whole histories, not of the last events alone
            source = history_source(encoded.columns, encoded.offsets, self.counts)
            arrays = source.arrays(end - 1)
            feed |= {name: arrays[name.removeprefix(PREFIX)] for name in MEMORY}
        return Batch(encoded.users, feed)

    def labels(self, logits: np.ndarray, top_k: int = 5) -> np.ndarray:
        """The `top_k` most probable behaviors (B, top_k) of logits (B, K), as labels."""
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        return self.tokenizer.labels(order)


def _field(name: str) -> str:
    """The column that an input of the graph takes: `slot` of `slot_ids`."""
    return "event" if name == "input_ids" else name.removesuffix("_ids")
