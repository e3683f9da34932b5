"""What a forward gives back.

Shape letters: B rows, R positions, C hidden width, N predicted positions, K behaviors.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from behavegpt.model.cache import EventCache

IGNORED = -100  # label of a position that is not asked for


class Encoded(NamedTuple):
    """What an encoder makes of packed rows."""

    hidden: torch.Tensor  # (B, R, C)
    # what a baseline's encoder tells its head beside the hidden state, each (B, R, ...)
    side: dict[str, torch.Tensor] = {}
    # (B, R) loss beside that of the labels, summed where labels are asked for
    auxiliary: torch.Tensor | None = None
    # the embeddings and each block's output, (B, R, C), where they are asked for
    states: tuple[torch.Tensor, ...] | None = None


@dataclasses.dataclass
class BehaviorOutput(ModelOutput):
    """What the models return; absent parts are None."""

    # () sum under a criterion; mean cross-entropy with `labels` alone
    loss: torch.Tensor | None = None
    # () unweighted sum, under a criterion, of auxiliary heads and losses
    side_loss: torch.Tensor | None = None
    # (N, K) at selected positions, (B, R, K) without selection, (B, 1, K) cached
    logits: torch.Tensor | None = None
    class_loss: torch.Tensor | None = None  # (K,) summed loss per class, detached
    class_count: torch.Tensor | None = None  # (K,)
    next_logits: dict[str, torch.Tensor] | None = None  # auxiliary heads, each (N, ids)
    last_hidden_state: torch.Tensor | None = None  # (B, R, C)
    # embeddings and each block's output, (B, R, C)
    hidden_states: tuple[torch.Tensor, ...] | None = None
    past_key_values: EventCache | None = None  # the cache that was given


def as_asked(output: BehaviorOutput, return_dict: bool | None) -> Any:
    """The output, or its present parts as a tuple in the order of BehaviorOutput."""
    if return_dict is not False:
        return output
    parts = (getattr(output, field.name) for field in dataclasses.fields(output))
    return tuple(part for part in parts if part is not None)


def mean_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Cross-entropy of logits (..., K) and labels (...), divided by the given count or the number
    of labels."""
    # summed and divided here: under gradient accumulation transformers gives the count of all
    # labels
    total = F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )

    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / count
