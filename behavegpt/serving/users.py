"""Users whose state the service holds, so that their next prediction needs no history.

States are changed by one thread, the one of the short requests, in the order of the requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.user_state import UserState
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.serving.answers import AnyPredictor, hashable, predict_options
from behavegpt.serving.errors import Refused
from behavegpt.serving.requests import (
    EventsRequest,
    ServeSettings,
    StateRequest,
    UserRequest,
)

MOST_DROPPED = 100_000  # users of whom it is remembered that their state was dropped
Answer = dict[str, Any]


@dataclass
class Held:
    """A state in memory."""

    state: UserState
    # what is not changed may be dropped for nothing: the predictor makes it again
    changed: bool = False  # beyond what the predictor knows
    nbytes: int = 0


class Users:
    """States by user, the least recently used first; beyond `state_bytes` those are dropped."""

    def __init__(self, predictor: AnyPredictor, settings: ServeSettings) -> None:
        self._predictor, self._settings = predictor, settings
        # the order of use: the first is the one to be dropped
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._dropped: OrderedDict[str, None] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def states(self) -> Iterator[UserState]:
        """Those that are held, and those that are as the predictor knows them."""
        for held in self._held.values():
            yield held.state
        # users who were dropped are left out: what the predictor knows of them is older than what
        # was told
        known = (
            user
            for user in self._predictor.users
            if user not in self._held and user not in self._dropped
        )
        yield from map(self._predictor.state, known)

    def answer_all(
        self, requests: Sequence[UserRequest], interrupt: Callable[[], None] = lambda: None
    ) -> list[Answer | Exception]:
        """An answer, or the error to tell, for each request, in their order."""
        interrupt()
        read = self._read_ahead(requests)
        answers: dict[int, Answer | Exception] = {}
        asked: dict[int, tuple[StateRequest, UserState]] = {}  # predicted together
        for number, request in enumerate(requests):
            # between users: a batch of many large histories takes long
            interrupt()
            try:
                if isinstance(request, EventsRequest):
                    # an event changes the state that an earlier request asks about: that one first
                    if any(state.user == request.user for _, state in asked.values()):
                        answers |= self._predict(asked, interrupt)
                        asked = {}
                    answers[number] = self._take(request, read.get(number))
                elif isinstance(request, StateRequest):
                    asked[number] = (request, self._state(request))
            except (BehaveGPTError, Refused) as error:
                answers[number] = error

        answers |= self._predict(asked, interrupt)
        # each request has one by now
        return [answers[number] for number in range(len(requests))]

    def _read_ahead(self, requests: Sequence[UserRequest]) -> dict[int, EncodedHistories]:
        """The events of requests by number, as far as they can be read together."""
        first: dict[str, int] = {}
        asked: dict[str, list[dict[str, Any]]] = {}
        for number, request in enumerate(requests):
            # only a user's first request: later ones follow a state that this one has changed
            if isinstance(request, EventsRequest) and request.user not in first:
                first[request.user], asked[request.user] = number, request.events
        # nothing to put together
        if len(first) < 2:
            return {}
        found = self._predictor.users.read_together(asked)
        return {first[user]: encoded for user, encoded in found.items()}

    def _take(self, request: EventsRequest, encoded: EncodedHistories | None) -> Answer:
        """Take up events, all of them or none."""
        user = request.user
        known = self._predictor.users

        if request.new or self._is_unknown(user):
            held = Held(self._predictor.state(user, new=True))
        else:
            held = self._find(user)
        if encoded is None:
            # alone where reading together left it out; its error is this user's own
            encoded = known.read(user, request.events)

        known.take_up(held.state, encoded)
        # dropped later, it could not be made again from the log
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

    def _state(self, request: StateRequest) -> UserState:
        """The state that is asked about. Raises Refused for a user who is not known."""
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
        return held.state

    def _predict(
        self, asked: Mapping[int, tuple[StateRequest, UserState]], interrupt: Callable[[], None]
    ) -> dict[int, Answer | Exception]:
        """Answers by number, those with equal options together."""
        # one call of the predictor has one set of options
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, (request, _) in asked.items():
            options = (
                request.top_k,
                request.at,
                request.location,
                *predict_options(request).values(),
            )
            alike.setdefault(tuple(map(hashable, options)), []).append(number)
        answers: dict[int, Answer | Exception] = {}
        for numbers in alike.values():
            states = [asked[number][1] for number in numbers]
            request = asked[numbers[0]][0]
            try:
                found = self._predictor.predict(
                    states,
                    request.top_k,
                    interrupt=interrupt,
                    at=request.at,
                    location=request.location,
                    **predict_options(request),
                )
            except BehaveGPTError as error:
                # options are refused for all who gave them
                answers |= dict.fromkeys(numbers, error)
                continue
            for number, state, behaviors in zip(numbers, states, found.answers(), strict=True):
                answers[number] = _told(state, behaviors)
        return answers

    def _is_unknown(self, user: str) -> bool:
        return (
            user not in self._held
            and user not in self._dropped
            and user not in self._predictor.users
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
        # popped and set again: that moves it to the end, the most recently used
        self.nbytes -= self._held.pop(user).nbytes if user in self._held else 0
        self._dropped.pop(user, None)
        held.nbytes = held.state.nbytes
        self._held[user] = held
        self.nbytes += held.nbytes
        # after the new one came in, which may be dropped too if it alone is too large
        while self.nbytes > self._settings.state_bytes:
            other, gone = self._held.popitem(last=False)
            self.nbytes -= gone.nbytes
            if gone.changed:  # else the predictor has it
                self._dropped[other] = None
                while len(self._dropped) > MOST_DROPPED:
                    self._dropped.popitem(last=False)
        if user not in self._held:
            raise ConfigError(
                f"the state of user {user[:100]!r} takes {held.nbytes} bytes; this service holds "
                f"{self._settings.state_bytes} in all."
            )


def _told(state: UserState, behaviors: list[dict[str, object]]) -> Answer:
    told = {"id": state.user, "events": state.events, "behaviors": behaviors}
    return {"users": [told], "unknown": {}, "rejected": {}}
