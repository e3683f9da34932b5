"""Every refusal as {"error": {"type", "message"}}, with hints that fit HTTP."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from behavegpt.errors import BehaveGPTError
from behavegpt.serving.batcher import Busy

HINT = "GET /v1/model lists the columns and the limits."
_OPTION = re.compile(r"(?<![\w-])--[a-z]")
_SENTENCE = re.compile(r"(?<=[.;?])\s+")


class Refused(Exception):
    """A request that is refused with an HTTP status of its own."""

    def __init__(
        self, code: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.kind, self.headers = code, kind, headers


class Late(Exception):
    """Work that nobody waits for any more."""


def error_response(
    code: int, kind: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The documented shape of an error."""
    body = {"error": {"type": kind, "message": message.encode("utf-8", "replace").decode()}}
    return JSONResponse(body, code, dict(headers or {}))


def over_http(message: str) -> str:
    """A message without the sentences that advise options of the command line, which a client does
    not have.

    >>> advice = "Name the right one with --time COLUMN."
    >>> over_http(f"no column 't' (the time). Did you mean 'T'? {advice}")
    "no column 't' (the time). Did you mean 'T'? GET /v1/model lists the columns and the limits."
    """
    if not _OPTION.search(message):
        return message
    kept = [part for part in _SENTENCE.split(message) if not _OPTION.search(part)]
    # the one sentence advises an option: what stands before the advice is the mistake
    if not kept:
        kept = [_OPTION.split(message)[0].rsplit(",", 1)[0].rstrip(" ;,:(") + "."]
    text = " ".join(kept)
    return f"{text.rstrip(';').rstrip()}{'' if text.endswith(('.', '?')) else '.'} {HINT}"


def add_errors(app: FastAPI, endpoints: Iterable[str]) -> None:
    """Answer all errors in one shape; whoever asks for another path is told the `endpoints`."""
    posts = ", ".join(path.format(id="ID") for path in endpoints)
    paths = f"POST {posts}; GET /v1/model, /health, /metrics, /docs"

    async def refused(request: HttpRequest, error: Refused) -> Response:
        return error_response(error.code, error.kind, str(error), error.headers)

    async def ours(request: HttpRequest, error: BehaveGPTError) -> Response:
        # a message may quote what was sent; nobody reads more of it than this
        return error_response(422, type(error).__name__, over_http(str(error))[:2000])

    async def busy(request: HttpRequest, error: Busy) -> Response:
        text = "too many requests wait, or the service is stopping; try again."
        return error_response(503, "Busy", text, {"Retry-After": "1"})

    async def slow(request: HttpRequest, error: Exception) -> Response:
        return error_response(
            504, "Timeout", "not answered in time; ask for fewer users or steps, or try again."
        )

    async def routing(request: HttpRequest, error: HTTPException) -> Response:
        kinds = {404: ("NotFound", f"there is no {request.url.path[:100]!r} here; try {paths}.")}
        kinds[405] = ("MethodNotAllowed", f"{request.method} is not for this path; try {paths}.")
        kind, message = kinds.get(error.status_code, ("ConfigError", str(error.detail)[:500]))
        return error_response(error.status_code, kind, message, error.headers)

    async def bug(request: HttpRequest, error: Exception) -> Response:
        # the trace is for who runs the service: a client learns nothing of the code
        logging.getLogger("uvicorn.error").error("%s", request.url.path, exc_info=error)
        return error_response(500, "InternalError", "internal server error; see the server log.")

    table = {Refused: refused, BehaveGPTError: ours, Busy: busy, TimeoutError: slow, Late: slow}
    # Starlette asks for the nearest class in this table, so `bug` gets what nothing else names
    table |= {HTTPException: routing, Exception: bug}
    for kind, handler in table.items():
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]
