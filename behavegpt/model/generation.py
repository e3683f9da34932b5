"""What transformers' `generate` needs to know of events: several fields, a cache by history, no
beams."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationMixin

from behavegpt.model.cache import EventCache
from behavegpt.model.config import SPECIAL_IDS, BehaveGPTConfig

_ALONE = "drafted events have no times and places of their own; remove it"
# options of transformers' generate that would be wrong here
REFUSED = {
    "assistant_model": _ALONE,
    "prompt_lookup_num_tokens": _ALONE,
    "assistant_early_exit": _ALONE,
    "custom_generate": "it would not know the fields of an event; remove it",
    "penalty_alpha": "contrastive search needs a cache that can be copied; remove it",
    "dola_layers": "there is no head for each layer; remove it",
    "cache_implementation": "the cache is an EventCache; remove it",
    "output_attentions": "the attention kernels keep no weights; remove it",
    "guidance_scale": "there is no history without conditions; remove it",
    "force_words_ids": "it needs beams; remove it",
    "constraints": "they need beams; remove it",
}


class EventGenerationMixin(GenerationMixin):
    """`generate(input_ids=..., weekday_ids=..., ..., max_new_tokens=n)` draws the next events.

    A field that is longer than `input_ids` tells the time or place of the events to come; one that
    ends earlier repeats its last value. Logits processors and stopping criteria see event ids. For
    times and places drawn with the events, and for histories beyond the model's window, see
    `Predictor.generate`.
    """

    config: Any  # BehaveGPTConfig

    def generate(  # type: ignore[override]
        self, inputs: torch.Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Any:
        """As transformers' generate. Raises ValueError for beams, and where the model cannot draw
        events alone."""
        defaults = generation_config or self.generation_config
        if (kwargs.get("num_beams") or defaults.num_beams or 1) > 1:
            raise ValueError(
                "num_beams must be 1: beam search moves events between beams but not their times "
                "and places; draw several samples instead: do_sample=True, num_return_sequences=n"
            )

        for name, why in REFUSED.items():
            if kwargs.get(name) or getattr(defaults, name, None):
                raise ValueError(f"generate does not support {name}: {why}")

        self._refuse_behaviors()

        # setdefault: a cache that the caller filled before is continued
        if kwargs.get("use_cache", defaults.use_cache) is not False:
            kwargs.setdefault("past_key_values", EventCache(self.config))

        parent: Any = super()
        return parent.generate(inputs, generation_config=generation_config, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The new columns (B, R) of every field; without a cache all columns."""
        parent: Any = super()
        chosen = parent.prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )

        end = input_ids.shape[1]
        # transformers cut the event ids to the new columns; the other fields follow here
        begin = end - chosen["input_ids"].shape[1]
        for name in self._field_arguments():
            if chosen.get(name) is not None:
                # a field that ends before the events repeats its last value
                known = chosen[name]
                missing = max(0, end - known.shape[1])
                chosen[name] = torch.cat([known, known[:, -1:].expand(-1, missing)], dim=1)[
                    :, begin:end
                ]

        if not kwargs.get("use_cache", True):
            # no cache between the steps: the whole prefix again, through the same path
            chosen["past_key_values"] = EventCache(self.config)
        return {**chosen, "use_cache": True, "event_logits": True}

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        known = self._field_arguments()
        parent: Any = super()
        # transformers refuses arguments that forward does not name; ours arrive as **fields
        parent._validate_model_kwargs(
            {name: value for name, value in model_kwargs.items() if name not in known}
        )

    def _field_arguments(self) -> set[str]:
        return {f"{name}_ids" for name in self.config.ids_by_column if name != "event"}

    def _refuse_behaviors(self) -> None:
        config = self.config
        if config.given:
            raise ValueError(
                f"the model is given the {' and '.join(config.given)} of each event before its "
                "behavior is drawn; use Predictor.generate, which draws them first"
            )
        if config.reads_time:
            raise ValueError(
                "the model reads the time of each event, which generate() does not draw; use "
                "Predictor.generate"
            )
        if config.memory:
            raise ValueError("the memory must take up each drawn event; use Predictor.generate")

        if config.behavior_is_event:
            return
        if "event" not in (config.next_heads or ()):
            raise ValueError(
                "this model predicts behaviors, not events: train it with next_heads=[event, "
                "location, gap], or use Predictor.generate with a policy for events"
            )

        if config.history_head:
            raise ValueError(
                "the history head needs the behavior of each drawn event, which generate() does "
                "not draw; use Predictor.generate"
            )


def next_event_logits(
    config: BehaveGPTConfig, logits: torch.Tensor, next_logits: dict[str, torch.Tensor] | None
) -> torch.Tensor:
    """Logits (B, ids) of the next event, minus infinity at padding and unknown, from behaviors (B,
    K) or the head."""
    # padding and unknown have no class; nobody draws them
    if config.behavior_is_event:
        return F.pad(logits, (SPECIAL_IDS, 0), value=-torch.inf)
    return F.pad((next_logits or {})["event"][:, SPECIAL_IDS:], (SPECIAL_IDS, 0), value=-torch.inf)
