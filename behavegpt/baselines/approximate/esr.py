"""ESR without a language model (after LLM-ESR, NeurIPS 2024); `esr_nollm`, named so because the
point of the original is missing: its item vectors come from a language model's reading of texts,
ours from co-occurrence (cooccurrence.py), or from a file (`options.text_vectors`) for those who
have such vectors.

    id view         a_t = W_a x_t             x: embedded fields; the events' table begins at the
                                              vectors' first columns
    meaning view    b_t = W_2 (W_1 z_{e_t})   z: frozen vectors of the events
    exchange        a' = a + attention(LN a, LN b)
                    b' = b + attention(LN b, LN a)      2 heads, causal
    h = [F(a'); F(b')]                        F: the same SASRec blocks for both views
    score_k = h . [id_k; W_4 (W_3 z_k)]
    self-distillation: alpha |h_u - stopgrad(mean h of similar users)|^2 / C, h at a history's last
                    event; similar: the `similar` nearest histories of the batch by mean z (the
                    original searches all users)

The released exchange masks padding alone, so that training on all positions leaks; ours is causal.
Ours: full cross-entropy or another loss of the project instead of one negative; the head has layers
of its own for z.

Shape letters: B rows, R positions, D histories, L events of the longest, C hidden width, N
predicted positions, K behaviors, V width of a frozen vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.cooccurrence import label_vectors
from behavegpt.baselines.heads import ScoreHead, Side
from behavegpt.baselines.layout import Layout
from behavegpt.baselines.sasrec import SASRecAttention, SASRecBlock
from behavegpt.config import Settings
from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.model.attention import plan_attention
from behavegpt.model.config import SPECIAL_IDS
from behavegpt.model.output import Encoded

HEADS = 2  # of the exchange


class Options(Settings):
    """ESR's own."""

    vector: int = Field(64, ge=2, description="width of the frozen vectors")
    text_vectors: str | None = Field(
        None,
        description=".npz with `labels` (L,) and `vectors` (L, D >= vector), of events; not saved",
    )
    similar: int = Field(10, ge=1, description="users that a user's state is drawn to")
    alpha: float = Field(0.1, ge=0, description="weight of that")


class ESREncoder(nn.Module):
    """Two views, each of half the hidden width."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config, self.options = config, Options(**(config.options or {}))
        half, vector = config.hidden_size // 2, self.options.vector
        self.vectors: torch.Tensor
        self.register_buffer("vectors", torch.zeros((config.field_sizes or {})["event"], vector))
        self.to_half = nn.Linear(config.hidden_size, half)
        self.adapter = nn.Sequential(nn.Linear(vector, vector // 2), nn.Linear(vector // 2, half))
        self.norms = nn.ModuleList(
            [nn.LayerNorm(half, eps=config.layer_norm_eps) for _ in range(2)]
        )
        self.exchange = nn.ModuleList([SASRecAttention(half, HEADS) for _ in range(2)])
        self.blocks = nn.ModuleList(
            [SASRecBlock(config, half) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(half, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C), in training with the distillation's loss (B, R)."""
        plan = plan_attention(layout.document, self.config._attn_implementation or "sdpa")
        frozen = self.vectors[layout.ids["event"]]  # (B, R, V)
        views = [self.to_half(x), self.adapter(frozen)]  # each (B, R, C / 2)
        normed = [norm(view) for norm, view in zip(self.norms, views, strict=True)]

        # each view asks the other one; both then pass the same blocks
        exchanged = []
        for own, attention in enumerate(self.exchange):
            view = views[own] + attention(normed[own], normed[1 - own], plan)
            for block in self.blocks:
                view = block(view, plan)
            exchanged.append(self.norm(view))

        hidden = torch.cat(exchanged, dim=-1)  # (B, R, C)
        auxiliary = self._distillation(hidden, frozen, layout) if self.training else None
        return Encoded(hidden, auxiliary=auxiliary)

    def _distillation(
        self, hidden: torch.Tensor, frozen: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """(B, R): at each history's last event, the squared distance times the history's events."""
        histories = layout.unpack()
        users = len(histories.length)

        # the batch may hold few users; a user alone is similar to nobody
        near = min(self.options.similar, users - 1)
        if near < 1:
            return hidden.new_zeros(layout.document.shape)

        last = histories.place.gather(1, histories.length[:, None] - 1)[:, 0]  # (D,)
        state = hidden.flatten(0, 1)[last]  # (D, C)
        mean = histories.take(frozen).sum(1) / histories.length[:, None]  # (D, V)
        alike = F.normalize(mean, dim=-1) @ F.normalize(mean, dim=-1).T  # (D, D) cosines

        # never oneself: below any cosine
        alike = alike.masked_fill(torch.eye(users, dtype=torch.bool, device=alike.device), -2.0)
        target = state.detach()[alike.topk(near).indices].mean(1)  # (D, C), no gradient

        # times the length: losses are sums over events, and each history has one distance
        distance = self.options.alpha * (state - target).square().mean(-1) * histories.length

        flat = hidden.new_zeros(layout.document.numel()).index_copy(0, last, distance)
        return flat.view(layout.document.shape)


class ESRHead(ScoreHead):
    """A class is its own vector beside its adapted frozen one."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        vector, half = Options(**(config.options or {})).vector, config.hidden_size // 2
        self.classes = nn.Embedding(config.num_behaviors, half)
        self.adapter = nn.Sequential(nn.Linear(vector, vector // 2), nn.Linear(vector // 2, half))
        self.vectors: torch.Tensor
        self.register_buffer("vectors", torch.zeros(config.num_behaviors, vector))

    def forward(self, hidden: torch.Tensor, side: Side, event_table: torch.Tensor) -> torch.Tensor:
        """hidden (N, C) -> logits (N, K)"""
        assert self.classes is not None
        classes = torch.cat([self.classes.weight, self.adapter(self.vectors)], dim=-1)  # (K, C)
        return self.biased(hidden @ classes.T)


def start(model: Any, store: EventStore) -> None:
    """The frozen vectors, at unit mean square; the events' embeddings at their first columns, as
    wide as usual."""
    encoder, table = model.model.encoder, model.model.embedding.tables["event"].weight
    given = model.config.options["text_vectors"]

    # the weights hold the vectors from now on; a model loads without the file
    model.config.options["text_vectors"] = None

    for target, column in (
        (encoder.vectors[SPECIAL_IDS:], "event"),
        (model.head.vectors, "behavior"),
    ):
        vocabulary = store.behaviors if column == "behavior" else store.vocabulary["event"]
        vectors = label_vectors(store, column, target.shape[1])
        # the file is of events: it names the behaviors only where these are the events
        if given and (column == "event" or store.schema.behavior_is_event):
            vectors = read_vectors(Path(given), vocabulary, target.shape[1])
        target.copy_(vectors / vectors.square().mean().sqrt().clamp(min=1e-6))

    # scaled like any other embedding: at unit size they would drown the other fields
    shared = min(table.shape[1], encoder.vectors.shape[1])
    table.data[SPECIAL_IDS:, :shared] = (
        model.config.initializer_range * encoder.vectors[SPECIAL_IDS:, :shared]
    )


def read_vectors(path: Path, vocabulary: Vocabulary, width: int) -> torch.Tensor:
    """(labels, width) principal components of the vectors that a file gives to a vocabulary's
    labels.

    Labels without a vector get zeros. Raises DataError for a file that does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file["labels"].astype(str).tolist()
            vectors = torch.from_numpy(file["vectors"]).float()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not an .npz file with `labels` and `vectors` as plain arrays ({error})."
        ) from None

    if vectors.ndim != 2 or len(labels) != len(vectors) or vectors.shape[1] < width:
        raise DataError(
            f"{path}: {len(labels)} labels and vectors of shape {tuple(vectors.shape)}; give one "
            f"row a label, at least {width} wide, or lower options.vector."
        )

    ids = torch.from_numpy(vocabulary.encode(labels)) - SPECIAL_IDS
    known = ids >= 0
    if not bool(known.any()):
        raise DataError(
            f"{path}: none of its {len(labels)} labels is one of the data's; check how they are "
            "written."
        )

    # the directions in which the known labels differ most, in as many columns as are asked for
    centered = vectors[known] - vectors[known].mean(0)
    components = torch.linalg.svd(centered, full_matrices=False).Vh[:width]
    result = torch.zeros(vocabulary.classes, width)
    result[ids[known], : len(components)] = centered @ components.T

    return result
