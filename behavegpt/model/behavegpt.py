"""BehaveGPT (section 3.1): embeddings -> transformer blocks -> prediction layer, on packed or plain
batches.

Shape letters: B rows, R positions, C hidden width, N predicted positions, K behaviors.

This folder imports nothing but torch and transformers, so that it can be saved with a checkpoint
and run alone. Importing this module registers the classes with transformers' Auto classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    GenerationConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput

from behavegpt.model.attention import BACKENDS, plan_attention, plan_cached, usable
from behavegpt.model.block import BehaveGPTBlock, ResidualLinear, rope_tables
from behavegpt.model.cache import EventCache
from behavegpt.model.config import GAP_BUCKETS, BehaveGPTConfig
from behavegpt.model.embedding import EventEmbedding
from behavegpt.model.generation import EventGenerationMixin, next_event_logits
from behavegpt.model.head import (
    History,
    HistoryFeatures,
    HistoryGate,
    MemoryHead,
    Past,
    PredictionHead,
    head_loss,
)
from behavegpt.model.mixer import Memory, Mixer

IGNORED = -100


@dataclasses.dataclass
class BehaviorOutput(ModelOutput):
    """What the models return; absent parts are None."""

    # () sum under a criterion; mean cross-entropy with `labels` alone
    loss: torch.Tensor | None = None
    # () unweighted sum, under a criterion, of second heads and auxiliary losses
    side_loss: torch.Tensor | None = None
    # (N, K) at selected positions, (B, R, K) without selection, (B, 1, K) cached
    logits: torch.Tensor | None = None
    class_loss: torch.Tensor | None = None  # (K,) summed loss per class, detached
    class_count: torch.Tensor | None = None  # (K,)
    next_logits: dict[str, torch.Tensor] | None = None  # second heads, each (N, ids)
    last_hidden_state: torch.Tensor | None = None  # (B, R, C)
    # embeddings and each block's output, (B, R, C)
    hidden_states: tuple[torch.Tensor, ...] | None = None
    past_key_values: EventCache | None = None  # the cache that was given


class BehaveGPTPreTrainedModel(PreTrainedModel):
    """Initialisation and the capabilities that transformers asks about."""

    config: BehaveGPTConfig
    config_class = BehaveGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BehaveGPTBlock"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    # the history head and the variable-length plan depend on the data
    _can_compile_fullgraph = False
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^next_heads\."]

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Refused: ids belong to the vocabulary in the folder, and classes and heads go with
        them."""
        if new_num_tokens in (None, (self.config.field_sizes or {})["event"]):
            return self.get_input_embeddings()
        raise ValueError(
            "resize_token_embeddings is not supported: event vocabulary, classes and heads change "
            "together; use `behavegpt finetune --mode new_behavior` (behavegpt.adapt)"
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # only through `init`: it leaves weights alone that were loaded from a checkpoint
        if isinstance(module, ResidualLinear):
            # GPT-2: the residual branches start small, so that the sum does not grow with depth
            std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
            return
        super()._init_weights(module)
        if isinstance(module, HistoryGate):
            init.constant_(module.gate.bias, HistoryGate.START)
            init.constant_(module.log_scale, -math.log(HistoryGate.PSEUDO_EVENTS))
            init.constant_(module.log_prior, -math.log(self.config.num_behaviors))
        if isinstance(module, Mixer):
            for parameter, start in zip(
                module.parameters(), module.fresh().parameters(), strict=True
            ):
                init.copy_(parameter, start)
        if isinstance(module, MemoryHead):
            init.constant_(module.log_prior, -math.log(self.config.num_behaviors))


class BehaveGPTModel(BehaveGPTPreTrainedModel):
    """The transformer without prediction layer: events in, one hidden state per event out."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__(config)
        self.embedding = EventEmbedding(config)
        self.blocks = nn.ModuleList(
            [BehaveGPTBlock(config) for _ in range(config.num_hidden_layers)]
        )
        self.norm: nn.Module = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # no sum of branches whose scale would have to be taken out again
        if not config.num_hidden_layers:
            self.norm = nn.Identity()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.tables["event"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding.tables["event"] = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        document: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: EventCache | None = None,
        use_cache: bool | None = None,
        weekday_ids: torch.Tensor | None = None,
        slot_ids: torch.Tensor | None = None,
        location_ids: torch.Tensor | None = None,
        behavior_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **fields: Any,
    ) -> BehaviorOutput:
        """Hidden states (B, R, C) of events.

        `input_ids` (B, R): event ids; the other fields as `weekday_ids`, `slot_ids`,
        `location_ids`, ... `document` (B, R): which history of its row each position belongs to,
        for packed rows; without it each row is one history, with `attention_mask` (B, R) 0 where it
        is padded. `position` (B, R): index within the history; made from the mask when absent.
        `past_key_values`: an EventCache of earlier events of the same rows, not packed; it takes up
        the new ones. `fields`: ids of the config's further fields. Raises ValueError for arguments
        that the model does not know.
        """
        if input_ids is None:
            raise ValueError("the model needs input_ids: the event ids, (rows, positions)")
        refuse_unknown(self.config, output_attentions, fields)
        fields |= named_fields(weekday_ids, slot_ids, location_ids, behavior_ids)
        cache = past_key_values
        if cache is not None or use_cache:
            _refuse_cache(cache, document)
        if document is None:
            document = (
                torch.zeros_like(input_ids) if attention_mask is None else attention_mask.long() - 1
            )
        if cache is not None:
            position = cache.begin(input_ids, attention_mask).position
        elif position is None:
            position = _positions(document)
        by_name = {
            n: input_ids if n == "event" else fields.get(f"{n}_ids") for n in self.embedding.tables
        }
        x = self.embedding(by_name, position)
        rope = None
        if self.config.position_encoding == "rope":
            rope = rope_tables(
                position, self.config.hidden_size // self.config.num_attention_heads, x.dtype
            )
        backend = self.config._attn_implementation or "sdpa"
        if backend not in BACKENDS:
            raise ValueError(
                f"attention {backend!r} is not supported; choose one of {', '.join(BACKENDS)}"
            )
        backend = usable(backend, x)
        plan = (
            plan_attention(document, backend)
            if cache is None
            else plan_cached(cache.step.mask, backend)
        )
        states = [x]
        for index, block in enumerate(self.blocks):
            x = block(x, plan, rope) if cache is None else block(x, plan, rope, cache.writer(index))
            states.append(x)
        keep = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        output = BehaviorOutput(
            last_hidden_state=self.norm(x),
            hidden_states=tuple(states) if keep else None,
            past_key_values=cache,
        )
        return as_asked(output, return_dict)


class BehaveGPTForBehaviorPrediction(EventGenerationMixin, BehaveGPTPreTrainedModel):
    """BehaveGPT with its prediction layer: at each event, logits of the user's next behavior."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__(config)
        self.model = BehaveGPTModel(config)
        self.head = PredictionHead(config)
        self.history = HistoryFeatures() if config.history_head else None
        self.counts: Any = None  # of the training log, with memory: data/memory_counts.py's Counts
        if config.memory and not config.num_hidden_layers:  # the counts alone
            self.requires_grad_(False)
            self.head.memory.requires_grad_(True)  # type: ignore[union-attr]
        sizes = {**(config.field_sizes or {}), "gap": GAP_BUCKETS}
        self.next_heads = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, sizes[name]) for name in config.next_heads or ()}
        )
        # transformers would choose a loss by a pattern on the class name, and take our window for a
        # wish
        self.loss_function = mean_cross_entropy
        self.generation_config = GenerationConfig(pad_token_id=config.pad_token_id)
        self.post_init()

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
        """Logits, or a loss, of the next behavior at each event; inputs as in
        BehaveGPTModel.forward.

        `labels` (B, R): class of the next behavior, -100 where it is not asked for.
        With `criterion` (behavegpt.losses.Loss): the loss *sum* over the labels and the class
        statistics, no logits; divide `loss` by the sum of the criterion's weights and `side_loss`,
        which has none, by the number of labels. With `labels` alone, as transformers' Trainer calls
        it: mean cross-entropy and logits (B, R, K). With `select` (B, R) bool: logits (N, K) of
        those positions, row by row. `behavior_ids` (B, R): vocabulary ids of the past behaviors,
        for the history head. With `past_key_values`, an EventCache: logits (B, 1, K) after each
        row's last event, and next_logits (B, ids); `event_logits` makes them logits (B, 1, ids) of
        the next event, as transformers' generate wants them. `memory`: what the counts say at the
        predicted positions, row by row; the fields of mixer.Memory. `heads`: the second heads to
        evaluate, all by default.
        """
        if input_ids is None:
            raise ValueError("the model needs input_ids: the event ids, (rows, positions)")
        refuse_unknown(self.config, output_attentions, fields)
        fields |= named_fields(weekday_ids, slot_ids, location_ids, behavior_ids)
        body = self.model(
            input_ids,
            document,
            position,
            attention_mask,
            output_hidden_states=output_hidden_states,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **fields,
        )
        if past_key_values is not None:
            past = self._history_at_last(input_ids, past_key_values, fields, memory)
            return as_asked(
                self._continue(body, past, past_key_values, event_logits, heads), return_dict
            )
        hidden = body.last_hidden_state
        if labels is not None and criterion is not None:
            select = labels != IGNORED
        chosen = select if select is not None else torch.ones_like(input_ids, dtype=torch.bool)
        picked = hidden[chosen]
        past = self._history(input_ids, document, attention_mask, fields, chosen, memory)
        output = BehaviorOutput(last_hidden_state=hidden, hidden_states=body.hidden_states)
        if labels is not None and criterion is not None:
            parts = head_loss(
                self.head,
                self._tied_embedding(),
                criterion,
                picked,
                labels[chosen],
                past,
                self.config.num_behaviors,
            )
            output.loss, output.side_loss = (
                parts.total,
                self._next_loss(picked, next_fields, chosen),
            )
            output.class_loss, output.class_count = parts.class_loss, parts.class_count
            return as_asked(output, return_dict)
        logits = self.head(picked, past, self._tied_embedding())
        output.logits = logits if select is not None else logits.view(*hidden.shape[:2], -1)
        output.next_logits = self._next_logits(picked, heads)
        if labels is not None:
            output.loss = self.loss_function(
                output.logits, labels, num_items_in_batch=num_items_in_batch
            )
        return as_asked(output, return_dict)

    def _continue(
        self,
        body: BehaviorOutput,
        past: History | Memory | None,
        cache: EventCache,
        of_events: bool,
        heads: Collection[str] | None,
    ) -> BehaviorOutput:
        """What follows each row's last event, with the cache's past."""
        assert body.last_hidden_state is not None
        last = cache.step.last
        hidden = body.last_hidden_state[torch.arange(len(last), device=last.device), last]
        logits = self.head(hidden, past, self._tied_embedding())
        body.next_logits = self._next_logits(hidden, heads)
        body.logits = (
            next_event_logits(self.config, logits, body.next_logits) if of_events else logits
        )[:, None]
        return body

    def _next_logits(
        self, hidden: torch.Tensor, heads: Collection[str] | None
    ) -> dict[str, torch.Tensor] | None:
        """Second heads of hidden states (N, C), each (N, ids)."""
        return {
            name: head(hidden)
            for name, head in self.next_heads.items()
            if heads is None or name in heads
        } or None

    def _tied_embedding(self) -> torch.Tensor | None:
        """(ids, d), if the event embedding enters the logits."""
        return self.model.embedding.tables["event"].weight if self.config.tied_head else None

    def _history(
        self,
        input_ids: torch.Tensor,
        document: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        fields: dict[str, Any],
        chosen: torch.Tensor,
        memory: dict[str, torch.Tensor] | None,
    ) -> History | Memory | None:
        """What the predicted positions know of the past."""
        if memory is not None:
            return Memory(**memory)
        if self.history is None:
            return None
        if document is None:
            document = (
                torch.zeros_like(input_ids) if attention_mask is None else attention_mask.long() - 1
            )
        slots = (self.config.field_sizes or {})["slot"]
        return self.history(
            Past(**self._past_ids(input_ids, fields), document=document, slots=slots), chosen
        )

    def _history_at_last(
        self,
        input_ids: torch.Tensor,
        cache: EventCache,
        fields: dict[str, Any],
        memory: dict[str, torch.Tensor] | None,
    ) -> History | Memory | None:
        """What each row's last event knows of the past, with the cache's."""
        if memory is not None:
            return Memory(**memory)
        if self.history is None:
            return None
        return self.history.at_last(
            *cache.remember(**self._past_ids(input_ids, fields)), cache.lengths - 1
        )

    def _past_ids(self, input_ids: torch.Tensor, fields: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the history head reads of the events, each (B, R)."""
        behavior = input_ids if self.config.behavior_is_event else fields.get("behavior_ids")
        if behavior is None:
            raise ValueError(
                "the history head needs behavior_ids: vocabulary ids of the past behaviors, "
                "(rows, positions)"
            )
        location = fields.get("location_ids")
        return {
            "event": input_ids,
            "behavior": behavior,
            "location": torch.zeros_like(input_ids) if location is None else location,
            "slot": fields["slot_ids"],
        }

    def _next_loss(
        self,
        picked: torch.Tensor,
        next_fields: dict[str, torch.Tensor] | None,
        chosen: torch.Tensor,
    ) -> torch.Tensor:
        """Sum of the second heads' cross-entropies; 0 without them."""
        loss = picked.new_zeros((), dtype=torch.float32)
        for name, head in self.next_heads.items():
            if next_fields is None or name not in next_fields:
                raise ValueError(
                    f"the second head {name!r} needs next_fields[{name!r}], (rows, positions)"
                )
            loss = loss + F.cross_entropy(
                head(picked).float(), next_fields[name][chosen], reduction="sum"
            )
        return loss


def as_asked(output: BehaviorOutput, return_dict: bool | None) -> Any:
    """The output, or its present parts as a tuple in the order of BehaviorOutput."""
    if return_dict is not False:
        return output
    return tuple(
        part
        for field in dataclasses.fields(output)
        if (part := getattr(output, field.name)) is not None
    )


def named_fields(
    weekday: torch.Tensor | None,
    slot: torch.Tensor | None,
    location: torch.Tensor | None,
    behavior: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """The ids that forward takes by name, so that transformers' Trainer keeps their columns; absent
    ones left out."""
    given = {
        "weekday_ids": weekday,
        "slot_ids": slot,
        "location_ids": location,
        "behavior_ids": behavior,
    }
    return {name: ids for name, ids in given.items() if ids is not None}


def refuse_unknown(
    config: BehaveGPTConfig, output_attentions: bool | None, fields: dict[str, Any]
) -> None:
    """Raise ValueError for what other models of transformers take and this one would ignore."""
    if output_attentions or config.output_attentions:
        raise ValueError(
            "output_attentions is not supported: the attention kernels keep no weights; leave it "
            "out"
        )
    known = {f"{name}_ids" for name in (*(config.field_sizes or ()), "event", "time")}
    unknown = sorted(
        name for name, value in fields.items() if value is not None and name not in known
    )
    if unknown:
        raise ValueError(
            f"the model does not know the argument {unknown[0]!r}; it takes input_ids, "
            f"attention_mask and {', '.join(sorted(known - {'event_ids', 'time_ids'}))}"
        )


def mean_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Cross-entropy of logits (..., K) and labels (...), divided by the given count or the number
    of labels."""
    total = F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / count


def _refuse_cache(cache: EventCache | None, document: torch.Tensor | None) -> None:
    if document is not None:
        raise ValueError(
            "no key-value cache on packed input: it would let packed histories see each other"
        )
    if not isinstance(cache, EventCache):
        raise ValueError(
            "use_cache needs a key-value cache: give past_key_values=EventCache(model.config)"
        )


def _positions(document: torch.Tensor) -> torch.Tensor:
    """Index of each position within its history, for documents (B, R)."""
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return index - (index * begins).cummax(dim=1).values


AutoModel.register(BehaveGPTConfig, BehaveGPTModel, exist_ok=True)
AutoModelForTokenClassification.register(
    BehaveGPTConfig, BehaveGPTForBehaviorPrediction, exist_ok=True
)
