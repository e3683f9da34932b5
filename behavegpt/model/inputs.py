"""What a forward reads: the arguments that transformers names, as one value.

Shape letters: B rows, R positions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch

from behavegpt.model.baskets import Baskets
from behavegpt.model.cache import EventCache
from behavegpt.model.config import BehaveGPTConfig
from behavegpt.model.mixer import Memory


class Events(NamedTuple):
    """The events of one forward, in B rows of R positions."""

    ids: dict[str, torch.Tensor]
    """By field (`event`, `weekday`, `slot`, `location`, ...; also `behavior` and `time` where they
    are given), each (B, R) int64."""
    document: torch.Tensor
    """(B, R) int64: which history of its row an event belongs to; below 0 where there is none."""
    position: torch.Tensor
    """(B, R) int64: index within the history, from 0."""
    cache: EventCache | None = None
    """Earlier events of the same rows; they are one history each then."""
    memory: Memory | None = None
    """What the counts of the whole past say at the predicted positions, row by row."""
    given: Mapping[str, torch.Tensor] | None = None
    """What is given of the events that are predicted there: ids (N,) by field."""
    baskets: Baskets | None = None
    """Of a model of baskets, each a position: ids are (E,) then, one basket after the other."""


class Request(NamedTuple):
    """What is asked of a forward, beside its events; see BehaveGPTForBehaviorPrediction."""

    labels: torch.Tensor | None = None  # (B, R) int64, IGNORED where none is asked for
    select: torch.Tensor | None = None  # (B, R) bool
    criterion: Any = None  # behavegpt.losses.Loss
    next_fields: Mapping[str, torch.Tensor] = {}  # targets of the auxiliary heads, each (B, R)
    num_items: torch.Tensor | int | None = None  # what a mean is divided by
    heads: Collection[str] | None = None  # the auxiliary heads to evaluate; None: all
    event_logits: bool = False  # of the next event instead of the next behavior


class RowLayout(NamedTuple):
    """How the rows of a forward hold their histories, each part as BehaveGPTModel.forward takes
    it."""

    document: torch.Tensor | None = None
    position: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    cache: EventCache | None = None


def read_events(
    fields: Mapping[str, torch.Tensor | None],
    layout: RowLayout,
    memory: Mapping[str, torch.Tensor] | None = None,
) -> Events:
    """Events from ids (B, R) by argument name (`input_ids`, `weekday_ids`, ...), absent ones None.

    A cache makes room for the new events. Raises ValueError without `input_ids`.
    """
    input_ids = fields.get("input_ids")
    if input_ids is None:
        raise ValueError("the model needs input_ids: the event ids, (rows, positions)")

    document, position, mask, cache = layout
    if document is None:
        # without packing a row is one history, 0; padding, where the mask is 0, becomes -1
        document = torch.zeros_like(input_ids) if mask is None else mask.long() - 1

    if cache is not None:
        position = cache.begin(input_ids, mask).position
    elif position is None:
        position = positions_within(document)

    ids = {name.removesuffix("_ids"): value for name, value in fields.items() if value is not None}
    ids["event"] = ids.pop("input")
    return Events(ids, document, position, cache, None if memory is None else Memory(**memory))


def refuse_unknown(
    config: BehaveGPTConfig, fields: Mapping[str, Any], output_attentions: bool | None
) -> None:
    """Raise ValueError for what other models of transformers take and this one would ignore."""
    if output_attentions or config.output_attentions:
        raise ValueError(
            "output_attentions is not supported: the attention kernels keep no weights; leave it "
            "out"
        )

    # `event` and `time` may come as extra ids, for the counts, without being fields of the network
    known = {f"{name}_ids" for name in (*config.ids_by_column, "event", "time")}
    unknown = sorted(
        name for name, value in fields.items() if value is not None and name not in known
    )

    if unknown:
        raise ValueError(
            f"the model does not know the argument {unknown[0]!r}; it takes input_ids, "
            f"attention_mask and {', '.join(sorted(known - {'event_ids', 'time_ids'}))}"
        )


def refuse_cache(cache: EventCache | None, document: torch.Tensor | None) -> None:
    """Raise ValueError for packed input beside a cache, and for a cache that is none of events."""
    if document is not None:
        raise ValueError(
            "no key-value cache on packed input: it would let packed histories see each other"
        )
    if not isinstance(cache, EventCache):
        raise ValueError(
            "use_cache needs a key-value cache: give past_key_values=EventCache(model.config)"
        )


def positions_within(document: torch.Tensor) -> torch.Tensor:
    """Index of each position within its history, for documents (B, R)."""
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)

    # a new history where the document changes
    begins[:, 1:] = document[:, 1:] != document[:, :-1]

    # cummax carries the index of the latest start along the row
    return index - (index * begins).cummax(dim=1).values
