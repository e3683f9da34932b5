"""Options of an adaptation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from behavegpt.config import Settings


class LoraSettings(Settings):
    """Low-rank adapters (mode lora)."""

    rank: int = Field(8, ge=1, description="inner width of the adapters")
    alpha: float = Field(16.0, gt=0, description="scale: the adapter's output counts alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    rank_stabilized: bool = Field(False, description="scale by alpha / sqrt(rank) instead (rsLoRA)")
    weight_decomposed: bool = Field(False, description="learn the weights' norms apart (DoRA)")


class AdaptSettings(Settings):
    """Options of the adaptation; one that the mode does not have must keep its default."""

    vocabulary: Literal["auto", "grow", "data"] = Field(
        "auto",
        description=(
            "grow: the base's ids, new labels appended; data: the prepared folder's; auto: by the "
            "mode"
        ),
    )
    new: tuple[str, ...] | None = Field(
        None, description="behaviors to add (with grow); null: all the base lacks"
    )
    same_labels: bool = Field(
        True, description="whether equal labels mean the same in the base and the data"
    )
    rows: Literal["all", "new"] = Field(
        "all", description="new_behavior: train everything, or only the new rows"
    )
    time: Literal["auto", "copied", "fresh"] = Field(
        "auto", description="weekday and slot embeddings"
    )
    gate: Literal["auto", "copied", "fresh"] = Field(
        "auto", description="how much the user's own past counts"
    )
    scale: Literal["model", "base"] = Field(
        "model",
        description=(
            "fresh embeddings: at the scale of a new model, or with mean and spread of the base's"
        ),
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="of the adapted model; null: the base's"
    )
    lora: LoraSettings = Field(default_factory=LoraSettings)
