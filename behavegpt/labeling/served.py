"""What a service says of users by a model with a label head: POST /v1/user-labels."""

from __future__ import annotations

import contextlib
from typing import Any

from behavegpt.errors import BehaveGPTError, DataError
from behavegpt.labeling.predictor import LabelPredictor, UserLabels
from behavegpt.probing.past import shown
from behavegpt.serving.bodies import READING_LARGE
from behavegpt.serving.histories import name_of
from behavegpt.serving.requests import LabelRequest

Answer = dict[str, Any]


class ServedLabels(LabelPredictor):
    """A model with a label head as a service holds it: the names of users are taken literally."""

    @classmethod
    def of(cls, predictor: LabelPredictor) -> ServedLabels:
        """The predictor for a service."""
        return cls(predictor.model, predictor.tokenizer.by_name)

    @property
    def facts(self) -> Answer:
        """What GET /v1/model tells of it beside the columns."""
        config = self.model.config
        return {
            "label": config.label,
            "classes": list(config.classes or ()),
            "looks_back": config.max_length,
            "device": str(self.model.device),
        }

    def say(self, request: LabelRequest) -> Answer | BehaveGPTError:
        """The answer to a request, or the error to tell."""
        try:
            with READING_LARGE if request.large else contextlib.nullcontext():
                return _said(self, request)
        except BehaveGPTError as error:
            return error


def _said(predictor: ServedLabels, request: LabelRequest) -> Answer:
    names = [name_of(user) for user in request.users]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"user {twice!r} stands in the request twice; send all their events once.")
    if any(user.features for user in request.users):
        raise DataError("features: a model with a label head reads none of the users.")

    column = predictor.tokenizer.event_schema.user
    rows = [
        {**event, column: name}
        for name, user in zip(names, request.users, strict=True)
        for event in user.events
    ]
    said = predictor.predict(rows, at=request.at)
    places = {name: place for place, name in enumerate(said.users.to_pylist())}
    missing = next((name for name in names if name not in places), None)
    if missing is not None:
        raise DataError(f"user {missing!r} has no usable event before {shown(said.at)}.")
    users = [
        {"id": user.id, **_of_user(said, places[name])}
        for name, user in zip(names, request.users, strict=True)
    ]
    return {"users": users, "label": said.label, "at": shown(said.at)}


def _of_user(said: UserLabels, place: int) -> Answer:
    """The number, or the most probable class with the probability of each."""
    values = said.values[place].tolist()
    if not said.classes:
        return {"value": values[0]}
    chances = dict(zip(said.classes, values, strict=True))
    return {"value": max(chances, key=lambda name: chances[name]), "probabilities": chances}
