"""Settings of a rollout."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from behavegpt.option_types import Whole
from behavegpt.options import DrawOptions


class GenerationSettings(DrawOptions):
    """How futures are drawn."""

    keep: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="events kept when the window is full; null: half of it"
    )
    personal: bool = Field(
        True, description="weigh the gap head by the user's own gaps (generation/calibration.py)"
    )
    hours: bool = Field(
        True, description="weigh the gap head by training's gaps at that hour, where measured"
    )
    probabilities: Annotated[Whole, Field(ge=0)] = Field(
        0, description="behaviors a step whose probabilities are returned"
    )
    rows: Annotated[Whole, Field(ge=1)] = Field(
        256, description="users times samples at once; changes no result"
    )
    cache: bool = Field(
        True, description="false: run the whole window again at each step; for comparison"
    )
