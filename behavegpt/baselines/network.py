"""A baseline as a model of the project: embedded fields -> the baseline's encoder -> its head, on
packed rows.

Inputs, outputs and losses are those of BehaveGPTForBehaviorPrediction, so training, evaluation and
prediction serve both unchanged. Importing this module registers the classes with transformers' Auto
classes.

Shape letters: B rows, R positions, C hidden width, N predicted positions, K behaviors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from behavegpt.baselines.architectures import ARCHITECTURES
from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.heads import Side
from behavegpt.baselines.layout import Layout
from behavegpt.data.store import EventStore
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTForBehaviorPrediction, BehaviorOutput, EventCache
from behavegpt.model.behavegpt import (
    IGNORED,
    BehaveGPTPreTrainedModel,
    _positions,
    mean_cross_entropy,
    named_fields,
    refuse_unknown,
)
from behavegpt.model.chunks import GradientSink, HeadLoss, Scored, chunked_loss
from behavegpt.model.config import GAP_BUCKETS
from behavegpt.model.head import (
    History,
    HistoryFeatures,
    HistoryGate,
    MemoryHead,
    part_of,
)
from behavegpt.model.mixer import Memory
from behavegpt.model.prior import class_prior


class BaselineEmbedding(nn.Module):
    """The fields' embeddings side by side, optionally times sqrt(C), plus learned positions."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        sizes = config.field_sizes or {}
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size, config.embedding_size) for name, size in sizes.items()}
        )
        learned = config.position_encoding == "learned"
        self.position = nn.Embedding(config.max_length, config.hidden_size) if learned else None
        self.scale = config.hidden_size**0.5 if config.scale_inputs else 1.0
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, layout: Layout) -> torch.Tensor:
        """Embedded events (B, R, C)."""
        missing = [name for name in self.tables if name not in layout.ids]
        if missing:
            raise ValueError(
                f"the model also needs the field {missing[0]!r}; given: {', '.join(layout.ids)}"
            )
        x = (
            torch.cat([table(layout.ids[name]) for name, table in self.tables.items()], dim=-1)
            * self.scale
        )
        return self.dropout(x if self.position is None else x + self.position(layout.position))


class BaselineModel(BehaveGPTPreTrainedModel):
    """Embedding and encoder: events in, one hidden state per event out."""

    config: BaselineConfig
    config_class = BaselineConfig

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.embedding = BaselineEmbedding(config)
        self.encoder = ARCHITECTURES[config.architecture].encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.tables["event"]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        document: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **fields: Any,
    ) -> BehaviorOutput:
        """Hidden states (B, R, C); arguments as in BehaveGPTModel.forward, without a cache."""
        layout = layout_of(input_ids, document, position, attention_mask, fields)
        x = self.embedding(layout)
        hidden = self.encoder(x, layout).hidden
        return BehaviorOutput(
            last_hidden_state=hidden, hidden_states=(x, hidden) if output_hidden_states else None
        )


class BaselineForBehaviorPrediction(BehaveGPTForBehaviorPrediction):
    """A baseline with its head: at each event, logits of the user's next behavior."""

    config: BaselineConfig
    config_class = BaselineConfig

    def __init__(self, config: BaselineConfig) -> None:
        # none of BehaveGPT's own parts
        super(BehaveGPTForBehaviorPrediction, self).__init__(config)
        self.model = BaselineModel(config)
        self.head = ARCHITECTURES[config.architecture].head(config)  # type: ignore[assignment]
        self.history = HistoryFeatures() if config.history_head else None
        self.history_gate = HistoryGate(config) if config.history_head else None
        self.memory = MemoryHead(config) if config.memory else None
        self.counts: Any = None
        sizes = {**(config.field_sizes or {}), "gap": GAP_BUCKETS}
        self.next_heads = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, sizes[name]) for name in config.next_heads or ()}
        )
        self.loss_function = mean_cross_entropy
        self.post_init()

    @torch.no_grad()
    def set_prior(self, counts: torch.Tensor) -> None:
        """Begin at the training frequencies (K,)."""
        self.head.set_prior(torch.ones_like(counts) if self.memory is not None else counts)
        if self.memory is not None:  # the counts tell the frequencies
            self.memory.log_prior.copy_(class_prior(counts).log())
        if self.history_gate is not None:
            self.history_gate.log_prior.copy_(class_prior(counts).log())

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        document: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        select: torch.Tensor | None = None,
        criterion: Any = None,
        next_fields: dict[str, torch.Tensor] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: EventCache | None = None,
        use_cache: bool | None = None,
        event_logits: bool = False,
        heads: Collection[str] | None = None,
        weekday_ids: torch.Tensor | None = None,
        slot_ids: torch.Tensor | None = None,
        location_ids: torch.Tensor | None = None,
        behavior_ids: torch.Tensor | None = None,
        memory: dict[str, torch.Tensor] | None = None,
        output_attentions: bool | None = None,
        **fields: Any,
    ) -> BehaviorOutput:
        """Logits, or a loss, of the next behavior at each event; as
        BehaveGPTForBehaviorPrediction.forward.

        Raises ConfigError for a key-value cache: baselines predict, they do not generate.
        """
        if past_key_values is not None or use_cache:
            raise ConfigError(
                f"the baseline {self.config.architecture} predicts and embeds, but cannot "
                "generate: it keeps no cache "
                "of past events. Train a BehaveGPT for that (configs/generation.yaml)."
            )
        refuse_unknown(self.config, output_attentions, fields)
        fields |= named_fields(weekday_ids, slot_ids, location_ids, behavior_ids)
        layout = layout_of(input_ids, document, position, attention_mask, fields)
        x = self.model.embedding(layout)
        encoded = self.model.encoder(x, layout)
        hidden = encoded.hidden
        if labels is not None and criterion is not None:
            select = labels.ne(IGNORED)
        chosen = torch.ones_like(layout.document, dtype=torch.bool) if select is None else select
        picked, side = hidden[chosen], {name: value[chosen] for name, value in encoded.side.items()}
        past = self._history(layout.ids["event"], layout.document, None, fields, chosen, memory)
        output = BehaviorOutput(
            last_hidden_state=hidden, hidden_states=(x, hidden) if output_hidden_states else None
        )
        if labels is not None and criterion is not None:
            parts = self._criterion_loss(criterion, picked, side, past, labels[chosen])
            output.loss = parts.total
            output.side_loss = self.config.next_weight * self._next_loss(
                picked, next_fields, chosen
            )
            output.class_loss, output.class_count = parts.class_loss, parts.class_count
            if encoded.auxiliary is not None:
                output.side_loss = output.side_loss + encoded.auxiliary[chosen].sum()
            return output
        logits = self._scores(picked, side, past)
        output.logits = logits if select is not None else logits.view(*hidden.shape[:2], -1)
        output.next_logits = self._next_logits(picked, heads)
        if labels is not None:
            output.loss = self.loss_function(
                output.logits, labels, num_items_in_batch=num_items_in_batch
            )
        return output

    def _scores(
        self, picked: torch.Tensor, side: Side, past: History | Memory | None
    ) -> torch.Tensor:
        """Logits (N, K) of hidden states (N, C)."""
        logits = self.head(picked, side, self.model.embedding.tables["event"].weight)
        if self.history_gate is not None and isinstance(past, History):
            logits = logits.scatter_add(
                1, past.classes, self.history_gate(picked, past).to(logits.dtype)
            )
        if self.memory is not None:
            logits = self.memory(picked, logits, past)
        return logits

    def _criterion_loss(
        self,
        criterion: Any,
        picked: torch.Tensor,
        side: Side,
        past: History | Memory | None,
        target: torch.Tensor,
    ) -> HeadLoss:
        """Loss sum of N events under a criterion."""
        head: Any = self.head
        head.set_progress(criterion.progress)
        table = self.model.embedding.tables["event"].weight
        names = tuple(side)

        def score(
            part: slice, pieces: Sequence[torch.Tensor], sink: GradientSink | None
        ) -> torch.Tensor:
            seen = None if past is None else part_of(past, part)
            return self._scores(pieces[0], dict(zip(names, pieces[1:], strict=True)), seen)

        layers = [m for m in (head, self.history_gate, self.memory) if m is not None]
        parameters = (p for layer in layers for p in layer.parameters())
        scored = Scored(score, (picked, *side.values()), (*parameters, table))
        return chunked_loss(scored, criterion, target, self.config.num_behaviors)


def start_baseline(config: BaselineConfig, store: EventStore) -> BaselineForBehaviorPrediction:
    """A baseline before its first step, with what its start takes from the training split."""
    model = BaselineForBehaviorPrediction(config)
    model.set_prior(torch.tensor(store.behaviors.counts))
    start = ARCHITECTURES[config.architecture].start
    if start is not None:
        start(model, store)
    return model


def layout_of(
    input_ids: torch.Tensor | None,
    document: torch.Tensor | None,
    position: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    fields: dict[str, Any],
) -> Layout:
    """The layout of a forward's arguments, as BehaveGPTModel.forward reads them."""
    if input_ids is None:
        raise ValueError("the model needs input_ids: the event ids, (rows, positions)")
    if document is None:
        document = (
            torch.zeros_like(input_ids) if attention_mask is None else attention_mask.long() - 1
        )
    named = {
        name.removesuffix("_ids"): ids
        for name, ids in fields.items()
        if name.endswith("_ids") and ids is not None
    }
    return Layout(
        {"event": input_ids, **named},
        document,
        _positions(document) if position is None else position,
    )


AutoConfig.register(BaselineConfig.model_type, BaselineConfig, exist_ok=True)
AutoModel.register(BaselineConfig, BaselineModel, exist_ok=True)
AutoModelForTokenClassification.register(
    BaselineConfig, BaselineForBehaviorPrediction, exist_ok=True
)
