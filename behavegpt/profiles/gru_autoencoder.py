"""GRU autoencoder (Klenitskiy et al. 2025, section 3.1): a history is squeezed into one vector and
rebuilt from it.

    week_all:       {kind: gru_autoencoder,
                     fields: [week, event, category, price, "sku:5000", "url:5000"]}
    all:            the same without week
    day_event_type: {kind: gru_autoencoder, fields: [day, event], combine: concat, hidden: 128,
                     layers: 2, dropout: 0.5}
    sku_text:       {kind: gru_autoencoder, fields: [name], events: [product_buy, ...],
                     clients: all, longest: 66}

encoder   e_t = sum (or concatenation) of the embeddings of the fields at t
          u   = GRU(e_0 ... e_T), last layer at T
decoder   d_t = GRU(e_0 + u, ..., e_t + u)
          logits_f = W_f d_t + b_f for x_{t+1, f}
loss      sum over fields of the mean cross-entropy of x_1 ... x_T; x_0 is START and x_T END

Where the paper and its public code differ: the code also hands the encoder's whole last state, all
layers, to the decoder, so that more passes the bottleneck than the vector that is exported
(`start: all`; the paper adds u at each step alone, our default `start: zeros`); it encodes the
padding, ours is packed; it stops early by a decoder that runs freely, ours by the loss that is
trained; it concatenates the fields of day_event_type where the paper's figure adds them
(`combine`).

Shape letters: B clients, L longest of the batch, T steps of them all, H width, V ids of a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from behavegpt.batch import moved
from behavegpt.devices import choose_device
from behavegpt.errors import DataError
from behavegpt.losses.base import CrossEntropy
from behavegpt.model.chunks import linear_loss
from behavegpt.profiles.fields import RAW, SequenceSettings
from behavegpt.profiles.members import Context
from behavegpt.profiles.networks import NetworkSettings, embed_store, fit_network, open_network
from behavegpt.profiles.task import Task, seeded
from behavegpt.user_embeddings import UserEmbeddings


class GruSettings(NetworkSettings):
    """What is rebuilt, and by how large a network; the defaults are the paper's week_all but for
    its fields."""

    kind: Literal["gru_autoencoder"] = "gru_autoencoder"
    longest: int = Field(
        128, ge=3, description="length of a sequence with START and END: its newest events"
    )
    combine: Literal["sum", "concat"] = Field(
        "sum", description="of the fields' embeddings; concat shares the width"
    )
    hidden: int = Field(512, ge=1, description="width of embeddings, GRU and vector")
    layers: int = Field(3, ge=1, description="of the encoder and of the decoder")
    dropout: float = Field(0.1, ge=0, lt=1, description="between GRU layers")
    start: Literal["zeros", "last", "all"] = Field(
        "zeros",
        description=(
            "decoder's first state: zeros, the vector in every layer, or the encoder's of all "
            "layers"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> GruSettings:
        raw = [spec.name for spec in self.sequence.specs if spec.name in RAW]
        if raw:
            raise ValueError(f"{raw[0]} has no ids to predict; use day, week, weekday or hour")
        if self.combine == "concat" and self.hidden % len(self.fields):
            raise ValueError(
                f"hidden={self.hidden} cannot be shared by {len(self.fields)} concatenated fields"
            )
        return self

    @property
    def sequence(self) -> SequenceSettings:
        """The sequence store's settings; START and END are not stored."""
        return SequenceSettings(
            fields=self.fields, events=self.events, clients=self.clients, last=self.longest - 2
        )


class GruAutoencoder(nn.Module):
    """Encoder, decoder and one head for each field; `sizes`: field -> V, in the order of the
    embeddings."""

    def __init__(self, settings: GruSettings, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.combine, self.start = settings.combine, settings.start
        width = settings.hidden if settings.combine == "sum" else settings.hidden // len(sizes)
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(size, width) for name, size in sizes.items()}
        )

        # torch warns of dropout in a GRU of one layer, which has no layer after it
        shape = {
            "num_layers": settings.layers,
            "dropout": settings.dropout if settings.layers > 1 else 0.0,
        }
        self.encoder = nn.GRU(settings.hidden, settings.hidden, batch_first=True, **shape)
        self.decoder = nn.GRU(settings.hidden, settings.hidden, batch_first=True, **shape)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(settings.hidden, size) for name, size in sizes.items()}
        )
        self.criteria = {name: CrossEntropy(torch.ones(size)) for name, size in sizes.items()}

    def embed(self, ids: Mapping[str, Tensor]) -> Tensor:
        """Field -> ids (B, L) to event embeddings (B, L, H)."""
        parts = [embedding(ids[name]) for name, embedding in self.embeddings.items()]
        return torch.stack(parts).sum(0) if self.combine == "sum" else torch.cat(parts, dim=-1)

    def encode(self, events: Tensor, lengths: Tensor) -> Tensor:
        """Event embeddings (B, L, H) and lengths (B,) on the CPU -> last state of every layer
        (layers, B, H).

        The vector is the last layer's. Packed: what stands behind a sequence is never read.
        """
        state: Tensor = self.encoder(packed(events, lengths))[1]  # the final state, not the outputs
        return state

    def decode(self, events: Tensor, state: Tensor, lengths: Tensor) -> Tensor:
        """Event embeddings (B, L, H) and the encoder's state (layers, B, H) -> (T, H), time by
        time.

        Step t has read the events up to t and the vector, and is to predict event t + 1; the last
        event is not read.
        """
        first = {
            "zeros": torch.zeros_like(state),
            "last": state[-1:].expand_as(state),
            "all": state,
        }[self.start]
        # the vector is added at every step: the bottleneck that must carry the whole history
        steps = packed(events[:, :-1] + state[-1][:, None], lengths - 1)

        hidden: Tensor = self.decoder(steps, first.contiguous())[0].data

        return hidden

    def forward(self, ids: Mapping[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        """Field -> sum () of the cross-entropies of the ids that come next, the decoder fed with
        the true ones."""
        events = self.embed(ids)

        hidden = self.decode(events, self.encode(events, lengths), lengths)  # (T, H)

        losses: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            assert isinstance(head, nn.Linear)
            following = packed(ids[name][:, 1:], lengths - 1).data  # (T,)
            criterion = self.criteria[name].to(hidden.device)
            losses[name] = linear_loss(head, criterion, hidden, following).total

        return losses


def packed(padded: Tensor, lengths: Tensor) -> PackedSequence:
    """(B, L, ...) without what stands behind `lengths` (B,), time by time."""
    return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)


def fit(context: Context, settings: GruSettings, folder: Path) -> None:
    """Train on all chosen histories."""
    vocabularies = context.vocabularies(settings.sequence)
    store = context.sequences(settings.sequence, vocabularies)
    if not len(store.clients):
        raise DataError(
            f"nobody has an event of {', '.join(settings.events)}; choose others in `events`."
        )

    device = choose_device(context.device)
    with seeded(context.seed):
        network = GruAutoencoder(settings, vocabularies.sizes).to(device)

    def objective(rows: np.ndarray, _: np.random.Generator) -> tuple[Tensor, float]:
        ids, lengths = store.padded(rows, settings.longest)  # (B, L) of each field, (B,)
        losses = network(moved(ids, device), torch.from_numpy(lengths))
        # divided by the predicted ids of one field: the same for all, so their losses add up
        return torch.stack(list(losses.values())).sum(), float((lengths - 1).sum())

    task = Task("autoencoder", np.arange(len(store.clients)), objective, store.lengths)
    fit_network(context, settings, folder, vocabularies, task, network)


def embed(context: Context, settings: GruSettings, folder: Path) -> UserEmbeddings:
    """(U, H) float32 of the asked clients with an event: the encoder's last state, without
    dropout."""
    network, store = open_network(
        context, settings, folder, lambda known: GruAutoencoder(settings, known.sizes)
    )
    device = choose_device(context.device)

    def encode(rows: np.ndarray) -> Tensor:
        ids, lengths = store.padded(rows, settings.longest)  # (B, L) of each field, (B,)
        # the last layer's state: (layers, B, H) -> (B, H)
        return network.encode(network.embed(moved(ids, device)), torch.from_numpy(lengths))[-1]

    return embed_store(store, settings, encode)
