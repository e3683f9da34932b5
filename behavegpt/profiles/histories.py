"""Histories as BehaveGPT's transformer reads them: packed into rows, and back to one stretch of
states for each.

Shape letters: N histories, T events of them all, B rows of R positions, C hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from behavegpt.batch import PackedBatch
from behavegpt.config import Settings
from behavegpt.data.collate import collate_inputs, layout_of
from behavegpt.data.loader import row_length_for
from behavegpt.data.pack import Windows, pack_rows
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTConfig
from behavegpt.model.behavegpt import BehaveGPTModel


class Shape(Settings):
    """BehaveGPT's transformer: its width is the number of fields times `embedding_size`."""

    embedding_size: int = Field(32, ge=1, description="width of each field's embedding")
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    positions: Literal["learned", "rope"] = Field(
        "learned", description="GPT-2's also tell how long a history is"
    )
    longest: int = Field(128, ge=2, description="newest events of a history that are read")


class Packed(NamedTuple):
    """N histories in rows, and where each of them is."""

    rows: PackedBatch
    place: Tensor  # (T,) int64: position among B * R of each event, history by history
    bounds: Tensor  # (N + 1,) int64: history n owns events bounds[n]:bounds[n + 1]


def pack(columns: Mapping[str, np.ndarray], lengths: np.ndarray, longest: int) -> Packed:
    """Histories of `lengths` (N,), from 1 to `longest`, one after the other in columns (T,) named
    as the model does.

    A pure function: the columns of a history do not depend on what it is packed with.
    """
    row_length = row_length_for(longest)
    bounds = np.concatenate([[0], np.cumsum(lengths)])  # (N + 1,)

    # `score_from` plays no part: these histories are encoded, nothing is scored
    plan = pack_rows(Windows(bounds[:-1], lengths, np.zeros_like(lengths)), row_length)
    rows = np.arange(plan.rows)
    batch = collate_inputs(columns, plan, rows, row_length, tuple(columns))

    # `layout` lists events row by row; `place` is its inverse, from an event to where it stands
    layout = layout_of(plan, rows, row_length)
    place = np.empty_like(layout.place)  # (T,)
    place[layout.source] = layout.place

    return Packed(batch, torch.from_numpy(place), torch.from_numpy(bounds))


def model_names(fields: Sequence[str]) -> dict[str, str]:
    """Field of a store -> field of the model, which needs one called `event`: the first, where
    there is none."""
    # with no field of events, the first field takes the name that the model asks for
    first = "event" if "event" in fields else fields[0]
    return {name: "event" if name == first else name for name in fields}


class Body(nn.Module):
    """BehaveGPT without its prediction layer, over any fields: packed histories -> states (T,
    C)."""

    def __init__(self, sizes: Mapping[str, int], shape: Shape) -> None:
        """`sizes`: number of ids of each field, by the store's names. Raises ConfigError for an odd
        width."""
        super().__init__()
        self.names = model_names(tuple(sizes))

        # heads share the width, and rotary positions turn pairs of channels
        width = len(sizes) * shape.embedding_size
        if width % (2 * shape.heads):
            raise ConfigError(
                f"{len(sizes)} fields x embedding_size {shape.embedding_size} = {width} must be a "
                f"multiple of 2 x heads = {2 * shape.heads}."
            )

        self.model = BehaveGPTModel(
            BehaveGPTConfig(
                field_sizes={self.names[name]: size for name, size in sizes.items()},
                embedding_size=shape.embedding_size,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                max_length=shape.longest,
                dropout=shape.dropout,
                position_encoding=shape.positions,
            )
        )
        self.width = width

    def forward(self, packed: Packed) -> Tensor:
        """(T, C), history by history."""
        output = self.model(**packed.rows.arguments)
        # (B, R, C) -> (B * R, C) -> (T, C)
        return output.last_hidden_state.flatten(0, 1)[packed.place]

    def table(self, field: str) -> Tensor:
        """(V, d): the embeddings of a field's V ids."""
        table = self.model.embedding.tables[self.names[field]]
        assert isinstance(table, nn.Embedding)
        return table.weight


def last_states(states: Tensor, bounds: Tensor) -> Tensor:
    """(T, C) -> (N, C) of each history's last event."""
    return states[bounds[1:] - 1]


def mean_states(states: Tensor, bounds: Tensor) -> Tensor:
    """(T, C) -> (N, C), the mean over each history's events; 0 for one without events."""
    lengths = bounds.diff()  # (N,)
    # (T,) the history of each event
    which = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
    total = states.new_zeros(len(lengths), states.shape[1]).index_add(0, which, states)  # (N, C)
    return total / lengths.clamp(min=1)[:, None]
