"""BehaveGPT (section 3.1): embeddings -> transformer blocks -> prediction layer, on packed or plain
batches.

A forward is three steps, each a method: `hidden` runs the encoder, `logits` the prediction layer at
the positions that are asked for, `loss` both layer and criterion. A baseline is the same class with
other PARTS.

Shape letters: B rows, R positions, C hidden width, N predicted positions, K behaviors.

This folder imports nothing but torch and transformers, so that it can be saved with a checkpoint
and run alone. Importing this module registers the classes with transformers' Auto classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForTokenClassification, GenerationConfig

from behavegpt.model.body import (
    BehaveGPTModel,
    BehaveGPTPreTrainedModel,
    EventModel,
    wants_states,
)
from behavegpt.model.cache import EventCache
from behavegpt.model.chunks import HeadLoss
from behavegpt.model.config import GAP_BUCKETS, RETIRED, BehaveGPTConfig
from behavegpt.model.embedding import module_name
from behavegpt.model.generation import EventGenerationMixin, next_event_logits
from behavegpt.model.given import GivenProjection, check_given, make_projection
from behavegpt.model.head import MemoryHead, Predicted, PredictionHead
from behavegpt.model.head_loss import head_loss
from behavegpt.model.history import History, HistoryFeatures, Past
from behavegpt.model.inputs import Events, Request, RowLayout, read_events, refuse_unknown
from behavegpt.model.mixer import Memory
from behavegpt.model.output import (
    IGNORED,
    BehaviorOutput,
    Encoded,
    as_asked,
    mean_cross_entropy,
)


class BehaveGPTForBehaviorPrediction(EventGenerationMixin, BehaveGPTPreTrainedModel):
    """BehaveGPT with its prediction layer: at each event, logits of the user's next behavior.

    What its forward takes beside the inputs of BehaveGPTModel.forward, and gives:

    - `labels` (B, R): class of the next behavior, -100 where it is not asked for. Alone, as
      transformers' Trainer calls it: mean cross-entropy and logits (B, R, K).
    - `criterion` (behavegpt.losses.Loss) with labels: the loss *sum* and the class statistics, no
      logits; divide `loss` by the sum of the criterion's weights and `side_loss`, which has none,
      by the number of labels. `next_fields`: targets of the auxiliary heads, each (B, R).
    - `select` (B, R) bool: logits (N, K) of those positions, row by row.
    - `past_key_values`, an EventCache: logits (B, 1, K) after each row's last event, and
      next_logits (B, ids); `event_logits` makes them logits (B, 1, ids) of the next event, as
      transformers' generate wants them.
    - `behavior_ids` (B, R): vocabulary ids of the past behaviors, for the history head.
    - `memory`: what the counts say at the predicted positions, row by row; the fields of
      mixer.Memory.
    - `given`: ids (N,) by field of what the config says is given of the events that are
      predicted, there too. With a cache and without it no logits are made: what is given may
      still have to be drawn, from the auxiliary heads, which know nothing of it.
    - `heads`: the auxiliary heads to evaluate, all by default.
    - `baskets`: fields of baskets.Baskets, of a model of baskets: ids are (E,), labels (N,), and
      logits (N, K) where `asked` says, or where `select` (B, R) does.
    """

    # attribute -> what makes it of the config, in the order in which weights are drawn
    PARTS: ClassVar[dict[str, Callable[[Any], nn.Module | None]]] = {
        "model": BehaveGPTModel,
        "head": PredictionHead,
        "given": make_projection,
    }
    model: EventModel
    head: PredictionHead
    given: GivenProjection | None

    def __init__(self, config: BehaveGPTConfig) -> None:
        # in this order: each part draws its weights from the generator
        super().__init__(config)
        for name, make in self.PARTS.items():
            setattr(self, name, make(config))

        self.history = HistoryFeatures() if config.history_head else None
        self.counts: Any = None  # of the training log, with memory: data/memory_counts.py's Counts

        # without blocks the counts decide alone: only what mixes them has anything to learn
        if self.memory_head is not None and not config.num_hidden_layers:
            self.requires_grad_(False)
            self.memory_head.requires_grad_(True)

        sizes = {**(config.field_sizes or {}), "gap": GAP_BUCKETS}
        self.next_heads = nn.ModuleDict(
            {
                module_name(name): nn.Linear(config.hidden_size, sizes[name])
                for name in config.next_heads or ()
            }
        )
        # transformers would choose a loss by a pattern on the class name
        self.loss_function = mean_cross_entropy
        # transformers' own makes a generation limit of max_length, which here is the window
        self.generation_config = GenerationConfig(pad_token_id=config.pad_token_id)

        self.post_init()

    @property
    def memory_head(self) -> MemoryHead | None:
        """What mixes the counts of the whole past with the network, with memory."""
        return self.head.memory

    def set_prior(self, counts: torch.Tensor) -> None:
        """Begin at the training frequencies (K,)."""
        # a network that begins there does not spend its first steps on learning the frequencies
        self.head.set_prior(counts)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
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
        given: dict[str, torch.Tensor] | None = None,
        baskets: Mapping[str, torch.Tensor] | None = None,
        output_attentions: bool | None = None,
        **fields: Any,
    ) -> BehaviorOutput:
        """Logits (B, R, K) of the next behavior at each event, or a loss (), called as transformers
        calls a model; what is asked and given is in the class's description."""
        refuse_unknown(self.config, fields, output_attentions)
        layout = RowLayout(document, position, attention_mask, past_key_values)
        self._check_cache(layout, use_cache)

        fields |= {"weekday_ids": weekday_ids, "slot_ids": slot_ids, "location_ids": location_ids}
        events = read_events(
            {"input_ids": input_ids, "behavior_ids": behavior_ids, **fields}, layout, memory
        )
        events = events._replace(given=given, baskets=self._baskets(baskets, document))

        request = Request(
            labels, select, criterion, next_fields or {}, num_items_in_batch, heads, event_logits
        )

        keep = wants_states(self.config, output_hidden_states)
        return as_asked(self.run(events, request, keep), return_dict)

    def run(self, events: Events, request: Request, keep_states: bool = False) -> BehaviorOutput:
        """The three steps on the events of a batch."""
        encoded = self.hidden(events, keep_states)
        output = BehaviorOutput(last_hidden_state=encoded.hidden, hidden_states=encoded.states)
        # not an argument above: transformers 5.24 renames it
        output.past_key_values = events.cache

        labels, select, criterion = request.labels, request.select, request.criterion
        if labels is not None and criterion is not None and events.cache is None:
            chosen = labels != IGNORED  # (B, R) bool; of baskets (N,), where all are asked for
            predicted = self.predicted(encoded, events, None if events.baskets else chosen)
            # the loss makes the logits itself, in chunks, so that (N, K) never exists at once
            loss = self.loss(predicted, labels[chosen], criterion)
            output.loss, output.class_loss, output.class_count = loss

            # each (N,)
            following = {name: value[chosen] for name, value in request.next_fields.items()}
            output.side_loss = self.side_loss(predicted, following)
            return output

        predicted = self.predicted(encoded, events, select)
        output.next_logits = self.next_logits(predicted.hidden, request.heads)
        # what is given may still have to be drawn from these next_logits, so no logits of behaviors
        # yet
        if events.cache is not None and self.config.given and events.given is None:
            return output
        logits = self.logits(predicted)
        if events.cache is not None:
            if request.event_logits:
                logits = next_event_logits(self.config, logits, output.next_logits)
            output.logits = logits[:, None]  # (B, 1, K)
            return output

        # without `select` all B * R positions were predicted, row by row; of baskets the N asked
        flat = select is not None or events.baskets is not None
        output.logits = logits if flat else logits.view(*events.document.shape, -1)
        if labels is not None:
            output.loss = self.loss_function(
                output.logits, labels, num_items_in_batch=request.num_items
            )
        return output

    def hidden(self, events: Events, keep_states: bool = False) -> Encoded:
        """Hidden states (B, R, C) of the events."""
        return self.model.encode(events, keep_states)

    def predicted(
        self, encoded: Encoded, events: Events, select: torch.Tensor | None = None
    ) -> Predicted:
        """What the head reads at the selected positions (B, R) bool, all by default; with a cache
        at each row's last event."""
        if events.cache is not None:
            last = events.cache.step.last
            rows = torch.arange(len(last), device=last.device)
            hidden = encoded.hidden[rows, last]  # (B, C)
            return Predicted(hidden, self._past_at_last(events), told=self.told(events.given))

        if select is None and events.baskets is not None:
            hidden = events.baskets.at(encoded.hidden)
            return Predicted(hidden, events.memory, share=events.baskets.share)
        if select is None:
            select = torch.ones_like(events.document, dtype=torch.bool)

        auxiliary = encoded.auxiliary
        return Predicted(
            encoded.hidden[select],
            self._past(events, select),
            {name: value[select] for name, value in encoded.side.items()},
            None if auxiliary is None else auxiliary[select],
            self.told(events.given),
        )

    def told(self, given: Mapping[str, torch.Tensor] | None) -> torch.Tensor | None:
        """What ids (N,) of given fields add to hidden states (N, C); None where nothing is
        given to the network."""
        if self.given is None or given is None:
            return None
        added: torch.Tensor = self.given(given, self.model.embedding.tables)
        return added

    def logits(self, predicted: Predicted) -> torch.Tensor:
        """Logits (N, K) at N positions."""
        check_given(self.given, predicted)
        logits = self.head(predicted.asked, predicted.past, self._tied_embedding())
        return self.without_retired(logits)

    def without_retired(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) in which retired classes have no probability."""
        if not self.config.retired:
            return logits
        retired = torch.tensor(self.config.retired, device=logits.device)
        return logits.index_fill(1, retired, RETIRED)

    def loss(self, predicted: Predicted, target: torch.Tensor, criterion: Any) -> HeadLoss:
        """Loss sum of N positions with the targets (N,) under a criterion; logits come in chunks
        where there are many."""
        check_given(self.given, predicted)
        return head_loss(
            self.head,
            predicted,
            target,
            criterion,
            self.config.num_behaviors,
            self._tied_embedding(),
        )

    def side_loss(
        self, predicted: Predicted, next_fields: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Sum () of the auxiliary heads' cross-entropies with their targets, each (N,); 0 without
        them."""
        loss = predicted.hidden.new_zeros((), dtype=torch.float32)
        # summed, not averaged, like every loss here: the trainer divides by the number of labels
        for name, head in self._heads().items():
            if name not in next_fields:
                raise ValueError(
                    f"the auxiliary head {name!r} needs next_fields[{name!r}], (rows, positions)"
                )
            scores = head(predicted.hidden).float()  # (N, ids)
            loss = loss + F.cross_entropy(scores, next_fields[name], reduction="sum")
        return loss

    def next_logits(
        self, hidden: torch.Tensor, heads: Collection[str] | None = None
    ) -> dict[str, torch.Tensor] | None:
        """Auxiliary heads, all or those named, of hidden states (N, C), each (N, ids)."""
        of_field = self._heads()
        asked = of_field if heads is None else heads
        return {name: head(hidden) for name, head in of_field.items() if name in asked} or None

    def _heads(self) -> dict[str, nn.Module]:
        """The auxiliary heads by the field that they predict."""
        return {name: self.next_heads[module_name(name)] for name in self.config.next_heads or ()}

    def _tied_embedding(self) -> torch.Tensor | None:
        """The event embedding (K + SPECIAL_IDS, d), if it enters the logits."""
        return self.model.embedding.tables["event"].weight if self.config.tied_head else None

    def _past(self, events: Events, chosen: torch.Tensor) -> History | Memory | None:
        """What the chosen positions (B, R) bool know of the past."""
        if events.memory is not None or self.history is None:
            return events.memory

        slots = (self.config.field_sizes or {})["slot"]
        ids = self.history_ids(events.ids)
        return self.history(Past(**ids, document=events.document, slots=slots), chosen)

    def _past_at_last(self, events: Events) -> History | Memory | None:
        """What each row's last event knows of the past, with the cache's."""
        if events.memory is not None or self.history is None:
            return events.memory
        assert events.cache is not None
        past, first = events.cache.remember(**self.history_ids(events.ids))
        return self.history.at_last(past, first, events.cache.lengths - 1)

    def history_ids(self, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of ids by field, each (B, R), what the history head reads."""
        event = ids["event"]
        # events that are their own classes are not stored twice
        behavior = event if self.config.behavior_is_event else ids.get("behavior")
        if behavior is None:
            raise ValueError(
                "the history head needs behavior_ids: vocabulary ids of the past behaviors, "
                "(rows, positions)"
            )

        location = ids.get("location")
        return {
            "event": event,
            "behavior": behavior,
            # without locations all events have location 0, padding, which is like no other
            "location": torch.zeros_like(event) if location is None else location,
            "slot": ids["slot"],
        }


AutoModel.register(BehaveGPTConfig, BehaveGPTModel, exist_ok=True)
AutoModelForTokenClassification.register(
    BehaveGPTConfig, BehaveGPTForBehaviorPrediction, exist_ok=True
)
