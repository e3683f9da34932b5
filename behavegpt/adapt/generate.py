"""Long-term generation (section 4.4): users' futures event by event, all fields of an event together.

For each step and user, from the hidden state at the last event: the time gap, hence weekday and slot in the schema's
zone; the behavior; an event of this behavior; a place of this event (links.py says which go together). The drawn
event is the next input. Fields without a head follow a policy (policies.py), and the result names it.

When a user's window is full, it starts anew from its last `keep` events. So what a hidden state has seen depends on
the user's own events alone, and the key-value cache gives the tokens of running every prefix again.

Shapes: N rows (a row is one sample of one user), L window, K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from behavegpt.adapt.draw import agree, choose, time_in_bucket
from behavegpt.adapt.generated import Generated
from behavegpt.adapt.links import Link, Links
from behavegpt.adapt.rows import Next, Rows
from behavegpt.data.times import calendar
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.vocabulary import FIRST, UNKNOWN
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.options import DrawOptions, Policy, Whole

CACHE_BYTES = 1 << 30
LOGIT_BYTES = 1 << 28
NUMBERS = 8  # uniform numbers a step: gap, three for the time, behavior, event, place, one spare


class GenerationSettings(DrawOptions):
    """How futures are drawn."""

    keep: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="events kept when the window is full; null: half of it"
    )
    personal: bool = Field(True, description="weigh the gap head by the user's own gaps (adapt/rates.py)")
    hours: bool = Field(True, description="weigh the gap head by training's gaps at that hour, where measured")
    probabilities: Annotated[Whole, Field(ge=0)] = Field(
        0, description="behaviors a step whose probabilities are returned"
    )
    rows: Annotated[Whole, Field(ge=1)] = Field(256, description="users times samples at once; changes no result")
    cache: bool = Field(True, description="false: run the whole window again at each step; for comparison")


@torch.no_grad()
def roll_out(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    encoded: EncodedHistories,
    settings: GenerationSettings,
    links: Links | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Generated:
    """The futures of all users of `encoded`. The same user, seed and sample give the same future in any batch.

    `interrupt` is called after each step; what it raises stops the work. Raises ConfigError when the model lacks a head
    that the settings ask for.
    """
    links = Links() if links is None else links
    policies = choose_policies(model, tokenizer, settings, links)
    begin, end = encoded.offsets[:-1], encoded.offsets[1:]
    order = np.argsort(-np.minimum(end - begin, model.config.max_length), kind="stable")  # rows of like length together
    user = np.repeat(order, settings.samples)
    sample = np.tile(np.arange(settings.samples), len(order))
    size = _rows_at_once(model, settings)
    parts = []
    for at in range(0, len(user), size):
        rows = Rows(
            model,
            tokenizer.event_schema,
            encoded,
            user[at : at + size],
            sample[at : at + size],
            seed=settings.seed,
            keep=settings.keep,
            cached=settings.cache,
            span=settings.span,
            personal=settings.personal,
            gap_odds=links.gap_odds if settings.hours else None,
            look_back=bool({"observed", "typical"} & set(policies.values())),
            steps=settings.steps,
        )
        for part in _futures(rows, settings, policies, links):
            interrupt()
            parts.append(part)
        if on_rows:
            on_rows(min(at + size, len(user)), len(user))
    return Generated.join(parts, encoded, tokenizer, policies, settings.model_dump(exclude_none=True))


def choose_policies(
    model: BehaveGPTForBehaviorPrediction, tokenizer: EventTokenizer, settings: GenerationSettings, links: Links
) -> dict[str, str]:
    """Field -> how it is drawn."""
    heads, schema = model.config.next_heads or [], tokenizer.event_schema
    found = {"behavior": "head"}
    wanted: list[tuple[str, str, Policy]] = [("time", "gap", settings.time)]
    if schema.location is not None:
        wanted.append(("location", "location", settings.place))
    for field, head, policy in wanted:
        if policy == "head" and head not in heads:
            raise ConfigError(
                f"the model has no {head} head; choose the policy observed or typical for the {field}, or train with "
                "model.next_heads=[event,location,gap,slot]."
            )
        found[field] = policy if policy != "auto" else "head" if head in heads else "observed"
    if not schema.behavior_is_event:
        if "event" not in heads and ("behavior", "event") not in links:
            raise ConfigError(
                "the model has no event head, so nothing tells the event of a drawn behavior; train with "
                "model.next_heads=[event,location,gap,slot], or give the prepared training data: --data DIR."
            )
        found["event"] = "head" if "event" in heads else "typical"
    if found["time"] == "head":
        parts = {"slot head": "slot" in heads, "by training's hours": settings.hours and links.gap_odds is not None}
        found["time"] = ", ".join(["head", *(part for part, there in parts.items() if there)])
    for field, (given, drawn) in {"event": ("behavior", "event"), "location": ("event", "location")}.items():
        if found.get(field) == "head":
            seen = (given, drawn) in links
            found[field] = f"head, among those of the {given} in training" if seen else f"head, whatever the {given}"
    others = set(model.config.columns) - {*found, "event", "weekday", "slot"}
    return found | dict.fromkeys(sorted(others), "the user's last")


def _futures(
    rows: Rows, settings: GenerationSettings, policies: Mapping[str, str], links: Links
) -> Iterator[dict[str, np.ndarray]]:
    """The drawn events of the rows, step by step, each column (n,) of the rows that go on."""
    heads = _heads_wanted(rows, policies, links)
    for step in range(settings.steps):
        following = rows.forward(heads)
        u = rows.uniforms(step, NUMBERS)
        new = _draw_time(rows, policies, following.heads, u)
        new |= _draw_what(rows, settings, policies, following, u, links)
        rows.time = rows.time + new["gap"]
        on = rows.time <= rows.horizon
        found = {name: new[name][on] for name in (*rows.ids, "gap")}
        found |= {"time": rows.time[on], "user": rows.user[on], "sample": rows.sample[on]}
        found["step"] = np.full(int(on.sum()), step)
        if settings.probabilities:
            count = min(settings.probabilities, following.logits.shape[1])
            top = following.logits.float().softmax(-1).topk(count)
            found["top"], found["probability"] = top.indices.cpu().numpy()[on], top.values.cpu().numpy()[on]
        yield found
        rows.append(new)
        if not on.all():
            if not on.any():
                return
            rows.take(np.flatnonzero(on))


def _heads_wanted(rows: Rows, policies: Mapping[str, str], links: Links) -> set[str]:
    """Second heads to evaluate whole; a linked place is drawn from a few of its ids."""
    wanted = {"gap", "slot"} if policies["time"].startswith("head") else set()
    wanted |= {name for name in ("event", "location") if policies.get(name, "").startswith("head")}
    return wanted - {"location"} if _few_places(rows, links) else wanted


def _few_places(rows: Rows, links: Links) -> bool:
    # an adapter's layer has more than weight and bias
    return ("event", "location") in links and type(getattr(rows.model.next_heads, "location", None)) is nn.Linear


def _draw_time(
    rows: Rows, policies: Mapping[str, str], heads: Mapping[str, torch.Tensor], u: np.ndarray
) -> dict[str, np.ndarray]:
    """Gap in seconds, weekday and slot (N,) of the next event."""
    policy = policies["time"]
    if policy.startswith("head"):
        device = rows.model.device
        bucket = choose(heads["gap"], torch.from_numpy(u[:, 0]).to(device)).cpu().numpy()
        if "slot" in heads:
            now = rows.ids["slot"].gather(1, (rows.length - 1)[:, None])[:, 0].to(device)
            gaps, slots = heads["gap"].float().softmax(-1), heads["slot"].float().softmax(-1)
            hours = agree(gaps, slots, now).cpu().numpy().astype(np.float64)
        else:
            hours = rows.own_hours()
        gap = time_in_bucket(bucket, rows.time, rows.grid, hours, u[:, 1:4], rows.schema)
    else:
        assert rows.own is not None
        gap = rows.own.time_gap(u[:, 0] if policy == "observed" else None)
    weekday, slot = calendar(rows.time + gap, rows.schema)
    return {"gap": gap, "weekday": weekday, "slot": slot}


def _draw_what(
    rows: Rows,
    settings: GenerationSettings,
    policies: Mapping[str, str],
    following: Next,
    u: np.ndarray,
    links: Links,
) -> dict[str, np.ndarray]:
    """Ids (N,) of the next behavior, event, place and extra fields."""
    device = following.logits.device

    def drawn(scores: torch.Tensor, column: int) -> torch.Tensor:
        return choose(scores, torch.from_numpy(u[:, column]).to(device), settings.temperature, settings.top_p)

    behavior = drawn(following.logits, 4) + FIRST
    event = behavior
    if policies.get("event", "").startswith("head"):
        event = drawn(_among(following.heads["event"], FIRST, links.get(("behavior", "event")), behavior), 5)
    new = {"behavior": behavior.cpu().numpy(), "event": event.cpu().numpy()}
    if policies.get("event") == "typical":
        assert rows.own is not None
        own, known = rows.own.like("event", "behavior", new["behavior"], None)
        new["event"] = np.where(known, own, links["behavior", "event"].most_frequent(new["behavior"]))
        event = torch.from_numpy(new["event"]).to(device)
    place = policies.get("location", "")
    if place.startswith("head") and _few_places(rows, links):
        head: Any = rows.model.next_heads["location"]
        scores, ids = links["event", "location"].scores(head, following.hidden, event)
        new["location"] = ids.gather(1, drawn(scores, 6)[:, None])[:, 0].cpu().numpy()
    elif place.startswith("head"):
        scores = _among(following.heads["location"], UNKNOWN, links.get(("event", "location")), event)
        new["location"] = drawn(scores, 6).cpu().numpy()
    elif place in ("observed", "typical"):
        assert rows.own is not None
        new["location"], _ = rows.own.like("location", "event", new["event"], u[:, 6] if place == "observed" else None)
    others = rows.ids.keys() - {*new, "weekday", "slot"}
    at = (rows.length - 1)[:, None]
    return new | {name: rows.ids[name].gather(1, at)[:, 0].numpy() for name in others}


def _among(scores: torch.Tensor, least: int, link: Link | None, given: torch.Tensor) -> torch.Tensor:
    """Scores (N, ids), minus infinity below the id `least` and at ids that do not go with `given` (N,)."""
    scores = scores.clone()
    scores[:, :least] = -torch.inf
    return scores if link is None else scores.masked_fill(~link.allowed(given, scores.shape[1]), -torch.inf)


def _rows_at_once(model: BehaveGPTForBehaviorPrediction, settings: GenerationSettings) -> int:
    config = model.config
    cached = 8 * config.num_hidden_layers * (config.max_length + 1) * config.hidden_size
    scores = 16 * (config.num_behaviors + sum((config.field_sizes or {}).values()))
    return max(1, min(settings.rows, CACHE_BYTES // max(1, cached), LOGIT_BYTES // scores))
