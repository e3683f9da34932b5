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

from behavegpt.batch import PADDING
from behavegpt.config import Settings
from behavegpt.data.loader import row_length_for
from behavegpt.data.pack import Windows, argument_name, pack_rows
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTConfig
from behavegpt.model.behavegpt import BehaveGPTModel
from behavegpt.ragged import owners, positions


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
    """N histories in rows. A NamedTuple, so that it moves to a device as a whole."""

    inputs: dict[str, Tensor]  # the model's arguments, each (B, R) int64
    document: Tensor  # (B, R) int64
    position: Tensor  # (B, R) int64
    place: Tensor  # (T,) int64: position among B * R of each event, history by history
    bounds: Tensor  # (N + 1,) int64: history n owns events bounds[n]:bounds[n + 1]

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        inputs = {name: ids.to(device) for name, ids in self.inputs.items()}
        return Packed(inputs, *(tensor.to(device) for tensor in self[1:]))


def pack(columns: Mapping[str, np.ndarray], lengths: np.ndarray, longest: int) -> Packed:
    """Histories of `lengths` (N,), from 1 to `longest`, one after the other in columns (T,) named
    as the model does.

    A pure function: the columns of a history do not depend on what it is packed with.
    """
    row_length, bounds = row_length_for(longest), np.concatenate([[0], np.cumsum(lengths)])
    # nothing is scored here
    plan = pack_rows(Windows(bounds[:-1], lengths, np.zeros_like(lengths)), row_length)
    row = owners(np.diff(plan.pointer))
    # of each window: they are packed in another order
    history = np.searchsorted(bounds[:-1], plan.windows.start)
    base, document = np.empty((2, len(lengths)), np.int64)
    base[history] = row * row_length + plan.offset
    document[history] = np.arange(len(lengths)) - plan.pointer[row]
    position = positions(lengths)
    place = np.repeat(base, lengths) + position

    def spread(values: np.ndarray, fill: int) -> Tensor:
        flat = np.full(plan.rows * row_length, fill, np.int64)
        flat[place] = values
        return torch.from_numpy(flat.reshape(plan.rows, row_length))

    return Packed(
        {argument_name(name): spread(column, 0) for name, column in columns.items()},
        spread(np.repeat(document, lengths), PADDING),
        spread(position, 0),
        torch.from_numpy(place),
        torch.from_numpy(bounds),
    )


def model_names(fields: Sequence[str]) -> dict[str, str]:
    """Field of a store -> field of the model, which needs one called `event`: the first, where
    there is none."""
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
        width = len(sizes) * shape.embedding_size
        if width % (2 * shape.heads):
            raise ConfigError(
                f"{len(sizes)} fields x embedding_size {shape.embedding_size} = {width} must be a "
                "multiple of "
                f"2 x heads = {2 * shape.heads}."
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
        output = self.model(**packed.inputs, document=packed.document, position=packed.position)
        return output.last_hidden_state.flatten(0, 1)[packed.place]

    def table(self, field: str) -> Tensor:
        """(ids, d) the embeddings of a field."""
        found = self.model.embedding.tables[self.names[field]]
        assert isinstance(found, nn.Embedding)
        return found.weight


def last_states(states: Tensor, bounds: Tensor) -> Tensor:
    """(T, C) -> (N, C) of each history's last event."""
    return states[bounds[1:] - 1]


def mean_states(states: Tensor, bounds: Tensor) -> Tensor:
    """(T, C) -> (N, C), the mean over each history's events; 0 for one without events."""
    lengths = bounds.diff()
    which = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths)
    total = states.new_zeros(len(lengths), states.shape[1]).index_add(0, which, states)
    return total / lengths.clamp(min=1)[:, None]
