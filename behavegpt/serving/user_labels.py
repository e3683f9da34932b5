"""POST /v1/label: what a model with a label head says of users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from behavegpt.errors import BehaveGPTError, DataError
from behavegpt.labeling.predictor import LabelPredictor
from behavegpt.serving.answers import Answer, check_columns, named_columns
from behavegpt.serving.histories import events_table, knowing, name_of
from behavegpt.serving.requests import LabelRequest


def answer_labels(
    predictor: LabelPredictor, requests: Sequence[LabelRequest], interrupt: Callable[[], None]
) -> list[Answer | BehaveGPTError]:
    """An answer, or the error to tell, for each request."""
    answers: list[Answer | BehaveGPTError] = []
    for request in requests:
        interrupt()
        # one client's mistake must not cost the answers of the others in the batch
        try:
            answers.append(_answer(predictor, request))
        except BehaveGPTError as error:
            answers.append(error)
    return answers


def _answer(predictor: LabelPredictor, request: LabelRequest) -> Answer:
    """Raises DataError where a user has no usable event before the moment."""
    names = [name_of(user) for user in request.users]
    # a label is said of all events of a user: two halves would give two labels
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"user {twice!r} is there twice; send all events of a user together.")

    # what the columns are is looked at before any row is read
    check_columns(named_columns(request), predictor.tokenizer.event_schema)
    tokenizer = knowing(predictor.tokenizer, request.users)
    asked = LabelPredictor(predictor.model, tokenizer)
    columns = dict.fromkeys(name for user in request.users for row in user.events for name in row)
    table = events_table(request.users, columns, tokenizer.event_schema.user)
    said = asked.predict(table, at=request.at)

    # the reader sorts users by name; answers are in the order of the request
    place = {name: row for row, name in enumerate(said.users.to_pylist())}
    # a shorter list would shift the answers of those behind
    missing = next((name for name in names if name not in place), None)
    if missing is not None:
        raise DataError(f"user {missing!r} has no usable event before the moment asked about.")

    users = [
        {"id": user.id, **_said(said.classes, said.values[place[name]])}
        for user, name in zip(request.users, names, strict=True)
    ]
    moment = datetime.fromtimestamp(said.at, UTC).isoformat()
    return {"users": users, "label": said.label, "before": moment}


def _said(classes: tuple[str, ...], values: np.ndarray) -> Answer:
    """Of one user: a number, or the most probable class and the probabilities (K,)."""
    if not classes:
        return {"value": float(values[0])}
    shares = dict(zip(classes, values.tolist(), strict=True))
    return {"value": classes[int(values.argmax())], "probabilities": shares}
