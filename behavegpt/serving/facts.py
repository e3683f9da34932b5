"""What a service tells of itself: how it is, its numbers, and what its model can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from behavegpt.labeling.predictor import LabelPredictor
from behavegpt.serving.answers import AnyPredictor, columns_of
from behavegpt.zero_shot import UniversalPredictor

if TYPE_CHECKING:
    from behavegpt.serving.app import Service


def add_facts(app: FastAPI, service: Service) -> None:
    """Add GET /health, /metrics and /v1/model."""
    predictor = service.predictor

    # answered without the model: it must tell of a service that is busy
    @app.get("/health")
    async def health() -> Any:
        users = service.users
        held = {} if users is None else {"users": len(users), "state_bytes": users.nbytes}
        return {"status": "ok", "waiting": service.waiting} | held

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(
            service.numbers.text(service.waiting), media_type="text/plain; version=0.0.4"
        )

    @app.get("/v1/model")
    async def model() -> Any:
        return {
            "vocabulary_hash": predictor.tokenizer.hash,
            "columns": columns_of(predictor.tokenizer.event_schema),
            "features": list(predictor.tokenizer.event_schema.features),
            **(_says(predictor) if isinstance(predictor, LabelPredictor) else _tells(predictor)),
            "limits": service.settings.model_dump(),
        }


def _says(predictor: LabelPredictor) -> dict[str, Any]:
    """The label that a model says of users, and its classes (null: a number)."""
    config = predictor.model.config
    return {"label": config.label, "classes": config.classes}


def _tells(predictor: AnyPredictor) -> dict[str, Any]:
    """What a model predicts, and what of it may be asked."""
    return {
        "behaviors": predictor.tokenizer.behaviors.classes,
        "given": list(predictor.given),
        "thresholds": getattr(predictor, "thresholds", None) is not None,
        "times": predictor.tells_times,
        **_shape(predictor),
    }


def _shape(predictor: AnyPredictor) -> dict[str, Any]:
    """How many events back the model looks (null: all), the width of a vector, and where it
    runs."""
    if isinstance(predictor, UniversalPredictor):
        return {
            "looks_back": None,
            "width": predictor.model.mixer.gate.in_features,
            "device": "cpu",
        }
    config = predictor.model.config
    return {
        "looks_back": config.max_length,
        "width": config.hidden_size,
        "device": str(predictor.model.device),
    }
