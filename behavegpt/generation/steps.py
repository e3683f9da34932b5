"""The steps of a rollout: how each field of the next event is drawn, one given the other.

Shapes: N rows (a row is one sample of one user), K behaviors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from behavegpt.data.times import calendar
from behavegpt.data.vocabulary import FIRST, UNKNOWN
from behavegpt.generation.constraints import Link, Links
from behavegpt.generation.incremental import IncrementalModel, Next
from behavegpt.generation.policies import Policies, Source
from behavegpt.generation.sampling import agree, choose, time_in_bucket
from behavegpt.generation.settings import GenerationSettings
from behavegpt.generation.state import RowState
from behavegpt.model.precision import autocast


class Draws(NamedTuple):
    """Uniform numbers (N,) of a step, a column for each decision; the spare one keeps older futures
    as they were."""

    gap: np.ndarray
    day: np.ndarray
    piece: np.ndarray
    inside: np.ndarray
    behavior: np.ndarray
    event: np.ndarray
    location: np.ndarray
    spare: np.ndarray


class Rollout:
    """The rollout of N rows: a model that reads, the rows' state, and how each field is drawn."""

    def __init__(
        self,
        reader: IncrementalModel,
        state: RowState,
        policies: Policies,
        links: Links,
        settings: GenerationSettings,
    ) -> None:
        self.reader, self.state, self.policies, self.links = reader, state, policies, links
        self.settings = settings

        # A constrained place is drawn from a few of its ids, so that its head is not evaluated
        # whole; an adapter's layer has more than weight and bias.
        head = getattr(reader.model.next_heads, "location", None)
        self.few_places = policies.location is Source.CONSTRAINED_HEAD and type(head) is nn.Linear

    def steps(self) -> Iterator[dict[str, np.ndarray]]:
        """The drawn events, step by step, each column (n,) of the rows that go on."""
        state, heads = self.state, self._heads()
        for step in range(self.settings.steps):
            with autocast(self.reader.model.device):
                # logits of whatever may come next, from the events so far
                following = self.reader.following(state, heads)

            # the moment first: behavior, event and place may be given it
            further, width = self.policies.drawn, len(Draws._fields)
            numbers = state.uniforms(step, width + len(further)).T
            draws = Draws(*numbers[:width])  # each (N,)
            new = self._time(following, draws)
            following, placed = self._given(following, draws, new)
            new |= self._what(following, draws, placed)
            for field, column in zip(further, numbers[width:], strict=True):
                new[field] = self._further(field, following, new["behavior"], column)

            state.time = state.time + new["gap"]
            going_on = state.time <= state.horizon  # (N,) bool
            yield self._drawn(step, new, self._logits(following), going_on)

            state.append(new)
            if not going_on.any():
                return

            # rows that are past their horizon leave, so that the steps get cheaper
            if not going_on.all():
                rows = np.flatnonzero(going_on)
                state.take(rows)
                self.reader.take(rows)

    def _drawn(
        self, step: int, new: Mapping[str, np.ndarray], logits: Tensor, rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The columns of a step's events, of the rows (N,) bool."""
        state = self.state
        part = {name: new[name][rows] for name in (*state.ids, "gap")}
        part |= {"time": state.time[rows], "user": state.user[rows], "sample": state.sample[rows]}
        part["step"] = np.full(int(rows.sum()), step)
        if self.settings.probabilities:
            # before temperature and top-p: what the model says, not how it is drawn from
            top = logits.float().softmax(-1).topk(min(self.settings.probabilities, logits.shape[1]))
            part["top"] = top.indices.cpu().numpy()[rows]
            part["probability"] = top.values.cpu().numpy()[rows]
        return part

    def _heads(self) -> set[str]:
        """The auxiliary heads to evaluate over all their ids."""
        policies = self.policies
        wanted = {"gap", "slot"} if policies.time.is_head else set()
        wanted |= set(policies.drawn)
        if policies.event is not None and policies.event.is_head:
            wanted.add("event")
        if policies.location is not None and policies.location.is_head and not self.few_places:
            wanted.add("location")
        return wanted  # (N,)

    def _time(self, following: Next, draws: Draws) -> dict[str, np.ndarray]:
        """Gap in seconds, weekday and slot (N,) of the next event."""
        state = self.state

        if self.policies.time.is_head:
            bucket = choose(following.heads["gap"], self._on_device(draws.gap)).cpu().numpy()
            hours = self._hours(following.heads)
            numbers = np.stack([draws.day, draws.piece, draws.inside], axis=1)
            gap = time_in_bucket(bucket, state.time, state.grid, hours, numbers, state.schema)
        else:
            assert state.own is not None
            gap = state.own.time_gap(draws.gap if self.policies.time is Source.OBSERVED else None)

        # in the schema's zone: an hour of daylight saving moves the slot, not the instant
        weekday, slot = calendar(state.time + gap, state.schema)
        return {"gap": gap, "weekday": weekday, "slot": slot}

    def _hours(self, heads: Mapping[str, Tensor]) -> np.ndarray:
        """Weights (N, slots) of the time of day: the slot head's, or what the user's window
        shows."""
        if "slot" not in heads:
            return self.state.own_hours()
        # (N, buckets) and (N, slots)
        gaps, slots = heads["gap"].float().softmax(-1), heads["slot"].float().softmax(-1)
        # the two heads were trained apart; fitted to each other they contradict each other no more
        now = self.state.last("slot").to(gaps.device)
        return agree(gaps, slots, now).cpu().numpy().astype(np.float64)

    def _given(
        self, following: Next, draws: Draws, drawn: Mapping[str, np.ndarray]
    ) -> tuple[Next, dict[str, np.ndarray]]:
        """With the logits of the behavior, given the time that was drawn, and the place, which is
        drawn here if it is given."""
        given = self.reader.model.config.given
        if not given:
            return following, {}

        placed = {}
        if "location" in given:
            placed["location"] = self._place(following, draws, drawn["slot"].astype(np.int64))
        others = {name: self.state.last(name).numpy() for name in ("event", "behavior")}
        logits = self.reader.logits_given(following, self.state, {**others, **drawn, **placed})
        return following._replace(logits=logits), placed

    def _place(self, following: Next, draws: Draws, slot: np.ndarray) -> np.ndarray:
        """Ids (N,) of places at slots (N,) of the day, before anything is known of the event."""
        source = self.policies.location
        if source is not None and source.is_head:
            # without a link: nothing is known of the event yet
            scores = _among(following.heads["location"], UNKNOWN, None, following.hidden)
            return np.asarray(self._choose(scores, draws.location).cpu().numpy())

        assert self.state.own is not None
        numbers = draws.location if source is Source.OBSERVED else None
        return self.state.own.like("location", "slot", slot, numbers)[0]

    def _logits(self, following: Next) -> Tensor:
        """Logits (N, K) of the behavior, once what is given is drawn."""
        assert following.logits is not None
        return following.logits

    def _what(
        self, following: Next, draws: Draws, placed: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Ids (N,) of the next behavior, event, place and further fields, each given the one
        before; `placed`: the place where it was drawn first."""
        state = self.state
        # classes to vocabulary ids, (N,)
        behavior = self._choose(self._logits(following), draws.behavior) + FIRST
        event = self._event(following, draws, behavior)
        new = {"behavior": behavior.cpu().numpy(), "event": event.cpu().numpy(), **placed}
        # a place that the behavior was given stands already
        if self.policies.location is not None and not placed:
            new["location"] = self._location(following, draws, event)
        # weekday and slot were drawn with the time
        others = state.ids.keys() - {*new, "weekday", "slot"}
        return new | {name: state.last(name).numpy() for name in others}

    def _event(self, following: Next, draws: Draws, behavior: Tensor) -> Tensor:
        """Ids (N,) of events of the behaviors (N,)."""
        source = self.policies.event
        if source is None:
            return behavior

        link = self.links.get(("behavior", "event"))
        if source.is_head:
            scores = _among(following.heads["event"], FIRST, link, behavior)
            return self._choose(scores, draws.event)

        # the user's own event of the behavior, else training's most frequent one
        assert self.state.own is not None and link is not None
        given = behavior.cpu().numpy()
        own, known = self.state.own.like("event", "behavior", given, None)
        return self._on_device(np.where(known, own, link.most_frequent(given)))

    def _location(self, following: Next, draws: Draws, event: Tensor) -> np.ndarray:
        """Ids (N,) of places of the events (N,)."""
        source, link = self.policies.location, self.links.get(("event", "location"))
        if self.few_places:
            assert link is not None
            head: Any = self.reader.model.next_heads["location"]
            scores, ids = link.scores(head, following.hidden, event)  # each (N, M)
            chosen = self._choose(scores, draws.location)
            return np.asarray(ids.gather(1, chosen[:, None])[:, 0].cpu().numpy())

        if source is not None and source.is_head:
            scores = _among(following.heads["location"], UNKNOWN, link, event)
            return np.asarray(self._choose(scores, draws.location).cpu().numpy())

        assert self.state.own is not None
        numbers = draws.location if source is Source.OBSERVED else None
        return self.state.own.like("location", "event", event.cpu().numpy(), numbers)[0]

    def _further(
        self, field: str, following: Next, behavior: np.ndarray, numbers: np.ndarray
    ) -> np.ndarray:
        """Ids (N,) of a further field beside the behaviors (N,) that were drawn."""
        given = self._on_device(behavior)
        scores = _among(following.heads[field], UNKNOWN, None, given)
        link = self.links.get(("behavior", field))
        if link is not None:
            scores = scores + link.log_lift(given, scores.shape[1])
        return np.asarray(self._choose(scores, numbers).cpu().numpy())

    def _choose(self, scores: Tensor, numbers: np.ndarray) -> Tensor:
        """One id (N,) for each row of scores (N, ids) by uniform numbers (N,)."""
        return choose(
            scores, self._on_device(numbers), self.settings.temperature, self.settings.top_p
        )

    def _on_device(self, values: np.ndarray) -> Tensor:
        """An array, of any shape, where the model is."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.reader.model.device)


def _among(scores: Tensor, least: int, link: Link | None, given: Tensor) -> Tensor:
    """Scores (N, ids), minus infinity below the id `least` and at ids that do not go with `given`
    (N,)."""
    scores = scores.clone()
    scores[:, :least] = -torch.inf
    if link is None:
        return scores
    return scores.masked_fill(~link.allowed(given, scores.shape[1]), -torch.inf)
