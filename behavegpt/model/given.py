"""What is given of the event that is predicted, for the network: added to the hidden state that its
behavior is predicted from.

Shapes: N predicted positions, C hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from behavegpt.model.config import GIVEN_FIELDS, BehaveGPTConfig
from behavegpt.model.head import Predicted


class GivenLinear(nn.Linear):
    """0 before training, so that a model which starts from other weights is no worse than they
    are."""


class GivenProjection(nn.Module):
    """The input embeddings of the given fields, projected to the hidden width.

    The tables are those of the inputs: an hour means the same before and after.
    """

    def __init__(self, config: BehaveGPTConfig) -> None:
        super().__init__()
        self.fields = fields_of(config)
        width = len(self.fields) * config.embedding_size
        self.projection = GivenLinear(width, config.hidden_size, bias=False)

    def forward(self, given: Mapping[str, torch.Tensor], tables: nn.ModuleDict) -> torch.Tensor:
        """Ids (N,) of the given fields by name -> what is added to hidden states (N, C)."""
        embedded = [tables[field](given[field]) for field in self.fields]  # each (N, d)

        added: torch.Tensor = self.projection(torch.cat(embedded, dim=-1))
        return added


def fields_of(config: BehaveGPTConfig) -> tuple[str, ...]:
    """The given fields that the network has a table of; none where the counts decide alone."""
    # without blocks there is no hidden state to add to; the counts read what is given themselves
    if config.memory and not config.num_hidden_layers:
        return ()

    fields = (field for name in config.given or () for field in GIVEN_FIELDS[name])
    return tuple(field for field in fields if field in (config.field_sizes or {}))


def make_projection(config: BehaveGPTConfig) -> GivenProjection | None:
    """The projection of a model, None where nothing is given to its network."""
    return GivenProjection(config) if fields_of(config) else None


def check_given(projection: GivenProjection | None, predicted: Predicted) -> None:
    """Raise ValueError where a network is not told what it was trained to be given."""
    # without it the logits would be those of a hidden state that training never saw
    if projection is not None and predicted.told is None:
        raise ValueError(
            f"the model is given the {' and '.join(projection.fields)} of the event that it "
            f"predicts: give their ids at the {len(predicted.hidden):,} predicted positions; "
            "Predictor.predict(at=...) makes them (docs/universal.md)"
        )
