"""LIFT (ICML 2024): light fine-tuning of a frozen foundation model with logit-adjusted loss, for
long-tailed classes.

    frozen backbone, AdaptFormer branch in each block (backbone.py)
    score_k = 25 cos(h, e_k)            e_k begins at the mean of h before behavior k in training
    loss: cross-entropy of score + log frequency (loss.name=logit_adjustment, tau 1)

Written from the paper; its code has no license and was not used. The original's backbones are CLIP
and ImageNet models, the paper's comparison uses GPT-2; ours is a pretrained BehaveGPT:
`options.base`, a model folder of the same data. Ours: AdamW for SGD, a stated branch width (the
original's rule gives 1 for few classes), no test-time ensemble.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional as F

from behavegpt.baselines.backbone import BackboneEncoder
from behavegpt.baselines.config import BaselineConfig
from behavegpt.batch import IGNORED
from behavegpt.config import PathText, Settings
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import evaluation_batches, row_length_for
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.errors import ConfigError
from behavegpt.training.evaluate import hidden_states
from behavegpt.training.model_folder import open_model

INHERITED = (
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_length",
    "position_encoding",
    "layer_norm_eps",
    "field_order",
)
POSITIONS = 8192  # of a batch, where the class means are made


class Options(Settings):
    """LIFT's own."""

    base: PathText | None = Field(
        None, description="pretrained model folder, for example runs/mine/model; not saved"
    )
    branch: int = Field(16, ge=1, description="inner width of AdaptFormer's branches")


def encoder(config: BaselineConfig) -> BackboneEncoder:
    """The backbone with branches."""
    return BackboneEncoder(config, Options(**(config.options or {})).branch)


def inherit(options: Settings) -> dict[str, Any]:
    """The base's shape. Raises ConfigError without a base."""
    path = _base(options.model_dump())
    base, _ = open_model(path)
    if base.config.model_type != "behavegpt":
        raise ConfigError(
            f"{path}: options.base must be a BehaveGPT, this is a {base.config.model_type}."
        )
    return {name: getattr(base.config, name) for name in INHERITED}


def start(model: Any, store: EventStore) -> None:
    """The base's weights, frozen; branches that begin as nothing; class vectors at the class
    means."""
    options = model.config.options
    base, tokenizer = open_model(_base(options))
    if tokenizer.hash != model.config.tokenizer_hash:
        raise ConfigError(
            f"{options['base']}: was trained on other labels; give a base of the same prepared "
            "folder."
        )

    encoder = model.model.encoder
    model.model.embedding.load_state_dict(base.model.embedding.state_dict())
    encoder.load_state_dict(
        # branches and their norms are not among the base's weights
        {n: t for n, t in base.model.state_dict().items() if "embedding" not in n},
        strict=False,
    )
    for branch in encoder.branches:
        # AdaptFormer: W_up begins at 0, so that the tuned model starts as the base
        torch.nn.init.zeros_(branch.up.weight)

    for part in (model.model.embedding, encoder.blocks, encoder.norm):
        part.requires_grad_(False)

    # the weights hold the base from now on; a model loads without its folder
    options["base"] = None

    model.head.classes.weight.data.copy_(class_means(model, store))


@torch.no_grad()
def class_means(model: Any, store: EventStore) -> torch.Tensor:
    """(K, C) mean unit state before each behavior of the training split; zeros become small random
    vectors."""
    config = model.config
    total = torch.zeros(config.num_behaviors, config.hidden_size)
    rows = max(1, POSITIONS // row_length_for(config.max_length))
    fields = BatchFields(config.columns)
    batches = evaluation_batches(
        store, TRAIN, max_length=config.max_length, rows_per_batch=rows, fields=fields
    )

    for batch, hidden in hidden_states(model, batches):
        wanted = batch.target != IGNORED  # (B, R)
        total.index_add_(0, batch.target[wanted], F.normalize(hidden[wanted], dim=-1))

    # a class without a training event has no mean to begin at
    random = config.initializer_range * torch.randn_like(total)
    return torch.where(total.any(1, keepdim=True), F.normalize(total, dim=-1), random)


def _base(options: dict[str, Any]) -> Path:
    if not options.get("base"):
        raise ConfigError("lift tunes a pretrained model: give model.options.base=runs/mine/model.")
    return Path(options["base"])
