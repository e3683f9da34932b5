"""Predictor: raw labels in, labels and probabilities out, for any histories and any number of users.

>>> import behavegpt                                                            # doctest: +SKIP
>>> model = behavegpt.load("runs/demo/model")                                   # doctest: +SKIP
>>> model.predict("my_logs.parquet", top_k=3).to_table()                        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from behavegpt.adapt.generate import GenerationSettings, roll_out
from behavegpt.adapt.generated import Generated
from behavegpt.adapt.links import Links, load_links
from behavegpt.baselines import network as _baselines  # noqa: F401 - so that their folders open too
from behavegpt.batch import PADDING, PackedBatch
from behavegpt.config import read_settings
from behavegpt.data.frames import Frame, as_frame
from behavegpt.data.loader import row_length_for
from behavegpt.data.pack import Windows, collate, pack_rows
from behavegpt.data.sources import Logs
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import ConfigError, DataError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.paths import local_path
from behavegpt.pooling import user_vectors
from behavegpt.training.run_folder import open_model
from behavegpt.user_embeddings import UserEmbeddings

POSITIONS_PER_BATCH = 16384


@dataclass(frozen=True)
class Predictions:
    """The most probable next behaviors of U users, best first."""

    users: pa.StringArray  # (U,)
    labels: np.ndarray  # (U, k) object: behavior labels
    probabilities: np.ndarray  # (U, k) float32
    unknown: dict[str, int]  # field -> events whose label the model never saw
    rejected: dict[str, int]  # reason -> rows that could not be used

    def __len__(self) -> int:
        return len(self.users)

    def to_table(self) -> pa.Table:
        """Columns user, rank (from 1), behavior, probability; k rows a user."""
        top = self.labels.shape[1]
        return pa.table(
            {
                "user": self.users.take(pa.array(np.repeat(np.arange(len(self)), top))),
                "rank": np.tile(np.arange(1, top + 1), len(self)),
                "behavior": pa.array(self.labels.ravel().tolist(), pa.string()),
                "probability": self.probabilities.ravel(),
            }
        )


class Predictor:
    """A model with its tokenizer. The same user gets the same answer, whatever else is in the call."""

    def __init__(
        self, model: BehaveGPTForBehaviorPrediction, tokenizer: EventTokenizer, links: Links | None = None
    ) -> None:
        """`links`: which ids go together in training, for `generate`."""
        self.model, self.tokenizer, self.links = model.eval(), tokenizer, links

    def reading(self, **changes: Any) -> Predictor:
        """The predictor for logs whose columns are named, or whose times are written, otherwise than in training.

        >>> model.reading(user="uid", time="ts", time_format="%d/%m/%Y").predict("logs.csv")    # doctest: +SKIP
        """
        return Predictor(self.model, self.tokenizer.reading(changes), self.links)

    def predict(
        self,
        events: Any,
        top_k: int = 5,
        prior_correction: float = 0.0,
        on_user: Callable[[int, int], None] | None = None,
    ) -> Predictions:
        """The `top_k` most probable next behaviors of each user.

        `events`: a pandas or Arrow table or a mapping of columns with the training log's columns, a list of such
        rows, or files; without the user column all rows are one user's. `prior_correction` tau > 0 lifts rare
        behaviors: logits - tau * log(training frequency).
        """
        encoded = self.encode(events)
        behaviors = self.tokenizer.behaviors
        if top_k < 1:
            raise ConfigError(f"top_k = {top_k}: at least one behavior must be asked for.")
        top = min(top_k, behaviors.classes)
        chosen = np.zeros((len(encoded.users), top), np.int64)
        probabilities = np.zeros((len(encoded.users), top), np.float32)
        counts = torch.tensor(behaviors.counts, dtype=torch.float32) + 1
        shift = prior_correction * torch.log(counts / counts.sum())
        done = 0
        for users, batch, last in self._batches(encoded):
            logits = self._run(batch, select=last).logits.float().cpu() - shift
            best = logits.softmax(-1).topk(top)
            chosen[users], probabilities[users] = best.indices.numpy(), best.values.numpy()
            done += len(users)
            if on_user:
                on_user(done, len(encoded.users))
        labels = self.tokenizer.labels(chosen)
        return Predictions(encoded.users, labels, probabilities, encoded.unknown, encoded.rejected)

    def embed(self, events: Any, pool: Sequence[str] = ("last",)) -> UserEmbeddings:
        """Each user's vector (D,): by default the hidden state at the last event; see pooling.py for other parts."""
        encoded = self.encode(events)
        vectors = user_vectors(self.model, encoded.columns, encoded.offsets[:-1], encoded.offsets[1:], pool)
        return UserEmbeddings(encoded.users, vectors)

    def generate(
        self,
        events: Any,
        steps: int = 50,
        *,
        links: Links | None = None,
        on_user: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Generated:
        """The next `steps` events of each user, all fields together: `Generated` with `to_table()`.

        `events` as for `predict`, at least one a user. `options`: GenerationSettings, such as samples=5,
        temperature=.9, top_p=.95, until="2 days", seed=1, time="observed". `links`: what goes together, see
        adapt/links.py; by default what stands beside the model. Docs: docs/generation.md.
        """
        given = {"steps": steps} | {name: value for name, value in options.items() if value is not None}
        settings = read_settings(GenerationSettings, None, [f"{name}={value}" for name, value in given.items()])
        links = self.links if links is None else links
        return roll_out(self.model, self.tokenizer, self.encode(events), settings, links, on_user)

    def encode(self, events: Any) -> EncodedHistories:
        """The histories in ids, as the other methods take them too. Raises DataError when no event is usable."""
        if isinstance(events, EncodedHistories):
            return events
        schema = self.tokenizer.event_schema
        if isinstance(events, list) and events and isinstance(events[0], dict):
            events = {name: [row.get(name) for row in events] for name in {k: None for row in events for k in row}}
        if not isinstance(events, (str, Path, list, tuple)):
            events = events if isinstance(events, Logs) else as_frame(events)
            if isinstance(events, Frame) and schema.user not in events.names:
                events = events.with_constant(schema.user, "0")
        encoded = self.tokenizer.encode(events)
        if len(encoded.users) == 0:
            reasons = ", ".join(f"{n} rows: {reason}" for reason, n in encoded.rejected.items()) or "no rows"
            raise DataError(f"no usable event to predict from ({reasons}).")
        return encoded

    def _batches(self, encoded: EncodedHistories) -> Iterator[tuple[np.ndarray, PackedBatch, torch.Tensor]]:
        """Users (n,) of a batch, the batch, and the mask (B, R) of their last events, in the same order."""
        limit = self.model.config.max_length
        begin, end = encoded.offsets[:-1], encoded.offsets[1:]
        length = np.minimum(end - begin, limit)
        plan = pack_rows(Windows(end - length, length, length - 1), row_length_for(limit))
        user_of = np.searchsorted(end, plan.windows.start, side="right")
        rows_per_batch = max(1, POSITIONS_PER_BATCH // row_length_for(limit))
        for at in range(0, plan.rows, rows_per_batch):
            rows = np.arange(at, min(at + rows_per_batch, plan.rows))
            batch = collate(
                encoded.columns, plan, rows, row_length_for(limit), self.model.config.columns, with_target=False
            )
            following = torch.nn.functional.pad(batch.document[:, 1:], (0, 1), value=PADDING - 1)
            last = (batch.document != following) & (batch.document != PADDING)
            yield user_of[plan.pointer[rows[0]] : plan.pointer[rows[-1] + 1]], batch, last

    @torch.no_grad()
    def _run(self, batch: PackedBatch, select: torch.Tensor) -> Any:
        device = self.model.device
        inputs = {name: ids.to(device) for name, ids in batch.inputs.items()}
        return self.model(
            **inputs, document=batch.document.to(device), position=batch.position.to(device), select=select.to(device)
        )


def load(folder: str | Path, device: str | torch.device | None = None) -> Predictor:
    """Open a model folder, or an adapter's; `device` defaults to a GPU where there is one.

    Raises CheckpointError when the folder is neither, or is damaged.
    """
    folder = local_path(folder)
    if (folder / "adapter_config.json").is_file():
        from behavegpt.adapt.peft import open_adapter

        model, tokenizer = open_adapter(folder)
    else:
        model, tokenizer = open_model(folder)
    torch.nn.Module.to(model, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return Predictor(model, tokenizer, load_links(folder))
