"""BehaveGPT with a label head: one answer about each user, from the states of all their events.

Shape letters: B rows, R positions, S histories of a row, N users, C hidden width, A aggregates,
O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from behavegpt.model.body import BehaveGPTModel, BehaveGPTPreTrainedModel
from behavegpt.model.config import BehaveGPTConfig

AGGREGATES = 7  # numbers of a user's past beside its events, as probing/features.py makes them


@strict
class BehaveGPTLabelConfig(BehaveGPTConfig):
    """A BehaveGPTConfig, and what is said of users."""

    model_type = "behavegpt_label"

    label: str = "label"  # what the column was called
    classes: list[str] | None = None  # null: a number
    mean: float = 0.0  # of a number in training, in whose spread the output counts
    spread: float = 1.0

    def validate_architecture(self) -> None:
        """Refuse classes that are none."""
        super().validate_architecture()
        classes = self.classes
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ValueError(f"BehaveGPTConfig: classes must be two or more, each once: {classes}.")


class BehaveGPTForUserLabels(BehaveGPTPreTrainedModel):
    """The transformer with a head that says a class, or a number, of each user."""

    config: BehaveGPTLabelConfig
    config_class = BehaveGPTLabelConfig
    # what a model that predicts behaviors has, and this one has no use for
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^next_heads\.", r"^given\."]
    counts = None  # no memory

    def __init__(self, config: BehaveGPTLabelConfig) -> None:
        super().__init__(config)
        self.model = BehaveGPTModel(config)
        self.dropout = nn.Dropout(config.dropout)
        width = 2 * config.hidden_size + AGGREGATES
        self.label_head = nn.Linear(width, len(config.classes) if config.classes else 1)

        # mean and spread of the training users' features before training: means over histories
        # vary less than states do
        self.center: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        aggregates: torch.Tensor,
        document: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **fields: Any,
    ) -> SequenceClassifierOutput:
        """Logits (N, O) of the users of packed or plain rows, in their order, their features
        (N, 2 C + A), and with `labels` (N,), classes or scaled numbers, the mean loss.

        `aggregates` (N, A); the others as for BehaveGPTModel.
        """
        output = self.model(
            input_ids,
            document=document,
            position=position,
            attention_mask=attention_mask,
            **fields,
        )
        pooled = pool(output.last_hidden_state, _documents(output, document, attention_mask))
        features = torch.cat([pooled.float(), aggregates], -1)
        logits = self.label_head(self.dropout((features - self.center) / self.scale))  # (N, O)

        loss = None
        if labels is not None and self.config.classes:
            loss = F.cross_entropy(logits, labels)
        elif labels is not None:
            loss = F.mse_loss(logits[:, 0], labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=(features,))


def pool(hidden: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    """Mean and last state (N, 2 C) of each history of rows (B, R, C), row by row; document (B, R)
    is below 0 where there is no event."""
    index = torch.arange(int(document.max()) + 1, device=document.device)  # (S,)
    member = document[:, None, :] == index[:, None]  # (B, S, R)
    number = member.sum(-1, keepdim=True)
    last = member & (member.cumsum(-1) == number)

    held = number[..., 0] > 0  # (B, S), false where a row holds fewer histories
    mean = (member.to(hidden.dtype) @ hidden / number.clamp_min(1))[held]
    return torch.cat([mean, (last.to(hidden.dtype) @ hidden)[held]], -1)


def _documents(
    output: Any, document: torch.Tensor | None, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Which history each position belongs to (B, R); of plain rows all are one each."""
    if document is not None:
        return document
    there = torch.ones(output.last_hidden_state.shape[:2], device=output.last_hidden_state.device)
    return (there if attention_mask is None else attention_mask).long() - 1


AutoConfig.register(BehaveGPTLabelConfig.model_type, BehaveGPTLabelConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    BehaveGPTLabelConfig, BehaveGPTForUserLabels, exist_ok=True
)
