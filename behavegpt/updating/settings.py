"""Settings of an update, for Python and the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from behavegpt.config import Settings
from behavegpt.option_types import Real, Seed, Whole


class UpdateSettings(Settings):
    """How new events are read, learned and judged."""

    steps: Annotated[Whole, Field(ge=0, le=10**6)] = Field(
        100, description="optimizer steps; 0: vocabulary, frequencies and tables alone"
    )
    rate: Annotated[Real, Field(gt=0, le=10)] = Field(
        0.3, description="peak learning rates, as a share of those of the run's configuration"
    )
    replay: Annotated[Real, Field(ge=0, le=0.95)] = Field(
        0.5, description="share of earlier events among those that are trained on"
    )
    held_out: Annotated[Real, Field(gt=0, le=0.9)] = Field(
        0.2, description="share of the users whose new events judge the update, untrained"
    )
    margin: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.005, description="how far NDCG@3 on them may fall before the update is rolled back"
    )
    min_count: Annotated[Whole, Field(ge=1)] = Field(
        1, description="new events of a new label, to enter the vocabulary"
    )
    late: Literal["refuse", "drop"] = Field(
        "refuse", description="events that are not later than all that was seen"
    )
    max_reject_share: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.01, description="bad rows that are tolerated"
    )
    keep: Annotated[Whole, Field(ge=1)] = Field(
        2, description="versions kept in RUN/updates; all but the oldest can be undone"
    )
    states: StrictBool = Field(
        False, description="write RUN/states too, what the service starts from"
    )
    seed: Seed = Field(0, description="of the held-out users, the replay and the steps")
