"""Embedding of an event: one table per field, side by side (eq. 2), plus what is known of the
user."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from behavegpt.model.baskets import mean_of_baskets
from behavegpt.model.config import BehaveGPTConfig
from behavegpt.model.elapsed import GAP_IDS


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


class AddedTable(nn.Embedding):
    """Vectors that are added to events; 0 before training, so that a model which goes on from one
    without them begins as that one."""


class UserEmbedding(nn.Module):
    """What is known of the users, such as their country: the sum of a vector of the transformer's
    width for each feature."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        sizes = config.user_features or {}
        self.features = tuple(sizes)
        self.tables = nn.ModuleDict(
            {
                module_name(name): AddedTable(size, config.hidden_size)
                for name, size in sizes.items()
            }
        )

    def forward(self, ids: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Ids (B, R) by feature -> what is added to each event (B, R, C)."""
        missing = [name for name in self.features if ids.get(name) is None]
        if missing:
            raise ValueError(
                f"the model also needs the user's {missing[0]!r} at each event as "
                f"{missing[0]}_ids; 1 says that it is unknown"
            )
        named = zip(self.features, self.tables.values(), strict=True)
        # a sum, not side by side: the width of the blocks must not depend on what is known of users
        return torch.stack([table(ids[name]) for name, table in named]).sum(0)


def user_embedding(config: BehaveGPTConfig) -> UserEmbedding | None:
    """The embedding of a model that reads features of the user, None for any other."""
    return UserEmbedding(config) if config.user_features else None


class EventEmbedding(nn.Module):
    """Concatenates the embeddings of all fields: F tensors (B, R) of ids -> (B, R, F * d)."""

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        self.fields, self.tables = tuple(config.field_sizes or ()), field_tables(config)

        # of the transformer's width, and not of one field's: it says where, not what
        self.position = (
            nn.Embedding(config.max_length, config.hidden_size)
            if config.position_encoding == "learned"
            else None
        )
        # added, like the gap: a model without them has the same weights otherwise
        self.user = user_embedding(config)
        self.gap = AddedTable(GAP_IDS, config.hidden_size) if config.gap else None

        # the sum is dropped out, as in GPT: not each part of it
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        fields: dict[str, torch.Tensor],
        position: torch.Tensor,
        gap: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`fields` by name, each (B, R) int64; `position` (B, R) int64 within the history; `gap`
        (B, R) int64 of elapsed.py. With `sizes` (B, R) of baskets the fields are (E,), and a
        position is the mean of its events."""
        # torch's own message would not say which field it is
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
        if sizes is not None:
            embedded = mean_of_baskets(embedded, sizes)
        if self.position is not None:
            embedded = embedded + self.position(position)
        if self.user is not None:
            user = self.user(fields)
            embedded = embedded + (user if sizes is None else mean_of_baskets(user, sizes))
        if self.gap is not None:
            embedded = embedded + self.gap(gap)

        return self.dropout(embedded)
