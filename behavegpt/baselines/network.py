"""A baseline as a model of the project: embedded fields -> the baseline's encoder -> its head, on
packed rows.

The class is BehaveGPTForBehaviorPrediction with other parts, so training, evaluation and prediction
serve both unchanged. Importing this module registers the classes with transformers' Auto classes.

Shape letters: B rows, R positions, C hidden width, N predicted positions, K behaviors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from behavegpt.baselines.architectures import ARCHITECTURES
from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.data.store import EventStore
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.body import BehaveGPTPreTrainedModel, EventModel
from behavegpt.model.chunks import GradientSink, HeadLoss, Scored, chunked_loss
from behavegpt.model.embedding import field_tables, user_embedding
from behavegpt.model.given import check_given, make_projection
from behavegpt.model.head import MemoryHead, Predicted
from behavegpt.model.history import History, HistoryGate, log_shares
from behavegpt.model.inputs import Events, RowLayout
from behavegpt.model.output import Encoded


class BaselineEmbedding(nn.Module):
    """The fields' embeddings side by side, optionally times sqrt(C), plus learned positions."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.fields, self.tables = tuple(config.field_sizes or ()), field_tables(config)
        learned = config.position_encoding == "learned"
        self.position = nn.Embedding(config.max_length, config.hidden_size) if learned else None
        self.user = user_embedding(config)
        # SASRec and its like do: positions would outweigh small embeddings
        self.scale = config.hidden_size**0.5 if config.scale_inputs else 1.0
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, layout: Layout) -> torch.Tensor:
        """Embedded events (B, R, C)."""
        # before any table is read: a missing column would be a KeyError without a name
        missing = [name for name in self.fields if name not in layout.ids]
        if missing:
            raise ValueError(
                f"the model also needs the field {missing[0]!r}; given: {', '.join(layout.ids)}"
            )

        named = zip(self.fields, self.tables.values(), strict=True)
        embedded = [table(layout.ids[name]) for name, table in named]  # (B, R, C / fields) each
        x = torch.cat(embedded, dim=-1) * self.scale
        if self.user is not None:
            x = x + self.user(layout.ids)

        # (B, R, C)
        return self.dropout(x if self.position is None else x + self.position(layout.position))


class _WithoutCache(BehaveGPTPreTrainedModel):
    """A model that always reads whole histories."""

    config: BaselineConfig
    config_class = BaselineConfig

    def _check_cache(self, layout: RowLayout, use_cache: bool | None) -> None:
        if layout.cache is not None or use_cache:
            raise ConfigError(
                f"the baseline {self.config.architecture} predicts and embeds, but cannot "
                "generate: it keeps no cache of past events. Train a BehaveGPT for that "
                "(configs/generation.yaml)."
            )


class BaselineModel(_WithoutCache, EventModel):
    """Embedding and encoder: events in, one hidden state per event out."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.embedding = BaselineEmbedding(config)
        self.encoder = ARCHITECTURES[config.architecture].encoder(config)
        self.post_init()

    def encode(self, events: Events, keep_states: bool = False) -> Encoded:
        """Hidden states (B, R, C), and what the encoder tells the head."""

        layout = Layout(events.ids, events.document, events.position)
        x = self.embedding(layout)
        encoded: Encoded = self.encoder(x, layout)
        return encoded._replace(states=(x, encoded.hidden)) if keep_states else encoded


class BaselineForBehaviorPrediction(_WithoutCache, BehaveGPTForBehaviorPrediction):
    """A baseline with its head: at each event, logits of the user's next behavior."""

    PARTS = {
        "model": BaselineModel,
        "head": lambda config: ARCHITECTURES[config.architecture].head(config),
        "history_gate": lambda config: HistoryGate(config) if config.history_head else None,
        "memory": lambda config: MemoryHead(config) if config.memory else None,
        "given": make_projection,
    }
    head: Any  # a ScoreHead
    history_gate: HistoryGate | None
    memory: MemoryHead | None

    @property
    def memory_head(self) -> MemoryHead | None:
        """What mixes the counts of the whole past with the baseline, with memory."""
        return self.memory

    @torch.no_grad()
    def set_prior(self, counts: torch.Tensor) -> None:
        """Begin at the training frequencies (K,)."""
        # with memory the counts tell the frequencies
        self.head.set_prior(torch.ones_like(counts) if self.memory is not None else counts)
        # both add to the logits in units of the classes' training frequencies
        for part in (self.memory, self.history_gate):
            if part is not None:
                part.log_prior.copy_(log_shares(counts))

    def logits(self, predicted: Predicted) -> torch.Tensor:
        """Logits (N, K) at N positions: the baseline's scores, what the user's own history adds,
        and the mixture with the counts."""
        check_given(self.given, predicted)
        return self.without_retired(self._scores(predicted.asked, predicted))

    def _scores(self, hidden: torch.Tensor, predicted: Predicted) -> torch.Tensor:
        """The logits from hidden states (N, C) with what is given."""
        past = predicted.past
        table = self.model.embedding.tables["event"].weight
        logits: torch.Tensor = self.head(hidden, predicted.side, table)  # (N, K)
        if self.history_gate is not None and isinstance(past, History):
            logits = self.history_gate.add_to(logits, hidden, past)

        if self.memory is not None:
            logits = self.memory(hidden, logits, past)
        return logits

    def loss(self, predicted: Predicted, target: torch.Tensor, criterion: Any) -> HeadLoss:
        """Loss sum () of N positions under a criterion; target (N,)."""
        check_given(self.given, predicted)
        # heads with a schedule of their own follow the loss's
        self.head.set_progress(criterion.progress)

        def score(
            part: slice, pieces: Sequence[torch.Tensor], sink: GradientSink | None
        ) -> torch.Tensor:
            # `side` is cut like the hidden states, which is why it is among the inputs of the
            # chunks
            side = dict(zip(predicted.side, pieces[1:], strict=True))
            return self._scores(pieces[0], predicted.part(part)._replace(side=side))

        # all that the chunks' backward pass must give gradients to
        layers = [part for part in (self.head, self.history_gate, self.memory) if part is not None]
        parameters = [p for layer in layers for p in layer.parameters()]
        table = self.model.embedding.tables["event"].weight
        inputs = (predicted.asked, *predicted.side.values())
        scored = Scored(score, inputs, (*parameters, table))

        return chunked_loss(scored, criterion, target, self.config.num_behaviors)

    def side_loss(
        self, predicted: Predicted, next_fields: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """As in BehaveGPT, weighted, plus the encoder's own loss: a sum ()."""
        loss = self.config.next_weight * super().side_loss(predicted, next_fields)
        if predicted.auxiliary is not None:
            loss = loss + predicted.auxiliary.sum()
        return loss


def start_baseline(config: BaselineConfig, store: EventStore) -> BaselineForBehaviorPrediction:
    """A baseline before its first step, with what its start takes from the training split."""
    model = BaselineForBehaviorPrediction(config)
    model.set_prior(torch.tensor(store.behaviors.counts))
    start = ARCHITECTURES[config.architecture].start
    if start is not None:
        start(model, store)
    return model


AutoConfig.register(BaselineConfig.model_type, BaselineConfig, exist_ok=True)
AutoModel.register(BaselineConfig, BaselineModel, exist_ok=True)
AutoModelForTokenClassification.register(
    BaselineConfig, BaselineForBehaviorPrediction, exist_ok=True
)
