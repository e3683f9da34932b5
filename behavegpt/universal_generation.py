"""Futures by the universal model: the behavior is drawn from what it says, the rest from what the
user was seen to do.

Each drawn event is taken up by the state of its row, so that the next one knows it. There are no
heads for times and places: `generation/own_past.py` draws them from the given history. Where the
log was counted with the time or the place of the target given, these are drawn before the behavior,
the place from those of the user at this time of the day.

Shapes: N rows (a row is one sample of one user), K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from behavegpt.data.given import given_fields
from behavegpt.data.memory_columns import Columns, memory_columns
from behavegpt.data.times import calendar
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.user_state import UserState
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import ConfigError
from behavegpt.generation.own_past import OwnPast
from behavegpt.generation.result import Generated
from behavegpt.generation.sampling import Uniforms, choose
from behavegpt.generation.settings import GenerationSettings
from behavegpt.generation.state import horizon_of
from behavegpt.generation.steps import Draws
from behavegpt.universal.counted import CountedLog
from behavegpt.universal.model import UniversalModel


def roll_out_states(
    model: UniversalModel,
    log: CountedLog,
    encoded: EncodedHistories,
    settings: GenerationSettings,
    on_rows: Callable[[int, int], None] | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Generated:
    """The futures of all users of `encoded`. The same user, seed and sample give the same future in
    any batch.

    Raises ConfigError for a policy that needs a head.
    """
    policies = choose_policies(log, settings)

    # samples of a user side by side: a part of the rows holds few users
    user = np.repeat(np.arange(len(encoded.users)), settings.samples)
    sample = np.tile(np.arange(settings.samples), len(encoded.users))

    # a part of the rows at a time, which bounds the memory
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, len(user), settings.rows):
        part = slice(first, first + settings.rows)
        rows = _Rows(log, encoded, user[part], sample[part], settings)
        for step in range(settings.steps):
            interrupt()
            parts.append(rows.draw(model, step, policies))
            # everybody is beyond the horizon
            if not len(rows.user):
                break
        if on_rows:
            on_rows(min(part.stop, len(user)), len(user))

    return Generated.join(
        parts, encoded, log.tokenizer, policies, settings.model_dump(exclude_none=True)
    )


def choose_policies(log: CountedLog, settings: GenerationSettings) -> dict[str, str]:
    """Field -> how it is drawn. Raises ConfigError for a policy that needs a head."""
    schema = log.tokenizer.event_schema
    wanted = {"time": settings.time}
    if schema.location is not None:
        wanted["location"] = settings.place

    policies = {"behavior": "head"}
    for field, policy in wanted.items():
        if policy == "head":
            raise ConfigError(
                f"the universal model has no {field} head; use the policy observed or typical."
            )
        policies[field] = "observed" if policy == "auto" else policy
    if not schema.behavior_is_event:
        policies["event"] = "typical"

    # nothing draws them: the last value is what is known of the user
    others = sorted({*log.tokenizer.vocabulary} - {*policies, "event"})
    return policies | dict.fromkeys(others, "the user's last")


class _Rows:
    """The state of N rows."""

    def __init__(
        self,
        log: CountedLog,
        encoded: EncodedHistories,
        user: np.ndarray,
        sample: np.ndarray,
        settings: GenerationSettings,
    ) -> None:
        self.log, self.settings, self.user, self.sample = log, settings, user, sample
        begin, end = encoded.offsets[user], encoded.offsets[user + 1]

        # a state for each row, counted from the user's whole history
        columns = memory_columns(encoded.columns, log.tokenizer.event_schema.slot_minutes)
        self.states = []
        for low, high in zip(begin, end, strict=True):
            past = Columns(*(column[low:high] for column in columns))
            self.states.append(_state_of(log, past))

        self.own = OwnPast(encoded.columns, begin, end)
        # of all users: a drawn behavior may be one that this user never had
        self.usual = _usual_events(encoded, log.tokenizer.behaviors.classes)
        self.last = {
            name: values[end - 1].astype(np.int64) for name, values in encoded.columns.items()
        }

        self.time = self.last["time"]
        self.horizon = horizon_of(self.time, settings)
        self.uniforms = Uniforms(settings.seed, encoded.users.take(user).to_pylist(), sample)

    def draw(
        self, model: UniversalModel, step: int, policies: dict[str, str]
    ) -> dict[str, np.ndarray]:
        """The next event of each row that goes on, each column (n,); the others end."""
        # numbers by user, sample and step alone, whoever else is in the batch
        u = self.uniforms(step, len(Draws._fields))  # (N, fields) in [0, 1)

        # the moment, what the model says at it, and the rest of the event
        first = self._first(u, policies)
        moments = {field: first[field] for field in given_fields(self.log.given)}
        asked = self.log.asked_of_states(self.states, moments or None)
        batches = asked.batches(lambda: None)
        logits = torch.cat([model.logits(batch.memory, self.log.tables) for batch in batches])
        new = self._event(logits, u, policies, first)
        self.time = new["time"]

        drawn = new | {
            "user": self.user,
            "sample": self.sample,
            "step": np.full(len(self.user), step),
        }
        if self.settings.probabilities:
            # before temperature and top_p: what the model says, not how it is drawn
            top = logits.softmax(-1).topk(min(self.settings.probabilities, logits.shape[1]))
            drawn |= {"top": top.indices.numpy(), "probability": top.values.numpy()}

        # rows whose event is beyond the horizon end without it; the others take it up
        on = np.flatnonzero(self.time <= self.horizon)
        self._take(on)
        kept = {name: values[on] for name, values in new.items()}
        columns = memory_columns(kept, self.log.tokenizer.event_schema.slot_minutes)
        for row, state in enumerate(self.states):
            self.log.spec.count(state, Columns(*(column[row : row + 1] for column in columns)))
        return {name: values[on] for name, values in drawn.items()}

    def _first(self, u: np.ndarray, policies: dict[str, str]) -> dict[str, np.ndarray]:
        """What is drawn before the behavior: the gap and the clock (N,), and the place where it is
        given."""
        # the numbers of u belong to the fields of Draws, so that a policy of one field leaves the
        # draws of the others as they are
        gap = self.own.time_gap(u[:, 0] if policies["time"] == "observed" else None)
        weekday, slot = calendar(self.time + gap, self.log.tokenizer.event_schema)

        first = {"time": self.time + gap, "gap": gap}
        first |= {"weekday": weekday.astype(np.int64), "slot": slot.astype(np.int64)}
        if "location" in self.log.given:
            observed = u[:, 6] if policies["location"] == "observed" else None
            first["location"], _ = self.own.like("location", "slot", first["slot"], observed)
        return first

    def _event(
        self,
        logits: torch.Tensor,
        u: np.ndarray,
        policies: dict[str, str],
        first: dict[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Ids, clock and gap (N,)."""
        schema, settings = self.log.tokenizer.event_schema, self.settings
        chosen = choose(logits, torch.from_numpy(u[:, 4]), settings.temperature, settings.top_p)
        behavior = chosen.numpy() + FIRST  # vocabulary ids

        new = self.last | {"behavior": behavior, "event": behavior} | first
        if not schema.behavior_is_event:
            # the user's most frequent event of the behavior, or everybody's
            own, known = self.own.like("event", "behavior", behavior, None)
            new["event"] = np.where(known, own, self.usual[behavior - FIRST])
        if "location" in policies and "location" not in first:
            observed = u[:, 6] if policies["location"] == "observed" else None
            new["location"], _ = self.own.like("location", "event", new["event"], observed)
        return new

    def _take(self, rows: np.ndarray) -> None:
        """Keep the rows (n,) only."""
        if len(rows) == len(self.user):
            return
        self.own.take(rows)
        self.uniforms.take(rows)
        self.states = [self.states[row] for row in rows]
        self.user, self.sample = self.user[rows], self.sample[rows]
        self.time, self.horizon = self.time[rows], self.horizon[rows]
        self.last = {name: values[rows] for name, values in self.last.items()}


def _state_of(log: CountedLog, columns: Columns) -> UserState:
    """A state that has counted these events; nobody asks for it by name."""
    state = log.spec.new("0", len(columns.behavior))
    log.spec.count(state, columns)
    return state


def _usual_events(encoded: EncodedHistories, classes: int) -> np.ndarray:
    """The most frequent event id (K,) of each behavior in these histories, the most frequent of all
    without one."""
    behavior, event = encoded.columns["behavior"], encoded.columns["event"]

    # written in ascending order of their counts, so that the most frequent one stays
    pairs, count = np.unique(np.stack([behavior, event]), axis=1, return_counts=True)
    usual = np.full(classes, np.bincount(event).argmax(), np.int64)
    order = np.argsort(count, kind="stable")
    known = order[pairs[0, order] >= FIRST]
    usual[pairs[0, known] - FIRST] = pairs[1, known]
    return usual
