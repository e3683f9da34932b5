"""Bodies of requests: read with a deadline and a bound on memory, measured before they are
parsed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request as HttpRequest
from pydantic import ValidationError
from pydantic_core import from_json

from behavegpt.data.schema import EventSchema
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.serving.errors import Refused
from behavegpt.serving.requests import AnyRequest, ServeSettings, check_lengths

SMALL = 1 << 14  # bytes: parsed at once, a thread would take longer
LARGE = 1 << 18  # bytes: parsed one at a time
FREE = 1 << 16  # bytes that each request may hold whatever the others hold
HELD = 8  # bodies of the largest size that are held at once
MOST_TOLD = 3  # mistakes of a request that an answer lists
PAUSE = 4  # after a large body that was refused: so many times the time it took

# Whoever parses or encodes a large request needs the interpreter's lock nearly all the time; two of
# them would leave next to nothing of it to short requests.
READING_LARGE = threading.Lock()

R = TypeVar("R", bound=AnyRequest)
T = TypeVar("T")


class _InVain(Exception):
    """A large body was refused, after so many `seconds`; the cause tells why."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Bodies:
    """Reads and parses; one for the whole service."""

    def __init__(self, settings: ServeSettings, schema: EventSchema) -> None:
        self._limits, self._schema = settings, schema
        self._held = 0  # bytes beyond FREE of the requests being read or answered
        self._one = asyncio.Semaphore(1)
        self._threads = ThreadPoolExecutor(2, "behavegpt-parse")

    async def read(self, request: HttpRequest, hold: Callable[[int], None]) -> bytes:
        """The body; `hold` is told how much memory it takes. Raises Refused."""
        _check_headers(request)
        # a body that says itself that it is too long need not be sent
        said = request.headers.get("content-length", "0")
        # 18 digits: of thousands of them int() would take long, or raise
        if said.isdigit() and (len(said) > 18 or int(said) > self._limits.most_bytes):
            raise self._too_long()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                return await self._all(request, hold)
        except TimeoutError:
            text = f"the body was not here within {self._limits.body_timeout_s:g} s."
            raise Refused(408, "Timeout", text, {"connection": "close"}) from None

    async def _all(self, request: HttpRequest, hold: Callable[[int], None]) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "Disconnected", "the connection ended before the body did.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._limits.most_bytes:
                raise self._too_long()
            # as it grows: a length that was said may be a lie
            hold(max(0, size - FREE))
        return b"".join(parts)

    def _too_long(self) -> Refused:
        return Refused(
            413,
            "ConfigError",
            f"the body is longer than {self._limits.most_bytes} bytes; send fewer users at a time.",
        )

    def holder(self) -> Holder:
        """Counts what one request holds."""
        return Holder(self)

    async def parse(self, kind: type[R], body: bytes) -> R:
        """The checked request. Raises Refused and BehaveGPTError."""

        def work() -> R:
            return parse(kind, body, self._limits, self._schema)

        def alone() -> R:
            with READING_LARGE:
                began = time.perf_counter()
                try:
                    return work()
                except (Refused, BehaveGPTError) as error:
                    raise _InVain(time.perf_counter() - began) from error

        if len(body) <= SMALL:
            return work()
        loop = asyncio.get_running_loop()
        if len(body) <= LARGE:
            return await loop.run_in_executor(self._threads, work)
        # the semaphore keeps the threads free: waiting for the lock itself would take one of the
        # two
        async with self._one:
            try:
                return await loop.run_in_executor(self._threads, alone)
            except _InVain as vain:
                # whoever sends large bodies in vain must not take the interpreter from the others
                await asyncio.sleep(PAUSE * vain.seconds)
                assert vain.__cause__ is not None
                raise vain.__cause__ from None


class Holder:
    """The memory that a request's body takes, until it is answered; a context manager."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._mine = bodies, 0

    def hold(self, size: int) -> None:
        """Take `size` bytes in all. Raises Refused when the service holds too many."""
        bodies = self._bodies
        if (
            size > self._mine
            and bodies._held + size - self._mine > HELD * bodies._limits.most_bytes
        ):
            raise Refused(
                503, "Busy", "too many large requests at a time; try again.", {"Retry-After": "1"}
            )
        bodies._held += size - self._mine
        self._mine = size

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *error: object) -> None:
        self.hold(0)


def parse(kind: type[R], body: bytes, limits: ServeSettings, schema: EventSchema) -> R:
    """A request from its JSON. Raises Refused where it is none, ConfigError and DataError."""
    values = 1 + sum(body.count(mark) for mark in b",[{")  # at most: some marks may stand in labels
    if values > limits.most_values:
        raise Refused(
            413,
            "ConfigError",
            f"the body has more than {limits.most_values} values; send fewer at a time.",
        )
    try:
        # the tree first, without the model's types: its sizes are looked at before each item is
        tree = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)[:200]
        raise Refused(
            400,
            "ConfigError",
            f"the body is not JSON in UTF-8 ({reason}); send an object with {_named(kind)}.",
        ) from None
    check_lengths(tree, limits)
    try:
        request = kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_told(error)) from None
    # what no type can say: limits that an operator has set
    request.check(limits, schema)
    return request


def _named(kind: type[AnyRequest]) -> str:
    # "send an object with `users`", or what the path needs instead
    return next(
        (f"`{name}`" for name in ("users", "events") if name in kind.model_fields), "options, or {}"
    )


def _told(error: ValidationError) -> str:
    """The first mistakes, each with where it stands."""
    # a few more than are told: several may be the same mistake at one place
    items = error.errors(include_url=False, include_context=False, include_input=False)[
        : 4 * MOST_TOLD
    ]
    told = dict.fromkeys(
        # 300 characters: pydantic quotes what was expected, and a list of choices is long
        f"{'.'.join(map(str, item['loc'])) or 'the body'}: "
        f"{item['msg'].removeprefix('Value error, ')}"[:300]
        for item in items
    )
    return "; ".join(list(told)[:MOST_TOLD]) + "."


def _check_headers(request: HttpRequest) -> None:
    """Refuse what is said not to be plain JSON, and options that stand where nobody reads them."""
    if request.url.query:
        raise Refused(
            400,
            "ConfigError",
            "options behind ? are not read; write them into the body, beside `users`.",
        )
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refused(
            415,
            "ConfigError",
            f"content-encoding {coding[:40]!r} is not read; send the body as it is.",
        )
    kind, _, options = (
        request.headers.get("content-type", "application/json").lower().partition(";")
    )
    kind = kind.strip()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise Refused(
            415, "ConfigError", f"content-type {kind[:40]!r} is not read; send application/json."
        )
    # a label in another coding would silently be another label
    charset = options.partition("charset=")[2].partition(";")[0].strip(' "')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise Refused(
            415, "ConfigError", f"charset {charset[:40]!r} is not read; send JSON in UTF-8."
        )
