"""Requests -> answers, several at a time, each the one that the Predictor gives to it alone.

Requests are put together only where no rule of reading looks at more than one row; see
ingest/together.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.config import closest
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import BehaveGPTError, DataError
from behavegpt.ingest.asked import check_asked
from behavegpt.ingest.time_join import time_parts
from behavegpt.ingest.together import columns_of, reading_key
from behavegpt.options import PredictOptions
from behavegpt.predictor import Predictor
from behavegpt.serving.bodies import READING_LARGE
from behavegpt.serving.histories import encode_users
from behavegpt.serving.requests import (
    EmbedRequest,
    ExplainRequest,
    GenerateRequest,
    PredictRequest,
    Request,
    WhenRequest,
)
from behavegpt.zero_shot import UniversalPredictor

Answer = dict[str, Any]
Interrupt = Callable[[], None]
AnyPredictor = Predictor | UniversalPredictor


def answer_all(
    predictor: AnyPredictor, requests: Sequence[Request], interrupt: Interrupt = lambda: None
) -> list[Answer | BehaveGPTError]:
    """An answer, or the error to tell, for each request; requests of one kind with the same
    options, see `key`.

    `interrupt` is called between pieces of the work; what it raises stops it.
    """
    # reading and the network cost nearly the same for one user and for a hundred
    if len(requests) > 1:
        try:
            encoded = _encode(predictor, requests)
            # rejected rows are counted over all, and nothing tells whose they were
            if not encoded.rejected:
                return list(_answers(predictor, requests, encoded, interrupt))
        except BehaveGPTError:
            pass  # of which request? each is asked alone
    return [_answer_one(predictor, request, interrupt) for request in requests]


def key(request: Request, schema: EventSchema) -> tuple[Any, ...] | None:
    """Requests with the same key may be answered together; None: alone."""
    together = reading_key([row for user in request.users for row in user.events], schema)
    if together is None:
        return None
    # one call of the predictor has one set of options
    options = {name: getattr(request, name) for name in type(request).model_fields}
    del options["users"]
    return (
        type(request),
        together,
        tuple((name, hashable(value)) for name, value in options.items()),
    )


def hashable(value: Any) -> Any:
    """The value of an option, lists and objects as tuples."""
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


def predict_options(request: PredictOptions) -> dict[str, Any]:
    """The options of a request by name, beside `top_k`."""
    names = set(PredictOptions.model_fields) - {"top_k"}
    return {name: getattr(request, name) for name in sorted(names)}


def named_columns(request: Request) -> set[str]:
    return set().union(*(row for user in request.users for row in user.events))


def _answer_one(
    predictor: AnyPredictor, request: Request, interrupt: Interrupt
) -> Answer | BehaveGPTError:
    # those that waited behind this one may have been given up meanwhile
    interrupt()
    try:
        # see bodies.py: a large request takes the interpreter's lock
        with READING_LARGE if request.large else contextlib.nullcontext():
            encoded = _encode(predictor, [request])
        return next(iter(_answers(predictor, [request], encoded, interrupt)))
    except BehaveGPTError as error:
        return error


def _encode(predictor: AnyPredictor, requests: Sequence[Request]) -> EncodedHistories:
    """The histories of all users in their order, under their own names. Raises DataError."""
    # of all requests: `key` saw to it that they have the same columns
    names = set.union(*map(named_columns, requests))
    check_columns(names, predictor.tokenizer.event_schema)
    users = [user for request in requests for user in request.users]
    return encode_users(predictor.tokenizer, users, names)


def check_columns(names: set[str], schema: EventSchema) -> None:
    """Raise DataError when no event tells one of the columns; a behavior need not be told."""
    roles = [
        (role, column)
        for role, column in columns_of(schema).items()
        if role not in ("behavior", "time")
    ]
    # a behavior is what is predicted, and a time may be told in parts
    for role, column in [*roles, *(("time", part) for part in time_parts(schema.time, names))]:
        if column not in names:
            hint = closest(column, sorted(names)[:30]).replace("Known", "The events have")
            raise DataError(
                f"no column {column!r} (the {role}) in the events. {hint} Events have the column "
                "names of the training log; GET /v1/model tells them."
            )


def _answers(
    predictor: AnyPredictor,
    requests: Sequence[Request],
    encoded: EncodedHistories,
    interrupt: Interrupt,
) -> list[Answer]:
    # (requests,) one behind the last user of each

    ends = np.cumsum([len(request.users) for request in requests])
    whole = _ANSWERS[type(requests[0])](predictor, requests, encoded, interrupt)
    found = []
    for request, end in zip(requests, ends, strict=True):
        begin = end - len(request.users)
        events = slice(encoded.offsets[begin], encoded.offsets[end])
        unknown = {
            field: int((encoded.columns[field][events] == UNKNOWN).sum())
            for field in encoded.unknown
        }

        # a place that is asked about may be as unknown as one of the history
        places = [getattr(user, "location", None) for user in request.users]
        asked = [str(place) for place in places if place is not None]
        if asked:
            ids_of_places = predictor.tokenizer.vocabulary["location"].encode(pa.array(asked))
            unknown["location"] += int((ids_of_places == UNKNOWN).sum())

        ids = [user.id for user in request.users]
        users = [{"id": id_} | answer for id_, answer in zip(ids, whole[begin:end], strict=True)]
        found.append({"users": users, "unknown": unknown, "rejected": encoded.rejected})
    return found


def _predict(
    predictor: AnyPredictor, requests: Any, encoded: EncodedHistories, interrupt: Interrupt
) -> list[Answer]:
    options = _options(predictor, requests)
    found = predictor.predict(encoded, requests[0].top_k, interrupt=interrupt, **options)
    return [{"behaviors": behaviors} for behaviors in found.answers()]


def _explain(
    predictor: AnyPredictor, requests: Any, encoded: EncodedHistories, interrupt: Interrupt
) -> list[Answer]:
    options = _options(predictor, requests)
    found = predictor.explain(encoded, requests[0].last, interrupt=interrupt, **options)
    return found.answers()


def _when(
    predictor: AnyPredictor, requests: Any, encoded: EncodedHistories, interrupt: Interrupt
) -> list[Answer]:
    request = requests[0]
    # `now` is one for all: it is part of the key
    found = predictor.when(
        encoded, request.within, request.top_k, now=request.now, interrupt=interrupt
    )
    if len(found) < len(encoded.users):
        # users without an event until then are left out by `when`
        there = set(found.users.to_pylist())
        # an answer for each user, or none: a shorter list would be taken for another user's
        late = next((user for user in encoded.users.to_pylist() if user not in there), "?")
        raise DataError(f"user {late!r} has no event until {request.now!r}; ask without them.")
    return found.answers()


def _options(predictor: AnyPredictor, requests: Any) -> dict[str, Any]:
    """The decision, the filters, and what users say of the events that are asked about. Raises
    ConfigError and DataError."""
    users = [user for request in requests for user in request.users]
    at, location = (
        values if any(value is not None for value in values) else None
        for values in ([user.at for user in users], [user.location for user in users])
    )
    # before a log is counted again for it
    check_asked(predictor.given, at, location, "the model of this service", "serve another one")
    return predict_options(requests[0]) | {"at": at, "location": location}


def _embed(
    predictor: AnyPredictor, requests: Any, encoded: EncodedHistories, interrupt: Interrupt
) -> list[Answer]:
    return [
        {"vector": vector}
        for vector in predictor.embed(encoded, requests[0].pool, interrupt).vectors.tolist()
    ]


def _generate(
    predictor: AnyPredictor, requests: Any, encoded: EncodedHistories, interrupt: Interrupt
) -> list[Answer]:
    request = requests[0]
    # a request has the options of Python by the same names, which the limits have checked
    options = request.model_dump(exclude={"users", "steps"})
    found = predictor.generate(encoded, request.steps, interrupt=interrupt, **options)
    schema = predictor.tokenizer.event_schema
    table = found.to_table().drop_columns([schema.user])
    # the columns stay in the order of the log
    place = table.column_names.index(schema.time)
    # JSON knows no times; in the zone in which the log writes them
    texts = [time.isoformat() for time in table[schema.time].to_pylist()]
    rows = table.set_column(place, schema.time, pa.array(texts, pa.string())).to_pylist()
    # futures end at different steps, so users have different numbers of rows
    bounds = np.searchsorted(found.columns["user"], np.arange(len(encoded.users) + 1))
    return [
        {"events": rows[bounds[i] : bounds[i + 1]], "policies": found.policies}
        for i in range(len(encoded.users))
    ]


_ANSWERS = {
    PredictRequest: _predict,
    ExplainRequest: _explain,
    WhenRequest: _when,
    EmbedRequest: _embed,
    GenerateRequest: _generate,
}
