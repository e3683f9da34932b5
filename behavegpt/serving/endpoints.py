"""What may be asked, path by path, and the counter of what was."""

from __future__ import annotations

import time
from typing import Any

from behavegpt.serving.numbers import Numbers
from behavegpt.serving.requests import (
    AnyRequest,
    EmbedRequest,
    EventsRequest,
    ExplainRequest,
    GenerateRequest,
    LabelRequest,
    PredictRequest,
    StateRequest,
    WhenRequest,
)

ENDPOINTS: dict[str, type[AnyRequest]] = {
    "/v1/predict": PredictRequest,
    "/v1/explain": ExplainRequest,
    "/v1/when": WhenRequest,
    "/v1/embed": EmbedRequest,
    "/v1/generate": GenerateRequest,
    # the user stands in the path, so that a proxy can send each user to the same service
    "/v1/users/{id}/events": EventsRequest,
    "/v1/users/{id}/predict": StateRequest,
}
LABEL_ENDPOINTS: dict[str, type[AnyRequest]] = {"/v1/label": LabelRequest}
USERS = ("/v1/users/", ("/events", "/predict"))  # how the paths of one user begin, and end


def _endpoint(path: str) -> str | None:
    """The endpoint of a path, without the name of a user."""
    # names are many, and each would be a series of its own in whoever collects the metrics
    begin, ends = USERS
    end = next((end for end in ends if path.startswith(begin) and path.endswith(end)), None)
    path = path if end is None else f"{begin}{{id}}{end}"
    return path if path in ENDPOINTS or path in LABEL_ENDPOINTS else None


class Counted:
    """ASGI middleware: counts the answers of the endpoints, and the time they took."""

    def __init__(self, app: Any, numbers: Numbers) -> None:
        self.app, self.numbers = app, numbers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = _endpoint(scope["path"]) if scope["type"] == "http" else None
        # pages, health and metrics: counting them would drown what was asked of the model
        if path is None:
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Any) -> None:
            # to the first byte: how fast a client reads is not ours to answer for
            if message["type"] == "http.response.start":
                self.numbers.request(path, message["status"], time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counted)
