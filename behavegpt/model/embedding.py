"""Embedding of an event: one table per field, side by side (eq. 2)."""

from __future__ import annotations

import torch
from torch import nn

from behavegpt.model.config import BehaveGPTConfig


def field_tables(config: BehaveGPTConfig) -> nn.ModuleDict:
    """One embedding table per field, in the order of the fields."""
    return nn.ModuleDict(
        {
            module_name(field): nn.Embedding(size, config.embedding_size)
            for field, size in (config.field_sizes or {}).items()
        }
    )


def module_name(field: str) -> str:
    """What a field's table is called: its own name, but where torch refuses that (`geo.city`,
    `type`)."""
    # torch takes a dot for the path of a submodule, and names of its own methods for these
    if "." in field or field.startswith("%") or hasattr(nn.ModuleDict(), field):
        return "%" + field.replace("%", "%25").replace(".", "%2E")
    return field


class EventEmbedding(nn.Module):
    """Concatenates the embeddings of all fields: F tensors (B, R) of ids -> (B, R, F * d)."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        self.fields, self.tables = tuple(config.field_sizes or ()), field_tables(config)

        self.position = (
            nn.Embedding(config.max_length, config.hidden_size)
            if config.position_encoding == "learned"
            else None
        )

        self.dropout = nn.Dropout(config.dropout)

    def forward(self, fields: dict[str, torch.Tensor], position: torch.Tensor) -> torch.Tensor:
        """`fields` by name, each (B, R) int64; `position` (B, R) int64 within the history."""
        missing = [name for name in self.fields if fields.get(name) is None]
        if missing:
            given = ", ".join(name for name, ids in fields.items() if ids is not None)
            raise ValueError(
                f"the model also needs the field {missing[0]!r} as {missing[0]}_ids; given: "
                f"{given}. transformers' Trainer drops columns of further fields unless "
                "TrainingArguments has remove_unused_columns=False"
            )

        named = zip(self.fields, self.tables.values(), strict=True)
        # (B, R, F * d)
        embedded = torch.cat([table(fields[name]) for name, table in named], dim=-1)
        if self.position is not None:
            embedded = embedded + self.position(position)

        return self.dropout(embedded)
