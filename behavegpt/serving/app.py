"""The HTTP service: POST /v1/predict, /v1/embed, /v1/generate; GET /health, /metrics, /v1/model.

Errors are JSON: {"error": {"type", "message"}}. 400 no JSON, 413 too long, 422 what the model cannot use, with the
message of the command line, 503 too busy, 504 too slow. Shutdown answers what was accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import behavegpt
from behavegpt.errors import BehaveGPTError
from behavegpt.predictor import Predictor
from behavegpt.serving.answers import answer_all, columns_of, key
from behavegpt.serving.batcher import Batcher, Busy
from behavegpt.serving.numbers import Numbers
from behavegpt.serving.requests import EmbedRequest, GenerateRequest, PredictRequest, Request, ServeSettings

MOST_TOLD = 3  # mistakes of a request that an answer lists


def make_app(predictor: Predictor, settings: ServeSettings) -> FastAPI:
    """The service as an ASGI application."""
    numbers = Numbers()

    def work(requests: Sequence[Request]) -> Sequence[Any]:
        began = time.perf_counter()
        answers = answer_all(predictor, requests)
        numbers.batch(sum(len(request.users) for request in requests), time.perf_counter() - began)
        return answers

    batcher = Batcher(work, most=settings.batch_users, wait=settings.wait_ms / 1000, most_waiting=settings.most_waiting)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="BehaveGPT", version=behavegpt.__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.batcher = batcher
    app.add_middleware(BodyLimit, most=settings.most_bytes)
    _add_errors(app)
    _add_facts(app, predictor, numbers, batcher)

    async def ask(request: Request) -> Any:
        request.check(settings)
        together = key(request, predictor.tokenizer.event_schema)
        result = batcher.submit(together, len(request.users), request)
        return await asyncio.wait_for(asyncio.wrap_future(result), settings.timeout_s)

    @app.post("/v1/predict")
    async def predict(request: PredictRequest) -> Any:
        return JSONResponse(await ask(request))

    @app.post("/v1/embed")
    async def embed(request: EmbedRequest) -> Any:
        return JSONResponse(await ask(request))

    @app.post("/v1/generate")
    async def generate(request: GenerateRequest) -> Any:
        return JSONResponse(await ask(request))

    return app


def _add_facts(app: FastAPI, predictor: Predictor, numbers: Numbers, batcher: Batcher) -> None:
    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok", "waiting": batcher.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(numbers.text(batcher.waiting), media_type="text/plain; version=0.0.4")

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
        }

    @app.middleware("http")
    async def count(request: HttpRequest, call_next: Callable[[HttpRequest], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        if getattr(route, "path", "").startswith("/v1"):
            numbers.request(route.path, response.status_code, time.perf_counter() - began)  # type: ignore[union-attr]
        return response


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(BehaveGPTError)
    async def ours(request: HttpRequest, error: BehaveGPTError) -> Response:
        return _error(422, type(error).__name__, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> Response:
        items = error.errors()
        if any(item["type"] == "json_invalid" for item in items):
            return _error(400, "ConfigError", "the body is not JSON; send an object with `users`.")
        told = dict.fromkeys(f"{'.'.join(map(str, item['loc'][1:]))[:100]}: {item['msg']}" for item in items)
        return _error(422, "ConfigError", "; ".join(list(told)[:MOST_TOLD]) + ".")

    @app.exception_handler(Busy)
    async def busy(request: HttpRequest, error: Busy) -> Response:
        return _error(
            503, "Busy", "too many requests wait, or the service is stopping; try again.", {"Retry-After": "1"}
        )

    @app.exception_handler(asyncio.TimeoutError)
    async def slow(request: HttpRequest, error: asyncio.TimeoutError) -> Response:
        return _error(504, "Timeout", "not answered in time; ask for fewer users or steps, or try again.")

    @app.exception_handler(Exception)
    async def bug(request: HttpRequest, error: Exception) -> Response:
        return _error(500, "InternalError", "our mistake; the service's log has the details.")


def _error(code: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message}}, code, headers)


class BodyLimit:
    """ASGI middleware: a body is read up to `most` bytes, whatever its header says; beyond, 413."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", not (said.isdigit() and int(said) > self.most)
        too_long = not more
        while more:
            message = await receive()
            body += message.get("body", b"")
            too_long = len(body) > self.most
            more = message.get("more_body", False) and not too_long
        if too_long:
            text = f"the body is longer than {self.most} bytes; send fewer users at a time."
            await _error(413, "ConfigError", text)(scope, receive, send)
            return
        sent = False

        async def once() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, once, send)
