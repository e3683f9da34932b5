"""Settings of an update, for Python and the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from behavegpt.config import Settings
from behavegpt.option_types import Real, Seed, Whole


class UpdateSettings(Settings):
    """How new events are read, learned and judged."""

    steps: Annotated[Whole, Field(ge=0, le=10**6)] = Field(
        100, description="optimizer steps; 0: update only vocabulary, frequencies and tables"
    )
    rate: Annotated[Real, Field(gt=0, le=10)] = Field(
        0.3, description="peak learning rates, relative to those of the run's configuration"
    )
    replay: Annotated[Real, Field(ge=0, le=0.95)] = Field(
        0.5, description="share of earlier events in the training data"
    )
    held_out: Annotated[Real, Field(gt=0, le=0.9)] = Field(
        0.2,
        description="share of users whose new events evaluate the update and are not trained on",
    )
    margin: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.005, description="drop in NDCG@3 on them that rolls the update back"
    )
    min_count: Annotated[Whole, Field(ge=1)] = Field(
        1, description="new events a label needs to enter the vocabulary"
    )
    late: Literal["refuse", "drop"] = Field(
        "refuse", description="what to do with events that are not later than all earlier ones"
    )
    max_reject_share: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.01, description="stop if a larger share of the rows is bad"
    )
    keep: Annotated[Whole, Field(ge=1)] = Field(
        2, description="versions kept in RUN/updates; all but the oldest can be undone"
    )
    states: StrictBool = Field(
        False, description="also write RUN/states, from which the service can start"
    )
    seed: Seed = Field(0, description="seed for held-out users, replay and training")
