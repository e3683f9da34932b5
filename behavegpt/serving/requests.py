"""What may be asked over HTTP, and the limits of it; anything else is refused before the model is touched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from behavegpt.adapt.generate import Policy
from behavegpt.config import Settings
from behavegpt.errors import ConfigError
from behavegpt.pooling import NAMES

Label = Annotated[StrictStr, Field(max_length=1000)]
Value = Label | StrictInt | StrictFloat | None
Part = Literal["last", "mean", "decayed", "bag", "recent_bag", "behaviors"]
assert set(Part.__args__) == set(NAMES)  # type: ignore[attr-defined]


class ServeSettings(Settings):
    """Limits and batching of the service."""

    most_users: int = Field(256, ge=1, description="users of a request")
    most_events: int = Field(2000, ge=1, description="events of a history; the model looks back on its last ones")
    most_bytes: int = Field(8 << 20, ge=1024, description="bytes of a request's body")
    most_generated: int = Field(20_000, ge=1, description="events a request may have drawn: users x samples x steps")
    most_waiting: int = Field(512, ge=1, description="requests that wait; more are refused with 503")
    batch_users: int = Field(256, ge=1, description="users that are answered together")
    wait_ms: float = Field(5.0, ge=0, description="how long the first request of a batch waits for others")
    timeout_s: float = Field(30.0, gt=0, description="a request that is not answered by then gets 504")


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class History(_Asked):
    """A user and the events that are known of them, by the column names of the training log, in any order."""

    id: Label | StrictInt = Field("0", description="comes back with the answer; a future's random draws depend on it")
    events: list[dict[Label, Value]] = Field(min_length=1)


class Request(_Asked):
    """Users to answer for."""

    users: list[History] = Field(min_length=1)

    def check(self, limits: ServeSettings) -> None:
        """Raise ConfigError beyond a limit."""
        if len(self.users) > limits.most_users:
            raise ConfigError(f"{len(self.users)} users in a request; send at most {limits.most_users} at a time.")
        for user in self.users:
            if len(user.events) > limits.most_events:
                raise ConfigError(
                    f"user {user.id!r} has {len(user.events)} events; send the last {limits.most_events} at most."
                )


class PredictRequest(Request):
    """The most probable next behaviors of each user."""

    top_k: int = Field(5, ge=1, le=1000)
    prior_correction: float = Field(0.0, ge=0, le=10, description="lifts rare behaviors")


class EmbedRequest(Request):
    """A vector for each user."""

    pool: list[Part] = Field(default=["last"], min_length=1)


class GenerateRequest(Request):
    """Futures of each user; the options of GenerationSettings."""

    steps: int = Field(10, ge=1)
    samples: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    until: str | None = Field(None, max_length=40)
    seed: int = Field(0, ge=0)
    time: Policy = "auto"
    place: Policy = "auto"

    def check(self, limits: ServeSettings) -> None:
        """Raise ConfigError beyond a limit."""
        super().check(limits)
        drawn = len(self.users) * self.samples * self.steps
        if drawn > limits.most_generated:
            raise ConfigError(
                f"{len(self.users)} users x {self.samples} samples x {self.steps} steps = {drawn} events to draw; "
                f"ask for at most {limits.most_generated}."
            )
