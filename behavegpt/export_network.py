"""The network that is exported: one history a row -> logits and vector at its last event."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.data.collate import argument_name
from behavegpt.graph_inputs import MASK, MEMORY
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.history import Past
from behavegpt.model.mixer import Memory


class LastEvent(nn.Module):
    """The model on rows of one history each, without shapes that depend on the ids."""

    def __init__(self, model: BehaveGPTForBehaviorPrediction) -> None:
        super().__init__()
        self.model = model
        self.names = [argument_name(field) for field in model.config.columns]
        self.inputs = (*self.names, MASK, *(MEMORY if model.config.memory else ()))

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns of the model's config and the mask, each (B, L), and what the counts say ->
        logits (B, K), vectors (B, C)."""
        ids = given[: len(self.names) + 1]
        # two empty positions more: torch.export takes shapes that may be 1 for a case apart
        columns = [F.pad(values, (0, 2)) for values in ids]
        mask = columns.pop()  # the last of the ids

        # every row's last events at its beginning, so that position is the index in the row
        real = mask != 0  # (B, L) bool
        count = real.sum(1)
        kept = count.clamp(max=self.model.config.max_length)
        source, inside = _last_events(real, count - kept, kept)
        moved = [columns_.gather(1, source) * inside for columns_ in columns]
        inputs = dict(zip(self.names, moved, strict=True))

        # 0 within the history, -1 beyond it
        document = inside.long() - 1
        # clamped: beyond the history positions are not read, but a learned table must hold them
        position = torch.arange(mask.shape[1], device=mask.device).clamp(
            max=self.model.config.max_length - 1
        )
        position = position.expand_as(mask)

        hidden = self.model.model(**inputs, document=document, position=position).last_hidden_state
        last = (kept - 1).clamp(min=0)
        state = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]  # (B, C)

        # of no event, or of ids that are none, nothing can be said: some runtimes would count from
        # the other end
        wrong = (count == 0) | torch.stack([(values < 0).any(1) for values in columns]).any(0)
        state = state.masked_fill(wrong[:, None], torch.nan)

        past: Past | Memory | Any = None
        if self.model.config.memory:
            past = Memory(*given[len(ids) :])
        elif self.model.history is not None:
            slots = (self.model.config.field_sizes or {})["slot"]
            fields = dict(zip(self.model.config.columns, moved, strict=True))
            ids_by_name = self.model.history_ids(fields)
            behavior = ids_by_name["behavior"]
            # (B, L): where each behavior first occurs
            first = (behavior[:, :, None] == behavior[:, None]).int().argmax(-1)
            past = self.model.history.at_last(
                Past(**ids_by_name, document=document, slots=slots), first, last
            )

        logits = self.model.head(state, past, self.model._tied_embedding())
        logits = self.model.without_retired(logits)
        return logits.masked_fill(wrong[:, None], torch.nan), state


def _last_events(
    real: torch.Tensor, skipped: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (B, L) of each row's last `kept` (B,) real ones, in their order and from the first
    on; and a mask.

    `real` (B, L) bool may be padded anywhere; its first `skipped` (B,) events are left out.
    """
    # by comparisons alone: a nonzero() would have a shape that depends on the ids
    index = torch.arange(real.shape[1], device=real.device)
    inside = index < kept[:, None]
    rank = real.long().cumsum(1) - 1 - skipped[:, None]  # of each real event among those kept
    is_source = (rank[:, None, :] == index[:, None]) & real[:, None, :]  # (B, L to, L from)
    # argmax of a row without any gives 0, which `inside` masks
    return is_source.int().argmax(-1), inside
