"""Where each field of a drawn event comes from: a head of the model, or a fallback where it has
none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import ConfigError
from behavegpt.generation.constraints import Links
from behavegpt.generation.settings import GenerationSettings
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.option_types import Policy

TRAIN_HEADS = "model.next_heads=[event,location,gap,slot]"
GIVEN = {"event": "behavior", "location": "event"}  # field -> the field that it is drawn after


class Source(Enum):
    """Where a field comes from, with its description; `given` is the field that is drawn before."""

    HEAD = "head"
    CONSTRAINED_HEAD = "head, among those of the {given} in training"
    FREE_HEAD = "head, whatever the {given}"
    WEIGHED_HEAD = "head, weighed by how often it goes with the {given} in training"
    FIRST_HEAD = "head, before the behavior, which is given it"
    OBSERVED = "observed"
    TYPICAL = "typical"
    LAST = "the user's last"

    @property
    def is_head(self) -> bool:
        """Whether the model has a head for it."""
        return self in (
            Source.HEAD,
            Source.CONSTRAINED_HEAD,
            Source.FREE_HEAD,
            Source.FIRST_HEAD,
        )

    @property
    def is_own_past(self) -> bool:
        """Whether it is drawn from what the user was observed to do."""
        return self in (Source.OBSERVED, Source.TYPICAL)


@dataclass(frozen=True)
class Policies:
    """The source of each field of the next event."""

    time: Source
    location: Source | None  # None: the log has no locations
    event: Source | None  # None: the behavior is the event
    copied: tuple[str, ...] = ()  # further fields without a head, which keep the user's last value
    slot_head: bool = False  # whether the time of the day within the gap is the slot head's
    training_hours: bool = False  # whether gaps are corrected by what training's were at that hour
    drawn: tuple[str, ...] = ()  # further fields that have a head
    weighed: tuple[str, ...] = ()  # of these, those that the drawn behavior has a say in

    @property
    def needs_own_past(self) -> bool:
        """Whether some field is drawn from the user's given history."""
        sources = [source for source in (self.time, self.location, self.event) if source]
        return any(source.is_own_past for source in sources)

    def describe(self) -> dict[str, str]:
        """Field -> how it is drawn, in words, for the result."""
        refinements = {"slot head": self.slot_head, "by training's hours": self.training_hours}
        time = [self.time.value, *(text for text, there in refinements.items() if there)]
        fields = {"behavior": Source.HEAD.value, "time": ", ".join(time)}
        for field, source in {"location": self.location, "event": self.event}.items():
            if source is not None:
                fields[field] = source.value.format(given=GIVEN[field])
        fields |= dict.fromkeys(self.drawn, Source.HEAD.value)
        weighed = Source.WEIGHED_HEAD.value.format(given="behavior")
        fields |= dict.fromkeys(self.weighed, weighed)
        return fields | dict.fromkeys(self.copied, Source.LAST.value)


def choose_policies(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    settings: GenerationSettings,
    links: Links,
) -> Policies:
    """The policies that the settings ask for. Raises ConfigError when the model lacks a head for
    one."""
    heads, schema = model.config.next_heads or [], tokenizer.event_schema
    time = _source("time", settings.time, "gap", heads)
    location = None
    if schema.location is not None:
        location = _source("location", settings.place, "location", heads)

    event = None
    if not schema.behavior_is_event:
        event = Source.HEAD if "event" in heads else Source.TYPICAL
    if event is Source.TYPICAL and ("behavior", "event") not in links:
        raise ConfigError(
            "the model has no event head, so it cannot generate events; train with "
            f"{TRAIN_HEADS}, or pass the prepared training data: behavegpt generate --data DIR."
        )

    # a place that the behavior is given is drawn before it, so no event can limit it
    place = _constrained("location", location, links)
    if location is Source.HEAD and "location" in (model.config.given or ()):
        place = Source.FIRST_HEAD
    main = {"time", "behavior", "event", "weekday", "slot"} | ({"location"} if location else set())
    further = sorted(set(model.config.columns) - main)
    return Policies(
        time,
        place,
        _constrained("event", event, links),
        drawn=tuple(field for field in further if field in heads),
        weighed=tuple(f for f in further if f in heads and ("behavior", f) in links),
        copied=tuple(field for field in further if field not in heads),
        slot_head=time.is_head and "slot" in heads,
        training_hours=time.is_head and settings.hours and links.gap_odds is not None,
    )


def _source(field: str, policy: Policy, head: str, heads: list[str]) -> Source:
    """What a setting means for a model with these heads."""
    # auto is a head where there is one: it knows the whole window, the fallback single events
    if policy == "auto":
        return Source.HEAD if head in heads else Source.OBSERVED
    if policy == "head" and head not in heads:
        raise ConfigError(
            f"the model has no {head} head; use the policy observed or typical for the "
            f"{field}, or train with {TRAIN_HEADS}."
        )
    return Source(policy)


def _constrained(field: str, source: Source | None, links: Links) -> Source | None:
    """A head's source with whether its ids are limited to those that go together in training."""
    if source is not Source.HEAD:
        return source
    return Source.CONSTRAINED_HEAD if (GIVEN[field], field) in links else Source.FREE_HEAD
