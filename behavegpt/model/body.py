"""The transformer without prediction layer, and what all models of the project share.

Shape letters: B rows, R positions, C hidden width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from behavegpt.model.attention import (
    BACKENDS,
    AttentionPlan,
    plan_attention,
    plan_cached,
    usable,
)
from behavegpt.model.baskets import Baskets, check_baskets
from behavegpt.model.block import BehaveGPTBlock, ResidualLinear, rope_tables
from behavegpt.model.cache import EventCache
from behavegpt.model.config import BehaveGPTConfig
from behavegpt.model.elapsed import elapsed
from behavegpt.model.embedding import AddedTable, EventEmbedding
from behavegpt.model.given import GivenLinear
from behavegpt.model.head import MemoryHead
from behavegpt.model.history import HistoryGate
from behavegpt.model.inputs import Events, RowLayout, read_events, refuse_cache, refuse_unknown
from behavegpt.model.mixer import Mixer
from behavegpt.model.output import BehaviorOutput, Encoded, as_asked


class BehaveGPTPreTrainedModel(PreTrainedModel):
    """Initialisation and the capabilities that transformers asks about."""

    config: BehaveGPTConfig
    config_class = BehaveGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BehaveGPTBlock"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True  # set_attn_implementation takes the names of BACKENDS
    # the history head and the variable-length plan depend on the data
    _can_compile_fullgraph = False
    # what a model with prediction layer saved and the body alone has no use for
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
        # 0: what is given, or known of the user, says nothing at first, so that other models'
        # weights can be continued
        if isinstance(module, (GivenLinear, AddedTable)):
            init.zeros_(module.weight)

        # the gate starts as a tuned count model, see HistoryGate
        if isinstance(module, HistoryGate):
            init.constant_(module.gate.bias, HistoryGate.START)
            init.constant_(module.log_scale, -math.log(HistoryGate.PSEUDO_EVENTS))
            init.constant_(module.log_prior, -math.log(self.config.num_behaviors))

        # the mixer starts as its last expert, the mixture of the others
        if isinstance(module, Mixer):
            for parameter, start in zip(
                module.parameters(), module.fresh().parameters(), strict=True
            ):
                init.copy_(parameter, start)

        # even odds until `set_prior` brings the training frequencies
        if isinstance(module, MemoryHead):
            init.constant_(module.log_prior, -math.log(self.config.num_behaviors))

    def _baskets(
        self, baskets: Mapping[str, torch.Tensor] | None, document: torch.Tensor | None
    ) -> Baskets | None:
        """The baskets of a forward; raises ValueError where the model and the call differ."""
        given = None if baskets is None else Baskets(**baskets)
        check_baskets(self.config.baskets, given, document)
        return given

    def _check_cache(self, layout: RowLayout, use_cache: bool | None) -> None:
        """Raise for a cache that the model cannot use."""
        if layout.cache is not None or use_cache:
            if self.config.baskets:
                raise ValueError("a model of baskets has no key-value cache; leave it out")
            refuse_cache(layout.cache, layout.document)


class EventModel(BehaveGPTPreTrainedModel):
    """Events in, one hidden state per event out; a subclass says how, in `encode`."""

    embedding: Any  # with the table of each field in `tables`

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.tables["event"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding.tables["event"] = value

    @abstractmethod
    def encode(self, events: Events, keep_states: bool = False) -> Encoded:
        """Hidden states (B, R, C) of the events; with `keep_states` also the embeddings and the
        outputs of the layers."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
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
        baskets: Mapping[str, torch.Tensor] | None = None,
        output_attentions: bool | None = None,
        **fields: Any,
    ) -> BehaviorOutput:
        """Hidden states (B, R, C) of events, called as transformers calls a model.

        `input_ids` (B, R): event ids; the other fields as `weekday_ids`, `slot_ids`,
        `location_ids`, ... `document` (B, R): which history of its row each position belongs to,
        for packed rows; without it each row is one history, with `attention_mask` (B, R) 0 where it
        is padded. `position` (B, R): index within the history; made from the mask when absent.
        `past_key_values`: an EventCache of earlier events of the same rows, not packed; it takes up
        the new ones. `fields`: ids of the config's further fields. `baskets`: fields of
        baskets.Baskets, of a model of baskets, whose ids are (E,). Raises ValueError for arguments
        that the model does not know.
        """
        refuse_unknown(self.config, fields, output_attentions)
        layout = RowLayout(document, position, attention_mask, past_key_values)

        self._check_cache(layout, use_cache)
        fields |= {"weekday_ids": weekday_ids, "slot_ids": slot_ids, "location_ids": location_ids}

        events = read_events(
            {"input_ids": input_ids, "behavior_ids": behavior_ids, **fields}, layout
        )._replace(baskets=self._baskets(baskets, document))

        encoded = self.encode(events, wants_states(self.config, output_hidden_states))

        output = BehaviorOutput(last_hidden_state=encoded.hidden, hidden_states=encoded.states)
        # not an argument above: transformers 5.24 renames it
        output.past_key_values = events.cache
        return as_asked(output, return_dict)


class BehaveGPTModel(EventModel):
    """The transformer of the paper without its prediction layer."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__(config)
        self.embedding = EventEmbedding(config)
        self.blocks = nn.ModuleList(
            [BehaveGPTBlock(config) for _ in range(config.num_hidden_layers)]
        )

        self.norm: nn.Module = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if not config.num_hidden_layers:
            # no sum of branches whose scale would have to be taken out again
            self.norm = nn.Identity()

        self.post_init()

    def encode(self, events: Events, keep_states: bool = False) -> Encoded:
        """Embedding, blocks and final norm: hidden states (B, R, C)."""
        told = elapsed(events) if self.config.reads_time else None
        gap = None if told is None else told.gap
        sizes = None if events.baskets is None else events.baskets.sizes
        x = self.embedding(events.ids, events.position, gap, sizes)  # (B, R, C)

        rope, encoding = None, self.config.position_encoding
        if encoding in ("rope", "time"):
            width = self.config.hidden_size // self.config.num_attention_heads
            over_time = told if encoding == "time" else None
            place = events.position if over_time is None else over_time.position
            rope = rope_tables(place, width, x.dtype)
        plan = self._plan(events, x)

        states = [x]  # the embeddings come first
        for index, block in enumerate(self.blocks):
            if events.cache is None:
                x = block(x, plan, rope)
            else:
                x = block(x, plan, rope, events.cache.writer(index))
            if keep_states:
                states.append(x)

        return Encoded(self.norm(x), states=tuple(states) if keep_states else None)

    def _plan(self, events: Events, x: torch.Tensor) -> AttentionPlan:
        """Which positions may look at which, for the back end that runs x (B, R, C)."""
        backend = self.config._attn_implementation or "sdpa"  # None until transformers chose one
        if backend not in BACKENDS:
            raise ValueError(
                f"attention {backend!r} is not supported; choose one of {', '.join(BACKENDS)}"
            )

        backend = usable(backend, x)

        if events.cache is None:
            return plan_attention(events.document, backend)
        return plan_cached(events.cache.step.mask, backend)


def wants_states(config: BehaveGPTConfig, asked: bool | None) -> bool:
    """Whether a forward gives hidden states: as asked, else as the config says."""
    return bool(config.output_hidden_states if asked is None else asked)
