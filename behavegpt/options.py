"""Options of a prediction, an embedding and a generation: one table of bounds for Python, command
line and HTTP."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StrictBool, field_validator, model_validator

from behavegpt.config import Settings
from behavegpt.option_types import (
    Groups,
    Labels,
    Parts,
    Policy,
    Real,
    Seed,
    Span,
    Temperature,
    Whole,
    span_seconds,
)


# Each command's numbers have a class of their own, so that a mistake is told by one validator, with
# the same words from Python, the command line and over HTTP.
class PrepareOptions(Settings):
    """Numbers of a preparation."""

    min_events: Annotated[Whole, Field(ge=0)] = Field(1, description="least events of a user")
    min_count: Annotated[Whole, Field(ge=0)] = Field(
        1, description="minimum number of training events of a label"
    )
    max_vocabulary: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="maximum number of labels per column"
    )
    # a few bad rows are normal; more mean that a column was misunderstood
    max_reject_share: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.01, description="stop if a larger share of the rows is bad"
    )
    threads: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="threads of DuckDB (default: all cores)"
    )


class FitOptions(Settings):
    """Numbers of a fitted scaling law."""

    min_events: Annotated[Real, Field(ge=0)] = Field(
        0, description="leave out runs with fewer training events"
    )
    # as Hoffmann et al. (2022) fit theirs: errors beyond it count linearly, so that one diverged
    # run moves little
    delta: Annotated[Real, Field(gt=0)] = Field(
        1e-3, description="delta of the Huber loss on log residuals"
    )
    draws: Annotated[Whole, Field(ge=1)] = Field(400, description="of the bootstrap")
    confidence: Annotated[Real, Field(gt=0, lt=1)] = Field(0.95, description="of the intervals")
    floor: Annotated[Real, Field(gt=0)] | None = Field(
        None, description="loss of the best possible prediction"
    )


class PlanOptions(Settings):
    """Numbers of a plan by a scaling law, and of the cost of a sweep."""

    compute: Annotated[Real, Field(gt=0)] | None = Field(None, description="training operations")
    events: Annotated[Real, Field(gt=0)] | None = Field(None, description="training events")
    hours: Annotated[Real, Field(gt=0)] | None = Field(None, description="of training")
    tflops: Annotated[Real, Field(gt=0)] | None = Field(
        None, description="peak speed of all devices"
    )
    utilization: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.4, description="fraction of the peak speed that is achieved"
    )


class SynthesizeOptions(Settings):
    """Numbers of a synthetic log."""

    events: Annotated[Whole, Field(ge=1)] = Field(description="about how many")
    # the same mean length, whatever the number of events
    users: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="one for 30 events without"
    )
    seed: Seed = Field(0, description="same seed, same log")


class DecisionOptions(Settings):
    """Which behavior is taken, given what the model says."""

    prior_correction: Annotated[Real, Field(ge=0, le=10)] = Field(
        0.0,
        description=(
            "subtract TAU * log(training frequency) from each logit, to favor rare behaviors"
        ),
    )
    thresholds: StrictBool = Field(
        False,
        description=("subtract the model's thresholds, learned on validation, instead"),
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        """One of the two rules, not both."""
        # both shift the logits for rare behaviors: together they would shift them twice
        if self.thresholds and self.prior_correction:
            raise ValueError(
                "thresholds and prior_correction cannot be combined; remove one of them"
            )
        return self


class FilterOptions(Settings):
    """Which behaviors may be predicted. Those that are left keep their order and probabilities."""

    among: Annotated[Labels, Field(min_length=1)] | None = Field(
        None, description="predict only these behaviors"
    )
    exclude: Labels = Field((), description="none of these behaviors")
    exclude_seen: StrictBool = Field(
        False, description="leave out behaviors that the user's history already contains"
    )
    per_group: Groups | None = Field(
        None,
        description=(
            "label -> group: the top_k within each group; behaviors without a group are "
            "left out, labels unknown to the model are ignored"
        ),
    )


# inherited and not nested: a request's JSON has all options side by side
class PredictOptions(DecisionOptions, FilterOptions):
    """Of the most probable next behaviors."""

    top_k: Annotated[Whole, Field(ge=1)] = Field(
        5, description="behaviors for each user, the most probable first"
    )


class WhenOptions(Settings):
    """Of the time to the next event, and of what happens within a horizon."""

    within: Span = Field("7d", description="horizon, starting now: 7d, '36 hours', '2 weeks'")
    top_k: Annotated[Whole, Field(ge=1)] = Field(
        5, description="behaviors for each user, the most probable first"
    )


class ForecastOptions(Settings):
    """Of what users do in the days to come."""

    days: Annotated[Whole, Field(ge=1, le=28)] = Field(7, description="how far the forecast goes")
    top_k: Annotated[Whole, Field(ge=1)] = Field(
        10, description="events for each user, the most probable ones"
    )
    least: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.0, description="leave out events that are less probable within a day of their time"
    )
    seed: Annotated[Whole, Field(ge=0)] = Field(0, description="of the moments that are learned")


class ExplainOptions(PredictOptions):
    """Of the reasons of the most probable next behavior."""

    last: Annotated[Whole, Field(ge=1, le=64)] = Field(
        16, description="the latest events of each user, each of which is removed in turn"
    )


class EmbedOptions(Settings):
    """Of a user's vector."""

    pool: Parts = Field(("last",), description="parts of the vector, each once")


class DrawOptions(Settings):
    """Of futures, as far as a request over HTTP may choose them."""

    # bounds that only a mistake exceeds; what a service allows is in its own settings
    steps: Annotated[Whole, Field(ge=1, le=100_000)] = Field(
        50, description="events per user; with `until`, at most"
    )
    samples: Annotated[Whole, Field(ge=1, le=100_000)] = Field(1, description="futures per user")
    temperature: Temperature = Field(
        1.0, description="sampling temperature of behaviors, events and places; 0 is greedy"
    )
    # above 0: the set would be empty
    top_p: Annotated[Real, Field(ge=1e-6, le=1)] = Field(
        1.0, description="nucleus sampling: the smallest set with this probability"
    )
    # bounded: the text goes into results and messages
    until: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="stop this long after each user's last event, for example 2 days"
    )
    time: Policy = Field(
        "auto", description="source of time gaps; auto: the gap head, else observed"
    )
    place: Policy = Field(
        "auto", description="source of places; auto: the location head, else observed"
    )
    # a default instead of a random one: two calls that are written the same give the same
    seed: Seed = Field(0, description="same seed, same futures")

    # refused where it is set, not after an hour of drawing
    @field_validator("until")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        """A time span as `span_seconds` reads it; kept as text, which says more in results."""
        if text is not None:
            span_seconds(text)
        return text

    @property
    def span(self) -> int | None:
        """Seconds of `until`."""
        return None if self.until is None else span_seconds(self.until)
