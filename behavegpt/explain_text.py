"""Explanations in words: "it followed 'news' 4 of 6 times before; 3 times before on Fridays around
18:00".

Shape letters: U users, T events, J experts, N last events.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple

import numpy as np

from behavegpt.data.given import Moment
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.vocabulary import FIRST
from behavegpt.ragged import owners, positions

REASONS = 2  # experts whose words are told
CLOCK = ("slot", "weekday", "location")
LEAST = 0.1  # logits, and log-probability of an event, that are worth a word
DAYS = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")
RECENT = 10  # events that "lately" means
# expert -> its words, and the number that must not be 0 for them to be true
PHRASES: dict[str, tuple[str, str]] = {
    "prior": ("common in this log", ""),
    "global_after_behavior": ("users often do it after {last!r}", ""),
    "global_after_two": ("users often do it after the last two events", ""),
    "global_at_weekend_hour": ("users often do it around {hour}", ""),
    "global_after_event_and_place": ("users often do it after such an event", ""),
    "global_after_behavior_at_hour": ("users often do it after {last!r} around {hour}", ""),
    "user": ("{total} of the user's {events} events", "total"),
    "user_after_behavior": ("it followed {last!r} {followed} of {after} times before", "followed"),
    "user_after_two": ("it followed the last two events {after_two} times before", "after_two"),
    "user_at_hour": ("{at_hour} times before around {hour}", "at_hour"),
    "user_at_place": ("{here} times before at this place", "here"),
    "user_at_weekday_hour": ("{on_day} times before on {day} around {hour}", "on_day"),
    "user_last": ("it was the last one", "is_last"),
    "network": ("the network's reading of the events", ""),
}
LATELY = ("{recent} of the last {of_recent} events", "recent")  # of every rate of forgetting


class Told(NamedTuple):
    """What is put into words."""

    tokenizer: EventTokenizer
    encoded: EncodedHistories
    classes: np.ndarray  # (U,) what is predicted
    names: tuple[str, ...]  # of the experts
    contributions: np.ndarray  # (U, J)
    effects: np.ndarray  # (U, N)
    asked: Moment  # fields (U,) that are given of what follows


def because(told: Told) -> list[str]:
    """A text (U,) of what speaks most for each prediction."""
    facts = _facts(told)
    order = np.argsort(-told.contributions, axis=1, kind="stable")
    strongest = np.nan_to_num(told.effects, nan=-np.inf).argmax(1)
    events = event_text(told)

    texts = []
    for user, fact in enumerate(facts):  # one text for each user that is shown
        added = told.contributions[user]
        strong = [told.names[j] for j in order[user] if added[j] > LEAST]
        phrases = [PHRASES.get(name, LATELY) for name in strong if name != "rest"]
        words = [text.format(**fact) for text, number in phrases if not number or fact[number]]
        reasons = list(dict.fromkeys(words))[:REASONS]
        effect = told.effects[user, strongest[user]]
        if effect > LEAST:
            reasons.append(f"above all for {events[user, strongest[user]]}")
        texts.append("; ".join(reasons) or "nothing stands out")
    return texts


def event_text(told: Told) -> np.ndarray:
    """(U, N) object: the last events as text, the last one first; None where no effect is known."""
    end = told.encoded.offsets[1:]
    known = ~np.isnan(told.effects)
    user, back = np.nonzero(known)
    place = end[user] - 1 - back  # (n,) flat
    texts = np.full(told.effects.shape, None, object)
    seconds = told.encoded.columns["time"][place].astype("int64").astype("datetime64[s]")
    zone = told.tokenizer.event_schema.tz
    labels = _labels(told.tokenizer, told.encoded.columns["behavior"][place])
    rows = zip(labels, seconds.tolist(), strict=True)
    texts[known] = [f"{label!r} at {_wall(time, zone)}" for label, time in rows]
    return texts


def _facts(told: Told) -> list[dict[str, object]]:
    """What the phrases name, user by user, counted over whole histories."""
    columns, length = told.encoded.columns, np.diff(told.encoded.offsets)
    end, owner = told.encoded.offsets[1:] - 1, owners(length)  # (U,), (T,)
    behavior = np.asarray(columns["behavior"], np.int64)
    back = end[owner] - np.arange(len(owner))  # (T,) events after each

    # what came one and two events before each, 0 before the first
    number = positions(length)
    one, two = (np.where(number >= n, np.roll(behavior, n), 0) for n in (1, 2))
    after = one == behavior[end][owner]
    same = {name: columns[name] == _now(told, name)[owner] for name in CLOCK if name in columns}

    is_it = behavior == told.classes[owner] + FIRST
    counted = {
        "total": is_it,
        "after": after,
        "followed": is_it & after,
        "after_two": is_it & after & (two == one[end][owner]),
        "at_hour": is_it & same["slot"],
        "on_day": is_it & same["slot"] & same["weekday"],
        "here": is_it & same.get("location", False),
        "recent": is_it & (back < RECENT),
        "is_last": is_it & (back == 0),
    }
    minutes = (_now(told, "slot") * told.tokenizer.event_schema.slot_minutes).tolist()
    facts: dict[str, list[object]] = {
        name: np.bincount(owner[mask], minlength=len(end)).tolist()
        for name, mask in counted.items()
    }
    facts |= {
        "last": list(_labels(told.tokenizer, behavior[end])),
        "events": length.tolist(),
        "of_recent": np.minimum(length, RECENT).tolist(),
        "hour": [f"{minute // 60:02}:{minute % 60:02}" for minute in minutes],
        "day": [DAYS[day] for day in _now(told, "weekday").tolist()],
    }
    return [dict(zip(facts, row, strict=True)) for row in zip(*facts.values(), strict=True)]


def _now(told: Told, field: str) -> np.ndarray:
    """Ids (U,) of what is given of what follows, or else of the last events."""
    last = told.encoded.columns[field][told.encoded.offsets[1:] - 1]
    return np.asarray(told.asked.get(field, last), np.int64)


def _labels(tokenizer: EventTokenizer, ids: np.ndarray) -> list[str]:
    """Labels (n,) of behavior ids; an unknown one is said to be."""
    return [label or "an unknown behavior" for label in tokenizer.behaviors.decode(ids)]


def _wall(time: datetime.datetime, zone: str) -> str:
    """A time in UTC as the log's clocks showed it."""
    from zoneinfo import ZoneInfo

    local = time.replace(tzinfo=datetime.UTC).astimezone(ZoneInfo(zone))
    return f"{local:%Y-%m-%d %H:%M}"
