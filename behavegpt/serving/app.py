"""The HTTP service: POST /v1/predict, /v1/embed, /v1/generate; GET /health, /metrics, /v1/model, /docs.

Errors are JSON: {"error": {"type", "message"}}. 400 no JSON, 408 too slow a body, 413 too long, 415 not plain JSON,
422 what the model cannot use, with the message of the command line, 503 too busy, 504 too slow. Shutdown answers what
was accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse, Response

import behavegpt
from behavegpt.predictor import Predictor
from behavegpt.serving.answers import answer_all, columns_of, key
from behavegpt.serving.batcher import Batcher
from behavegpt.serving.bodies import SMALL, Bodies
from behavegpt.serving.errors import Late, add_errors
from behavegpt.serving.numbers import Numbers
from behavegpt.serving.pages import add_pages, request_schema
from behavegpt.serving.requests import EmbedRequest, GenerateRequest, PredictRequest, Request, ServeSettings

ENDPOINTS: dict[str, type[Request]] = {
    "/v1/predict": PredictRequest,
    "/v1/embed": EmbedRequest,
    "/v1/generate": GenerateRequest,
}
QUICK_EVENTS = 5000  # requests with more wait in the other lane


@dataclass
class Job:
    """A request on its way; given up when nobody waits for it any more."""

    request: Request
    deadline: float  # of time.monotonic()

    def give_up(self) -> None:
        """Stop computing as soon as no other request of the batch is waited for."""
        self.deadline = 0.0


class Service:
    """Two lanes, each with a thread that runs the model, so that long work never holds up short requests."""

    def __init__(self, predictor: Predictor, settings: ServeSettings) -> None:
        self.predictor, self.settings, self.numbers = predictor, settings, Numbers()
        self.bodies = Bodies(settings, predictor.tokenizer.event_schema)
        self.quick, self.long = (
            Batcher(
                self._work, most=settings.batch_users, wait=settings.wait_ms / 1000, most_waiting=settings.most_waiting
            )
            for _ in range(2)
        )

    @property
    def waiting(self) -> int:
        """Requests that no batch holds yet."""
        return self.quick.waiting + self.long.waiting

    def close(self) -> None:
        """Answer what waits, take nothing more."""
        self.quick.close()
        self.long.close()

    async def answer(self, kind: type[Request], http: HttpRequest) -> Response:
        """Read, check, wait for the model, and write the answer."""
        with self.bodies.holder() as holder:
            body = await self.bodies.read(http, holder.hold)
            deadline = time.monotonic() + self.settings.timeout_s
            gone = asyncio.ensure_future(_gone(http))
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    request = await self.bodies.parse(kind, body)
                    answer = await self._ask(Job(request, deadline), gone)
                    large = len(body) > SMALL or isinstance(request, GenerateRequest)
                    text = await asyncio.to_thread(_as_json, answer) if large else _as_json(answer)
            finally:
                gone.cancel()
            return Response(text, media_type="application/json")

    async def _ask(self, job: Job, gone: asyncio.Future[None]) -> Any:
        """The model's answer. Raises Busy, and Late when the client has gone."""
        request = job.request
        together = key(request, self.predictor.tokenizer.event_schema)
        long = isinstance(request, GenerateRequest) or request.events > QUICK_EVENTS
        lane = self.long if long else self.quick
        result = asyncio.wrap_future(lane.submit(together, len(request.users), job))
        try:
            await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise Late
            return result.result()
        finally:
            job.give_up()
            result.cancel()

    def _work(self, jobs: Sequence[Job]) -> Sequence[Any]:
        began = time.perf_counter()

        def interrupt() -> None:
            if time.monotonic() > max(job.deadline for job in jobs):
                raise Late

        answers = answer_all(self.predictor, [job.request for job in jobs], interrupt)
        self.numbers.batch(sum(len(job.request.users) for job in jobs), time.perf_counter() - began)
        return answers


def make_app(predictor: Predictor, settings: ServeSettings) -> FastAPI:
    """The service as an ASGI application."""
    service = Service(predictor, settings)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="BehaveGPT",
        version=behavegpt.__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(Counted, numbers=service.numbers)
    add_errors(app)
    for path, kind in ENDPOINTS.items():
        _add_endpoint(app, service, path, kind)
    _add_facts(app, service)
    add_pages(app, settings, ENDPOINTS)
    return app


def _add_endpoint(app: FastAPI, service: Service, path: str, kind: type[Request]) -> None:
    async def endpoint(request: HttpRequest) -> Response:
        return await service.answer(kind, request)

    app.add_api_route(
        path, endpoint, methods=["POST"], summary=kind.__doc__, name=path, openapi_extra=request_schema(kind)
    )


def _add_facts(app: FastAPI, service: Service) -> None:
    predictor = service.predictor

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok", "waiting": service.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.numbers.text(service.waiting), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model")
    async def model() -> Any:
        config, schema = predictor.model.config, predictor.tokenizer.event_schema
        return {
            "vocabulary_hash": predictor.tokenizer.hash,
            "columns": columns_of(schema),
            "looks_back": config.max_length,
            "behaviors": config.num_behaviors,
            "width": config.hidden_size,
            "device": str(predictor.model.device),
            "limits": service.settings.model_dump(),
        }


async def _gone(http: HttpRequest) -> None:
    """Returns when the client has closed the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _as_json(answer: Any) -> bytes:
    """JSON, user by user: the encoder holds the interpreter's lock as long as it runs."""
    users = b",".join(_dump(user) for user in answer["users"])
    rest = _dump({name: value for name, value in answer.items() if name != "users"})
    return b'{"users":[' + users + b"]," + rest[1:]


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class Counted:
    """ASGI middleware: counts the answers of the endpoints, and the time they took."""

    def __init__(self, app: Any, numbers: Numbers) -> None:
        self.app, self.numbers = app, numbers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in ENDPOINTS:
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.numbers.request(scope["path"], message["status"], time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counted)
