"""The service under uvicorn, with what it lacks: bounds and time-outs of connections, and errors in
our shape."""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from behavegpt.errors import ConfigError
from behavegpt.serving.requests import ServeSettings

GRACE_S = 30.0  # for reading an answer
SWITCH_S = 0.0005  # Python's own is ten times as long
LOOK_FOR_CYCLES = 100_000, 10, 10  # objects made, looks at the young and at the middle-aged
SWEEP_EVERY = 5  # ticks of a tenth of a second


class Protocol(H11Protocol):
    """HTTP whose complaint about broken HTTP is JSON too."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": {"type": "BadRequest", "message": msg}}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (
                h11.Response(status_code=400, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


class Server(uvicorn.Server):
    """Closes connections that ask nothing, read no answer, or are too many; uvicorn itself waits
    for ever."""

    def __init__(self, app: Any, settings: ServeSettings, **options: Any) -> None:
        """`options` of uvicorn.Config, such as log_level."""
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            timeout_keep_alive=max(1, int(settings.idle_timeout_s)),
            timeout_graceful_shutdown=int(settings.timeout_s) + 1,
            **options,
        )
        super().__init__(config)
        self._settings = settings
        self._switch, self._threshold = sys.getswitchinterval(), gc.get_threshold()
        # connection -> its request, whether it runs, since when
        self._seen: dict[Any, tuple[Any, bool, float]] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Every full collection would walk the half million objects of the libraries and the model,
        # 0.3 s in which nobody is answered; they stay until the end, so they are walked once, now.
        gc.collect()
        gc.freeze()
        # Python looks for cycles after every 700 objects; a request of 100,000 has none.
        gc.set_threshold(*LOOK_FOR_CYCLES)
        # Whoever answers waits for the interpreter's lock dozens of times, each time so long while
        # another thread parses or prepares a large request.
        sys.setswitchinterval(SWITCH_S)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        sys.setswitchinterval(self._switch)
        gc.set_threshold(*self._threshold)
        gc.unfreeze()  # for the libraries that count at the end what was not freed

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_EVERY == 0:
            self._sweep(time.monotonic())
        return await super().on_tick(counter)

    def _sweep(self, now: float) -> None:
        limits, seen = self._settings, {}
        for connection in self.server_state.connections:
            request = getattr(connection, "cycle", None)
            runs = request is not None and not request.response_complete
            before = self._seen.get(connection)
            same = before is not None and before[0] is request and before[1] == runs
            seen[connection] = (request, runs, before[2] if same and before else now)
        self._seen = seen
        most_busy = limits.body_timeout_s + limits.timeout_s + GRACE_S
        idle = sorted((since, id(c), c) for c, (_, runs, since) in seen.items() if not runs)
        surplus = max(0, len(seen) - limits.most_connections)
        for number, (since, _, connection) in enumerate(idle):
            if number < surplus or now - since > limits.idle_timeout_s:
                connection.transport.abort()
        for connection, (_, runs, since) in seen.items():
            if runs and now - since > most_busy:
                connection.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket on the address. Raises ConfigError where it cannot be had."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: must be between 0 and 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}: {error.strerror or error}; choose another --host or --port."
        ) from None

    # An answer's head and body are two writes. asyncio sets this on sockets that name TCP as their
    # protocol, which create_server's do not, and the body then waits 40 ms for the head's receipt.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
