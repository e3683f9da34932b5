"""Settings of a fine-tuning with a label head, for Python and the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from behavegpt.config import Settings
from behavegpt.option_types import Real, Seed, Whole


class LabelSettings(Settings):
    """How a label head is trained and judged."""

    task: Literal["auto", "classification", "regression"] = Field(
        "auto", description="auto: numbers of more than 20 values are regressed, others are classes"
    )
    epochs: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(
        None, description="passes over the users; null: 10 to 100, about 600 steps"
    )
    lr: Annotated[Real, Field(gt=0, le=1)] = Field(1e-3, description="AdamW's peak, of the head")
    body_lr: Annotated[Real, Field(ge=0, le=1)] = Field(
        3e-5, description="that of the transformer; 0: it stays as it is"
    )
    weight_decay: Annotated[Real, Field(ge=0)] = Field(0.01, description="AdamW's")
    batch_users: Annotated[Whole, Field(ge=1)] = Field(64, description="users of a step")
    held_out: Annotated[Real, Field(gt=0, lt=0.5)] = Field(
        0.15, description="share of the training users who choose the best epoch"
    )
    seed: Seed = Field(0, description="of initialization, order and held-out users")
    folds: Annotated[Whole, Field(ge=2, le=50)] = Field(5, description="parts of the users")
    seeds: Annotated[Whole, Field(ge=0, le=50)] = Field(
        1, description="how often the users are parted for the figures; 0: no figures"
    )
    top_labels: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        100, description="labels of each column that the counts beside it count"
    )
    min_users: Annotated[Whole, Field(ge=20)] = Field(
        50, description="least labeled users with events before the date"
    )
