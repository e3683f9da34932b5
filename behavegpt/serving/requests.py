"""What may be asked over HTTP, and the limits of it; anything else is refused before the model is
touched."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from behavegpt.config import Settings
from behavegpt.data.schema import EventSchema
from behavegpt.errors import ConfigError, DataError
from behavegpt.option_types import Real, Whole
from behavegpt.options import DrawOptions, EmbedOptions, ExplainOptions, PredictOptions, WhenOptions

QUICK_EVENTS = 5000  # of a request; with more it is a large one
MOST_NAME = 1000  # characters of a label
MOST_KEYS = 64  # of an object: more are no columns of a log
HUGE = 10**40  # integers beyond are no labels; their text alone would take long
Label = Annotated[StrictStr, Field(max_length=MOST_NAME)]
Integer = Annotated[StrictInt, Field(gt=-HUGE, lt=HUGE)]
# strict types: nothing is converted, so that a label stays the text or the number that was sent
Value = Label | Integer | Annotated[StrictFloat, Field(allow_inf_nan=False)] | StrictBool | None
Count = Annotated[Whole, Field(ge=1)]
Seconds = Annotated[Real, Field(gt=0, le=86400)]


class ServeSettings(Settings):
    """Limits and batching of the service."""

    most_bytes: Count = Field(8 << 20, ge=1024, description="bytes of a request's body")
    # what parsing costs: 8 MiB of `[` take many times the memory of one long text
    most_values: Count = Field(
        1_000_000, description="values of a request's body, lists and objects included"
    )
    most_users: Count = Field(256, description="users per request")
    # beyond the window events are read for nothing; only a model with memory counts them
    most_events: Count = Field(
        2000, description="events per history; the model reads the last ones"
    )
    most_top_k: Count = Field(1000, description="`top_k` of a prediction")
    most_steps: Count = Field(1000, description="`steps` per generation")
    most_samples: Count = Field(1000, description="`samples` per generation")
    most_generated: Count = Field(
        20_000, description="events generated per request: users x samples x steps"
    )
    # they are real users of the log, whom a service on the network must not show unasked
    examples: Annotated[Whole, Field(ge=0, le=256)] = Field(
        50,
        description="users of the log offered by GET /v1/examples; 0: none, the default "
        "where --host is not this machine alone",
    )
    state_bytes: Annotated[Whole, Field(ge=1 << 16)] = Field(
        1 << 30,
        description="memory for user states; beyond it, the least recently used are evicted",
    )
    most_waiting: Count = Field(
        512, description="requests waiting for the model; more are refused with 503"
    )
    most_connections: Count = Field(
        512, description="open connections; beyond it, idle ones are closed"
    )
    body_timeout_s: Seconds = Field(10.0, description="time to receive a body, else 408")
    # else a few clients that send nothing would hold all connections
    idle_timeout_s: Seconds = Field(
        10.0, description="a connection without a complete request for this long is closed"
    )
    timeout_s: Seconds = Field(30.0, description="time to answer a request, else 504")
    batch_users: Count = Field(256, description="users processed together")
    wait_ms: Annotated[Real, Field(ge=0, le=10_000)] = Field(
        5.0,
        description=(
            "how long the first request of a batch waits for others, if the previous batch "
            "had several"
        ),
    )


class _Asked(BaseModel):
    # a misspelled option is refused and not left at its default
    model_config = ConfigDict(extra="forbid", frozen=True)


class History(_Asked):
    """A user and the events that are known of them, by the column names of the training log, in any
    order."""

    id: Label | Integer = Field(
        "0", description="returned with the answer; the random numbers of a future depend on it"
    )
    # FailFast: of a million events that are wrong alike, the first mistake is enough
    events: Annotated[list[dict[Label, Value]], FailFast()] = Field(min_length=1)
    features: dict[Label, Value] | None = Field(
        None,
        description=(
            "user features, by the column names of the user table of the training data; "
            "missing ones are unknown. Without it: the row of the service's own table"
        ),
    )


class _Told(BaseModel):
    """What a request tells of the event that is predicted, where the model is given it."""

    at: Label | None = Field(
        None,
        description=(
            "predict what happens at this time, such as 2026-11-28 18:30, local time in the "
            "log's zone; only its weekday and slot matter"
        ),
    )
    location: Label | Integer | None = Field(None, description="the place that is asked about")


class AskedHistory(History, _Told):
    """A user, their events, and what is known of the next one."""


class AnyRequest(_Asked):
    """The body of a request."""

    def check(self, limits: ServeSettings, schema: EventSchema) -> None:
        """Raise ConfigError beyond a limit, and what else the columns tell."""


class Request(AnyRequest):
    """Users to answer for."""

    users: Annotated[list[History], FailFast()] = Field(min_length=1)

    @property
    def events(self) -> int:
        """Events of all users."""
        return sum(len(user.events) for user in self.users)

    @property
    def large(self) -> bool:
        """Whether short requests must not wait for it."""
        return self.events > QUICK_EVENTS

    def check(self, limits: ServeSettings, schema: EventSchema) -> None:
        """Raise ConfigError beyond a limit, DataError where the events of one user name several."""
        for user in self.users:
            # a client that forgot to part its users would get one answer for all of them
            named = {
                str(row[schema.user]) for row in user.events if row.get(schema.user) is not None
            }
            if len(named | ({str(user.id)} if "id" in user.model_fields_set else set())) > 1:
                raise DataError(
                    f"user {str(user.id)[:100]!r}: the events' {schema.user!r} names other users "
                    f"({', '.join(sorted(named)[:3])[:100]}); send each user's events apart, with "
                    "the user as `id`."
                )


class PredictRequest(Request, PredictOptions):
    """The most probable next behaviors of each user."""

    users: Annotated[list[AskedHistory], FailFast()] = Field(min_length=1)  # type: ignore

    def check(self, limits: ServeSettings, schema: EventSchema) -> None:
        super().check(limits, schema)
        _at_most(limits, "top_k", self.top_k)


class ExplainRequest(PredictRequest, ExplainOptions):
    """Why each user's most probable next behavior."""


class WhenRequest(Request, WhenOptions):
    """The time to each user's next event, and what happens within a horizon."""

    now: Label | None = Field(
        None,
        description=(
            "current time for all users, such as 2026-11-28 18:30; later events are ignored "
            "(default: each user's last event)"
        ),
    )

    def check(self, limits: ServeSettings, schema: EventSchema) -> None:
        super().check(limits, schema)
        _at_most(limits, "top_k", self.top_k)


class EmbedRequest(Request, EmbedOptions):
    """A vector for each user."""


class LabelRequest(Request):
    """The label of each user, by a model with a label head."""

    at: Label | None = Field(
        None,
        description="a time such as 2026-11-28, for all users; only earlier events are looked at "
        "(default: all events count, up to the last one of the request)",
    )


class GenerateRequest(Request, DrawOptions):
    """Futures of each user."""

    steps: Count = Field(10, description="events for each user; with `until`, at most")

    def check(self, limits: ServeSettings, schema: EventSchema) -> None:
        super().check(limits, schema)
        _at_most(limits, "steps", self.steps)
        _at_most(limits, "samples", self.samples)
        # each of the three is bounded, and their product may still be a billion
        drawn = len(self.users) * self.samples * self.steps
        if drawn > limits.most_generated:
            raise ConfigError(
                f"{len(self.users)} users x {self.samples} samples x {self.steps} steps = {drawn} "
                f"events to draw; ask for at most {limits.most_generated}."
            )


class UserRequest(AnyRequest):
    """About the one user whose name is in the path."""

    # not a field of the body: nobody may send it there
    _user: str = PrivateAttr("")

    @property
    def user(self) -> str:
        """The name in the path."""
        return self._user

    def of(self, user: str) -> Self:
        """The request with the name from the path. Raises ConfigError."""
        if not 0 < len(user) <= MOST_NAME:
            raise ConfigError(f"a user's name of {len(user)} characters; it has 1 to {MOST_NAME}.")
        named = self.model_copy()
        named._user = user
        return named


class EventsRequest(UserRequest):
    """Events of a user that come after those that the service knows."""

    events: Annotated[list[dict[Label, Value]], FailFast()] = Field(
        min_length=1,
        description="events by the column names of the log, in any order within a request",
    )
    new: StrictBool = Field(False, description="start over: forget the earlier events of this user")


class StateRequest(UserRequest, _Told, PredictOptions):
    """The most probable next behaviors of a user whose events the service knows."""

    def check(self, limits: ServeSettings, schema: EventSchema) -> None:
        _at_most(limits, "top_k", self.top_k)


def check_lengths(tree: Any, limits: ServeSettings) -> None:
    """Raise ConfigError where lists or objects are too long, before anything looks at each of their
    items."""
    # from the outside inwards: nothing is walked before its length was looked at
    _check_keys(tree, "the request")
    _check_events(tree, limits, "the request")
    users = tree.get("users") if isinstance(tree, dict) else None
    # pydantic tells what it should be
    if not isinstance(users, list):
        return
    if len(users) > limits.most_users:
        raise ConfigError(
            f"{len(users)} users in a request; send at most {limits.most_users} at a time."
        )
    for number, user in enumerate(users):
        _check_keys(user, f"users.{number}")
        _check_keys(user.get("features") if isinstance(user, dict) else None, f"users.{number}")
        _check_events(user, limits, f"users.{number}")


def _check_events(user: Any, limits: ServeSettings, where: str) -> None:
    events = user.get("events") if isinstance(user, dict) else None
    if not isinstance(events, list):
        return
    if len(events) > limits.most_events:
        raise ConfigError(
            f"{where}: {len(events)} events; send the last {limits.most_events} at most."
        )
    for event in events:
        _check_keys(event, f"{where}.events")


def _check_keys(found: Any, where: str) -> None:
    if isinstance(found, dict) and len(found) > MOST_KEYS:
        raise ConfigError(f"{where}: an object of {len(found)} names; send {MOST_KEYS} at most.")


def _at_most(limits: ServeSettings, name: str, value: int) -> None:
    limit = getattr(limits, f"most_{name}")
    if value > limit:
        raise ConfigError(
            # Python refuses to print integers of more than 4,300 digits
            f"{name} = {value if value < HUGE else 'a huge number'}: this service allows {limit} "
            "at most."
        )
