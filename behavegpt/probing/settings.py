"""Settings of a probe, for Python and the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from behavegpt.option_types import Whole
from behavegpt.options import EmbedOptions

Task = Literal["classification", "regression"]
Kind = Literal["linear", "boosting"]


def _distinct(values: Any) -> Any:
    """A list of one value or more, each once."""
    if not isinstance(values, (list, tuple)):
        raise ValueError("write a list")
    if len(set(map(str, values))) < len(values):
        raise ValueError("a value is listed twice; list each one once")
    return tuple(values)


class ProbeSettings(EmbedOptions):
    """What is predicted from what, and how often."""

    task: Literal["auto", "classification", "regression"] = Field(
        "auto", description="auto: regression for numbers with more than 20 values, else classes"
    )
    probes: Annotated[tuple[Kind, ...], BeforeValidator(_distinct), Field(min_length=1)] = Field(
        ("linear", "boosting"), description="logistic or ridge regression; gradient boosting"
    )
    folds: Annotated[Whole, Field(ge=2, le=50)] = Field(
        5, description="cross-validation folds, by user"
    )
    seeds: Annotated[Whole, Field(ge=1, le=50)] = Field(
        3, description="repetitions with other folds"
    )
    top_labels: Annotated[Whole, Field(ge=1, le=10_000)] = Field(
        100, description="labels per column used as count features, the most frequent ones"
    )
    min_users: Annotated[Whole, Field(ge=20)] = Field(
        50, description="stop with fewer labeled users than this before the date"
    )
    stale_weeks: Annotated[
        tuple[Annotated[Whole, Field(ge=0, le=520)], ...], BeforeValidator(_distinct)
    ] = Field((), description="ages of the vectors, in weeks, for the staleness curve")
