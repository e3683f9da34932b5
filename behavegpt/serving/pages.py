"""/ is a playground, /docs one plain page; neither needs another server. What /openapi.json says of
the endpoints."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.pages import page
from behavegpt.serving.requests import ServeSettings

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>BehaveGPT</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;padding:.2em .6em;text-align:left}}
pre{{background:#f4f4f4;padding:.6em;overflow:auto}}</style>
<h1>BehaveGPT</h1>
<p>Send JSON; <a href="v1/model">GET /v1/model</a> lists the columns of an event.
State: <a href="health">/health</a>, <a href="metrics">/metrics</a>.
For programs: <a href="openapi.json">/openapi.json</a>.
Errors are <code>{{"error": {{"type": "...", "message": "..."}}}}</code>.</p>
{endpoints}
<h2>Limits of this service</h2>
<table><tr><th>setting</th><th>value</th><th></th></tr>{limits}</table></html>
"""
# more would make the page slow, and who looks for a rare label can type it
LABELS = 200  # of each column, offered while typing
EXAMPLES = {
    "users": '{"users": [{"id": "7", "events": [{"COLUMN": "VALUE"}]}]}',
    "events": '{"events": [{"COLUMN": "VALUE"}]}',
    "top_k": '{"top_k": 5}',
}


def add_pages(
    app: FastAPI,
    settings: ServeSettings,
    endpoints: Mapping[str, type[BaseModel]],
    tokenizer: EventTokenizer,
) -> None:
    """GET /, /docs and /v1/labels; app.openapi's components for the requests. The playground is for
    models that predict behaviors; / is the page of the endpoints of others."""
    # made once: neither limits nor endpoints change while the service runs
    text = _page(settings, endpoints)
    playground = page("playground") if "/v1/predict" in endpoints else text
    # FastAPI describes bodies that it parses itself; ours are read with bounds it does not know
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        for kind in endpoints.values():
            whole = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            # where the references of `ref_template` look for them
            parts = whole.pop("$defs", {}) | {kind.__name__: whole}
            schema.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(text)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(playground)

    @app.get("/v1/labels", summary="The most frequent labels of each column, by its role.")
    async def labels() -> Any:
        return {"labels": frequent_labels(tokenizer)}


def frequent_labels(tokenizer: EventTokenizer, most: int = LABELS) -> dict[str, list[str]]:
    """Role -> at most `most` labels of the column, the most frequent in training first."""
    return {
        role: tokenizer.vocabulary[role].values[:most].to_pylist()
        for role in tokenizer.event_schema.label_columns
        if role in tokenizer.vocabulary
    }


def request_schema(path: str, kind: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a request whose path and body we read ourselves."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    user = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "user",
        "schema": {"type": "string"},
    }
    return body | ({"parameters": [user]} if "{id}" in path else {})


def _page(settings: ServeSettings, endpoints: Mapping[str, type[BaseModel]]) -> str:
    parts = []
    for path, kind in endpoints.items():
        options = "".join(
            _row(name, json.dumps(field.get_default(), default=list), field.description or "")
            for name, field in kind.model_fields.items()
            if name not in ("users", "events")
        )
        example = next(text for name, text in EXAMPLES.items() if name in kind.model_fields)
        command = f"curl {path.format(id=7)} -H 'content-type: application/json' -d '{example}'"
        parts.append(
            "<h2>POST "
            f"{path}</h2><p>{html.escape(kind.__doc__ or '')}</p><pre>{html.escape(command)}</pre>"
            f"<table><tr><th>option</th><th>default</th><th></th></tr>{options}</table>"
        )
    limits = "".join(
        _row(name, str(getattr(settings, name)), field.description or "")
        for name, field in ServeSettings.model_fields.items()
    )
    return PAGE.format(endpoints="".join(parts), limits=limits)


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
