"""Users whose state the service holds, so that their next prediction needs no history.

States are changed by one thread, the one of the short requests, in the order of the requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.serving.errors import Refused
from behavegpt.serving.requests import EventsRequest, ServeSettings, StateRequest, UserRequest
from behavegpt.universal.state import UserState
from behavegpt.zero_shot import UniversalPredictor

MOST_DROPPED = 100_000  # users of whom it is remembered that their state was dropped
Answer = dict[str, Any]


@dataclass
class Held:
    """A state in memory."""

    state: UserState
    changed: bool = False  # beyond what the counted log knows
    nbytes: int = 0


class Users:
    """States by user, the least recently used first; beyond `state_bytes` those are dropped."""

    def __init__(self, predictor: UniversalPredictor, settings: ServeSettings) -> None:
        self._predictor, self._settings = predictor, settings
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._dropped: OrderedDict[str, None] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def states(self) -> Iterator[UserState]:
        """Those that are held, and those of the counted log that are as it tells them."""
        for held in self._held.values():
            yield held.state
        known = (
            user
            for user in self._predictor.log.users
            if user not in self._held and user not in self._dropped
        )
        yield from map(self._predictor.state, known)

    def answer_all(
        self, requests: Sequence[UserRequest], interrupt: Callable[[], None] = lambda: None
    ) -> list[Answer | Exception]:
        """An answer, or the error to tell, for each request, in their order."""
        answers: list[Answer | Exception] = []
        for request in requests:
            interrupt()
            try:
                answers.append(self._answer(request))
            except (BehaveGPTError, Refused) as error:
                answers.append(error)
        return answers

    def _answer(self, request: UserRequest) -> Answer:
        if isinstance(request, EventsRequest):
            return self._take(request)
        assert isinstance(request, StateRequest)
        return self._predict(request)

    def _take(self, request: EventsRequest) -> Answer:
        """Take up events, all of them or none."""
        user = request.user
        log = self._predictor.log
        if request.new or self._is_unknown(user):
            held = Held(self._predictor.state(user, new=True))
        else:
            held = self._find(user)
        encoded = log.encode_of_user(user, request.events)
        log.update(held.state, encoded)
        held.changed = True
        self._hold(user, held)
        unknown = {
            field: int((encoded.columns[field] == UNKNOWN).sum()) for field in encoded.unknown
        }
        return {
            "users": [{"id": user, "events": held.state.events}],
            "unknown": unknown,
            "rejected": {},
        }

    def _predict(self, request: StateRequest) -> Answer:
        user = request.user
        if self._is_unknown(user):
            raise Refused(
                404,
                "UnknownUser",
                f"no state of user {user[:100]!r}; send their events to POST /v1/users/ID/events, "
                "or the whole history to POST /v1/predict.",
            )
        held = self._find(user)
        self._hold(user, held)
        found = self._predictor.predict(held.state, request.top_k, request.prior_correction)
        behaviors = [
            {"behavior": label, "probability": probability}
            for label, probability in zip(
                found.labels[0].tolist(), found.probabilities[0].tolist(), strict=True
            )
        ]
        told = {"id": user, "events": held.state.events, "behaviors": behaviors}
        return {"users": [told], "unknown": {}, "rejected": {}}

    def _is_unknown(self, user: str) -> bool:
        return (
            user not in self._held and user not in self._dropped and user not in self._predictor.log
        )

    def _find(self, user: str) -> Held:
        """The state of a user that is known. Raises Refused where it was dropped."""
        if user in self._held:
            return self._held[user]
        if user in self._dropped:
            raise Refused(
                404,
                "UnknownUser",
                f"the state of user {user[:100]!r} was dropped, as those of others were used "
                "since; send the whole "
                'history to POST /v1/users/ID/events with "new": true.',
            )
        return Held(self._predictor.state(user))

    def _hold(self, user: str, held: Held) -> None:
        """Make it the most recently used one, and drop others beyond the limit. Raises
        ConfigError."""
        self.nbytes -= self._held.pop(user).nbytes if user in self._held else 0
        self._dropped.pop(user, None)
        held.nbytes = held.state.nbytes
        self._held[user] = held
        self.nbytes += held.nbytes
        while self.nbytes > self._settings.state_bytes:
            other, gone = self._held.popitem(last=False)
            self.nbytes -= gone.nbytes
            if gone.changed:  # else the counted log has it
                self._dropped[other] = None
                while len(self._dropped) > MOST_DROPPED:
                    self._dropped.popitem(last=False)
        if user not in self._held:
            raise ConfigError(
                f"the state of user {user[:100]!r} takes {held.nbytes} bytes; this service holds "
                f"{self._settings.state_bytes} in all."
            )
