"""The HTTP service: POST to what `endpoints.py` lists; GET / (a playground), /docs, /health,
/metrics, /v1/model, /v1/labels.

Errors are JSON: {"error": {"type", "message"}}. 400 no JSON, 408 too slow a body, 413 too long, 415
not plain JSON, 422 what the model cannot use, with the message of the command line, 503 too busy,
504 too slow. Shutdown answers what was accepted.
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
from fastapi.responses import Response

import behavegpt
from behavegpt.labeling.predictor import LabelPredictor
from behavegpt.serving.answers import AnyPredictor, answer_all, key
from behavegpt.serving.batcher import Batcher
from behavegpt.serving.bodies import SMALL, Bodies
from behavegpt.serving.endpoints import ENDPOINTS, LABEL_ENDPOINTS, Counted
from behavegpt.serving.errors import Late, add_errors
from behavegpt.serving.examples import example_users
from behavegpt.serving.facts import add_facts
from behavegpt.serving.numbers import Numbers
from behavegpt.serving.pages import add_pages, request_schema
from behavegpt.serving.requests import (
    AnyRequest,
    ExplainRequest,
    GenerateRequest,
    LabelRequest,
    Request,
    ServeSettings,
    UserRequest,
    WhenRequest,
)
from behavegpt.serving.user_labels import answer_labels
from behavegpt.serving.users import Users


@dataclass
class Job:
    """A request on its way; given up when nobody waits for it any more."""

    request: Request | UserRequest
    # the wall clock may be set back, and a request would then never be late
    deadline: float  # of time.monotonic()

    def give_up(self) -> None:
        """Stop computing as soon as no other request of the batch is waited for."""
        self.deadline = 0.0


class Service:
    """Two lanes, each with a thread that runs the model, so that long work never holds up short
    requests."""

    def __init__(self, predictor: AnyPredictor | LabelPredictor, settings: ServeSettings) -> None:
        self.predictor, self.settings, self.numbers = predictor, settings, Numbers()
        # a label is said of whole histories: no states are kept
        self.users = None if isinstance(predictor, LabelPredictor) else Users(predictor, settings)
        self.bodies = Bodies(settings, predictor.tokenizer.event_schema)
        # a thread each: while one computes a thousand futures, the other answers predictions
        self.quick, self.long = (
            Batcher(
                self._work,
                most=settings.batch_users,
                wait=settings.wait_ms / 1000,
                most_waiting=settings.most_waiting,
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

    async def answer(self, kind: type[AnyRequest], http: HttpRequest) -> Response:
        """Read, check, wait for the model, and write the answer."""
        # until the answer is made: as long as that the request takes memory
        with self.bodies.holder() as holder:
            body = await self.bodies.read(http, holder.hold)
            deadline = time.monotonic() + self.settings.timeout_s
            # only after the body was read: both would take messages from the same connection
            gone = asyncio.ensure_future(_gone(http))
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    request = self._named(await self.bodies.parse(kind, body), http)
                    answer = await self._ask(Job(request, deadline), gone)
                    # writing a large answer in the event loop would keep all other connections
                    # waiting
                    large = len(body) > SMALL or isinstance(request, GenerateRequest)
                    text = await asyncio.to_thread(_as_json, answer) if large else _as_json(answer)
            finally:
                gone.cancel()
            return Response(text, media_type="application/json")

    async def _ask(self, job: Job, gone: asyncio.Future[None]) -> Any:
        """The model's answer. Raises Busy, and Late when the client has gone."""
        request = job.request
        # all in one lane and under one key: their order counts
        if isinstance(request, UserRequest):
            submitted = self.quick.submit(UserRequest, 1, job)
        else:
            large = request.large
            # alone: to look for its like takes long, here
            alone = large or isinstance(request, LabelRequest)
            together = None if alone else key(request, self.predictor.tokenizer.event_schema)
            long = large or isinstance(request, (GenerateRequest, ExplainRequest, WhenRequest))
            submitted = (self.long if long else self.quick).submit(
                together, len(request.users), job
            )

        result = asyncio.wrap_future(submitted)
        try:
            # whichever comes first: nobody waits for what the client has given up
            await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise Late
            return result.result()
        finally:
            job.give_up()
            result.cancel()

    def _work(self, jobs: Sequence[Job]) -> Sequence[Any]:
        # for /metrics alone: deadlines are of the monotonic clock
        began = time.perf_counter()

        def interrupt() -> None:
            # one request of a batch cannot be stopped alone: the latest deadline is that of the
            # batch
            if time.monotonic() > max(job.deadline for job in jobs):
                raise Late

        asked = [job.request for job in jobs if isinstance(job.request, Request)]
        # of a batch all or none
        about = [job.request for job in jobs if isinstance(job.request, UserRequest)]
        answers: Sequence[Any] = []
        if isinstance(self.predictor, LabelPredictor):
            labels = [request for request in asked if isinstance(request, LabelRequest)]
            answers = answer_labels(self.predictor, labels, interrupt)
        elif asked:
            answers = answer_all(self.predictor, asked, interrupt)
        else:
            assert self.users is not None
            answers = self.users.answer_all(about, interrupt)

        users = sum(len(request.users) for request in asked) + len(about)
        self.numbers.batch(users, time.perf_counter() - began)
        return answers

    def _named(self, request: AnyRequest, http: HttpRequest) -> Request | UserRequest:
        """The request, with the user of its path."""
        if isinstance(request, Request):
            return request
        assert isinstance(request, UserRequest)
        return request.of(http.path_params["id"])


def make_app(predictor: AnyPredictor | LabelPredictor, settings: ServeSettings) -> FastAPI:
    """The service as an ASGI application."""
    service = Service(predictor, settings)
    endpoints = LABEL_ENDPOINTS if isinstance(predictor, LabelPredictor) else ENDPOINTS

    # answers what was accepted before uvicorn lets the process end
    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="BehaveGPT",
        version=behavegpt.__version__,
        lifespan=life,
        # FastAPI's own pages load scripts from another server, and a service may have no way there
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    app.state.service = service
    app.add_middleware(Counted, numbers=service.numbers)
    add_errors(app, endpoints)
    for path, kind in endpoints.items():
        _add_endpoint(app, service, path, kind)
    add_facts(app, service)
    add_pages(app, settings, endpoints, predictor.tokenizer)
    if isinstance(predictor, LabelPredictor):
        return app

    examples = example_users(predictor, settings.examples)

    @app.get("/v1/examples", summary="Users of the log that the service was started with.")
    async def told() -> Any:
        return {"users": examples}

    return app


def _add_endpoint(app: FastAPI, service: Service, path: str, kind: type[AnyRequest]) -> None:
    async def endpoint(request: HttpRequest) -> Response:
        return await service.answer(kind, request)

    app.add_api_route(
        path.replace("{id}", "{id:path}"),  # names may hold slashes
        endpoint,
        methods=["POST"],
        summary=kind.__doc__,
        name=path,
        openapi_extra=request_schema(path, kind),
    )


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
