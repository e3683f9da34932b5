"""Over HTTP a value has the label that it has everywhere else, whatever else is in the request."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; pip install fastapi")

from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import DataError
from behavegpt.ingest.prepare import prepare
from behavegpt.predictor import Predictor
from behavegpt.serving.answers import _encode, key
from behavegpt.serving.requests import History, PredictRequest
from tests.data.test_labels import KINDS, SCHEMA, frame


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Decimal):
        return float(value)
    return str(value) if isinstance(value, (datetime.date, pd.Timestamp)) else value


def ask(predictor: Predictor, *values: Any) -> list[int]:
    """Ids of the events of one request each user of which has one of the values."""
    users = [
        History.model_construct(id=str(i), events=[{"t": "2024-01-01 10:00:00", "e": plain(value)}])
        for i, value in enumerate(values)
    ]
    return (
        _encode(predictor, [PredictRequest.model_construct(users=users)]).columns["event"].tolist()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_alone_and_in_company(kind: str, tmp_path: Path) -> None:
    values, _, _, spellings = KINDS[kind]
    frame(kind, values * 2).to_parquet(tmp_path / "log.parquet")
    store = prepare(tmp_path / "log.parquet", tmp_path / "out", SCHEMA, split="time:1,0,0")
    predictor = Predictor.__new__(Predictor)  # no model is needed to read a request
    predictor.tokenizer = EventTokenizer.from_store(store, 9)
    together = ask(predictor, *values)
    assert UNKNOWN not in together
    assert [ask(predictor, value) for value in values] == [[i] for i in together]
    assert all(ask(predictor, spelling) == together[:1] for spelling in spellings)
    assert ask(predictor, *values, "something else") == [*together, UNKNOWN]


def test_an_id_beyond_the_precision_of_a_float_is_refused(tmp_path: Path) -> None:
    frame("", [2**53, 2**53 + 1]).to_parquet(tmp_path / "log.parquet")
    store = prepare(tmp_path / "log.parquet", tmp_path / "out", SCHEMA, split="time:1,0,0")
    predictor = Predictor.__new__(Predictor)
    predictor.tokenizer = EventTokenizer.from_store(store, 9)
    assert UNKNOWN not in ask(predictor, 2**53, 2**53 + 1)
    with pytest.raises(DataError, match="floating-point"):
        ask(predictor, float(2**53 + 2))


@pytest.mark.parametrize(
    "time", ["2024-01-01 10:00:00", "2024-01-01T10:00:00.5Z"], ids=["plain", "by the database"]
)
def test_each_user_has_their_own_answer_however_the_log_writes_its_users(
    time: str, tmp_path: Path
) -> None:
    """As labels of a log of whole numbers, -0 would come after -1, and 1.0 would be 1."""
    log = pd.DataFrame({"u": [1, 2, 3], "t": pd.Timestamp("2024-01-01"), "e": ["a", "b", "c"]})
    log.to_parquet(tmp_path / "log.parquet")
    store = prepare(tmp_path / "log.parquet", tmp_path / "out", SCHEMA, split="time:1,0,0")
    assert store.schema.label_rules["user"] == "integer"
    predictor = Predictor.__new__(Predictor)
    predictor.tokenizer = EventTokenizer.from_store(store, 9)
    events = {"-0": "a", "-1": "b", "1.0": "c", "1": "a"}
    users = [
        History.model_construct(id=name, events=[{"t": time, "e": e}]) for name, e in events.items()
    ]
    found = _encode(predictor, [PredictRequest.model_construct(users=users)])
    known = store.vocabulary["event"].encode(pa.array(events.values()))
    assert (
        found.users.to_pylist() == list(events)
        and found.columns["event"].tolist() == known.tolist()
    )


@pytest.mark.parametrize(
    ("orders", "together"),
    [(["0", "12"], True), (["0", "a"], False), (["1.0", "2"], False), (["9" * 16, "1"], False)],
)
def test_an_order_of_whole_numbers_as_text_does_not_part_requests(
    orders: list[str], together: bool
) -> None:
    schema = EventSchema(user="u", time="t", event="e", order="o")
    events = [{"t": "2024-05-01 08:10", "e": "x", "o": order} for order in orders]
    request = PredictRequest.model_validate({"users": [{"id": "7", "events": events}]})
    assert (key(request, schema) is not None) == together
