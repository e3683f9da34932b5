"""Users whose states the service holds: as good as their whole histories, bounded, refused where
they are unknown."""

# ruff: noqa: E402 - what follows a skip
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

for _library in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(
        _library, reason=f"{_library} is not installed; pip install -e '.[serve]' httpx"
    )

import httpx
from fastapi.testclient import TestClient

import behavegpt
from behavegpt.data.schema import EventSchema
from behavegpt.predictor import Predictor
from behavegpt.serving.app import make_app
from behavegpt.serving.requests import EventsRequest, ServeSettings, StateRequest, UserRequest
from behavegpt.serving.users import Users
from behavegpt.training.model_folder import save_model
from behavegpt.zero_shot import UniversalPredictor
from tests.serving.conftest import answered_until_sigterm
from tests.universal.test_state import SCHEMA, table

EVENT = {"when": "2024-06-01 08:10:00", "what": "thing 3", "where": "home", "kind": "kind 2"}


@pytest.fixture(scope="module")
def model() -> UniversalPredictor:
    fitted = behavegpt.load("universal").fit_tables(table(0), SCHEMA)
    assert isinstance(fitted, UniversalPredictor)
    return fitted


def serving(model: Any, **limits: Any) -> TestClient:
    return TestClient(
        make_app(model, ServeSettings(**{"wait_ms": 1, **limits})), raise_server_exceptions=False
    )


@pytest.fixture
def client(model: UniversalPredictor) -> Iterator[TestClient]:
    with serving(model, most_events=100, most_top_k=9) as client:
        yield client


def behaviors(answer: Any) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    return [
        (found["behavior"], found["probability"])
        for found in answer.json()["users"][0]["behaviors"]
    ]


def rows_of(seed: int, user: str) -> list[dict[str, Any]]:
    log = table(seed)
    found: list[dict[str, Any]] = log[log.who == user].drop(columns="who").to_dict("records")
    return found


def test_states_answer_as_whole_histories(client: TestClient) -> None:
    """A user of the log, and a new one whose events come one by one."""
    asked = {"top_k": 6, "prior_correction": 0.2}
    for user, history in (("p04", rows_of(0, "p04")), ("someone/new é", rows_of(1, "p01"))):
        for event in history if user != "p04" else ():
            answer = client.post(f"/v1/users/{user}/events", json={"events": [event]})
        if user != "p04":
            assert answer.json() == {
                "users": [{"id": user, "events": len(history)}],
                "unknown": {"event": 0, "location": 0, "behavior": 0},
                "rejected": {},
            }
        found = client.post(f"/v1/users/{user}/predict", json=asked)
        whole = client.post(
            "/v1/predict", json={"users": [{"id": user, "events": history}]} | asked
        )
        assert behaviors(found) == behaviors(whole)
    assert client.get("/health").json()["users"] == 2
    assert 'path="/v1/users/{id}/events",code="200"' in client.get("/metrics").text


def test_a_time_and_a_place_are_told_for_each_user() -> None:
    """By requests about states, and about whole histories, several clients' together."""
    timed = behavegpt.load("universal")
    assert isinstance(timed, UniversalPredictor)
    timed = timed.fit_tables(table(0), SCHEMA, given=["time", "location"])
    told = {"at": "2024-06-01 18:30", "location": "home"}
    with serving(timed) as client:
        facts = client.get("/v1/model").json()
        assert facts["given"] == ["time", "location"] and facts["thresholds"] is False
        history = {"id": "p04", "events": rows_of(0, "p04")}
        found = client.post("/v1/users/p04/predict", json=told)
        whole = client.post("/v1/predict", json={"users": [history | told]})
        assert behaviors(found) == behaviors(whole)
        other = client.post("/v1/users/p04/predict", json=told | {"at": "2024-06-02 06:30"})
        assert behaviors(other) != behaviors(found)
        both = {"users": [history | told, history | told | {"at": "2024-06-02 06:30"}]}
        users = client.post("/v1/predict", json=both).json()["users"]
        assert users[0]["behaviors"] != users[1]["behaviors"]
        strange = {"users": [history | told | {"location": "nowhere"}]}
        assert client.post("/v1/predict", json=strange).json()["unknown"]["location"] == 1
        for body, message in (
            ({"users": [history]}, "say which time is asked about"),
            ({"users": [history | {"at": "2024-06-01 18:30"}]}, "say which location"),
            ({"users": [history | told, history | {"at": told["at"]}]}, "no `location`"),
            ({"users": [history | told | {"at": "soon"}]}, "'soon' is not a time"),
        ):
            answer = client.post("/v1/predict", json=body)
            assert answer.status_code == 422 and message in answer.text
        answer = client.post("/v1/embed", json={"users": [history | {"at": "2024-06-01 18:30"}]})
        assert answer.status_code == 422 and "Extra inputs" in answer.text


def test_a_time_is_refused_where_nothing_is_given(client: TestClient) -> None:
    history = {"id": "p04", "events": rows_of(0, "p04"), "at": "2024-06-01 18:30"}
    answer = client.post("/v1/predict", json={"users": [history]})
    assert answer.status_code == 422 and "is given nothing of the event" in answer.text
    answer = client.post("/v1/users/p04/predict", json={"at": "2024-06-01 18:30"})
    assert answer.status_code == 422 and "is given nothing of the event" in answer.text


def test_many_clients_at_a_time(client: TestClient) -> None:
    histories = {f"new{i:02}": rows_of(2, f"p{i:02}") for i in range(12)}

    def send(user: str) -> list[tuple[str, float]]:
        for at in range(0, 25, 5):
            assert client.post(
                f"/v1/users/{user}/events", json={"events": histories[user][at : at + 5]}
            ).is_success
        return behaviors(client.post(f"/v1/users/{user}/predict", json={}))

    with ThreadPoolExecutor(6) as pool:
        found = dict(zip(histories, pool.map(send, histories), strict=True))
    for user, answer in found.items():
        again = client.post(
            "/v1/predict", json={"users": [{"id": user, "events": histories[user]}]}
        )
        labels, probabilities = zip(*behaviors(again), strict=True)
        assert [label for label, _ in answer] == list(labels)
        assert np.allclose([p for _, p in answer], probabilities, atol=1e-6)


REFUSED: dict[str, tuple[str, Any, int, str]] = {
    "unknown": (
        "nobody/predict",
        {},
        404,
        "no state of user 'nobody'; send their events to POST /v1/users/ID/events",
    ),
    "older": (
        "p00/events",
        {"events": [EVENT | {"when": "2023-01-01 00:00:00"}]},
        422,
        "comes after one at",
    ),
    "unreadable": ("p00/events", {"events": [EVENT, EVENT | {"when": "soon"}]}, 422, "time"),
    "another's": (
        "p00/events",
        {"events": [EVENT | {"who": "p01"}]},
        422,
        "events of 'p01' for the state",
    ),
    "no events": ("p00/events", {"events": []}, 422, "events: List should have at least 1 item"),
    "no list": ("p00/events", {}, 422, "events: Field required"),
    "too many": (
        "p00/events",
        {"events": [EVENT] * 101},
        422,
        "101 events; send the last 100 at most",
    ),
    "wide": (
        "p00/events",
        {"events": [{str(i): 1 for i in range(65)}]},
        422,
        "an object of 65 names",
    ),
    "another option": ("p00/events", {"events": [EVENT], "users": []}, 422, "users: Extra inputs"),
    "top_k": ("p00/predict", {"top_k": 10}, 422, "top_k = 10: this service allows 9 at most"),
    "top_k as text": ("p00/predict", {"top_k": "3"}, 422, "top_k"),
    "a list": ("p00/predict", [], 422, "the body"),
    "a long name": (f"{'x' * 1001}/predict", {}, 422, "a user's name of 1001 characters"),
    "no such path": ("p00/forget", {}, 404, "/v1/users/ID/events"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_refused_and_change_nothing(client: TestClient, name: str) -> None:
    path, body, code, message = REFUSED[name]
    before = behaviors(client.post("/v1/users/p00/predict", json={}))
    answer = client.post(f"/v1/users/{path}", json=body)
    assert answer.status_code == code, answer.text
    assert set(answer.json()) == {"error"} and message in answer.json()["error"]["message"]
    assert behaviors(client.post("/v1/users/p00/predict", json={})) == before


def test_the_least_recently_used_states_are_dropped(model: UniversalPredictor) -> None:
    with serving(model, state_bytes=1 << 16) as client:
        for number in range(40):
            assert client.post(f"/v1/users/n{number}/events", json={"events": [EVENT]}).is_success
        health = client.get("/health").json()
        assert 0 < health["users"] < 40 and health["state_bytes"] <= 1 << 16
        behaviors(client.post("/v1/users/n39/predict", json={}))
        for path, body in (("predict", {}), ("events", {"events": [EVENT]})):
            answer = client.post(f"/v1/users/n0/{path}", json=body)
            assert answer.status_code == 404 and "was dropped" in answer.json()["error"]["message"]
            assert answer.json()["error"]["type"] == "UnknownUser"
        answer = client.post("/v1/users/n0/events", json={"events": [EVENT], "new": True})
        assert answer.json()["users"] == [{"id": "n0", "events": 1}]
        behaviors(client.post("/v1/users/n0/predict", json={}))
        # of the log: counted again whenever it was dropped
        behaviors(client.post("/v1/users/p03/predict", json={}))
        large = [
            EVENT
            | {
                "what": f"thing {i % 20}",
                "kind": f"kind {i % 7}",
                "when": f"2024-06-{1 + i // 24:02} {i % 24:02}:00:00",
            }
            for i in range(600)
        ]
        answer = client.post("/v1/users/big/events", json={"events": large})
        assert (
            answer.status_code == 422
            and "this service holds 65536 in all" in answer.json()["error"]["message"]
        )


def test_the_command_keeps_states_when_it_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve universal LOG --save FOLDER`, events of a new and of a known user, SIGTERM; the folder
    knows them."""
    table(0).to_csv(tmp_path / "log.csv", index=False)
    words = [
        str(tmp_path / "log.csv"),
        "--user=who",
        "--time=when",
        "--event=what",
        "--location=where",
    ]
    words += ["--behavior=kind", "--save", str(tmp_path / "counted"), "wait_ms=1"]

    def ask(url: str) -> list[tuple[str, float]]:
        for user in ("someone", "p03"):
            assert httpx.post(f"{url}/v1/users/{user}/events", json={"events": [EVENT]}).is_success
        return behaviors(httpx.post(f"{url}/v1/users/someone/predict", json={}))

    told = answered_until_sigterm(["universal", *words], ask)
    printed = capsys.readouterr().err
    assert "is serving universal" in printed and "(tables and states)" in printed
    again = behavegpt.load(tmp_path / "counted")
    assert isinstance(again, UniversalPredictor) and len(again.log.users) == 31
    assert again.state("p03").events == 26 and again.state("p04").events == 25
    found = again.predict(again.state("someone"))
    assert list(zip(found.labels[0].tolist(), found.probabilities[0].tolist(), strict=True)) == told


TRAINED_EVENT = {"t": "2024-06-01 08:10:00", "e": "event3", "l": "location1", "b": "behavior2"}


def trained_rows(user: int) -> list[dict[str, str]]:
    """Events of a user in the labels of the trained model's log, more than its window holds."""
    rng = np.random.default_rng(user)
    return [
        {
            "t": f"2024-05-{1 + i:02} {user:02}:30:00",
            "e": f"event{rng.integers(13)}",
            "l": f"location{rng.integers(4)}",
            "b": f"behavior{rng.integers(5)}",
        }
        for i in range(25)
    ]


def test_a_trained_model_answers_as_of_whole_histories(predictor: Predictor) -> None:
    """The same paths, refusals and bounds as the universal model's."""
    with serving(predictor, state_bytes=1 << 16) as client:
        answer = client.post("/v1/users/a/predict", json={})
        assert (
            answer.status_code == 404
            and "no state of user 'a'" in answer.json()["error"]["message"]
        )
        histories = {f"u{user}": trained_rows(user) for user in range(6)}
        for at in range(0, 25, 5):
            for user, rows in histories.items():
                sent = client.post(f"/v1/users/{user}/events", json={"events": rows[at : at + 5]})
                assert sent.json()["users"] == [{"id": user, "events": at + 5}], sent.text
        for user, rows in histories.items():
            found = behaviors(client.post(f"/v1/users/{user}/predict", json={"top_k": 5}))
            whole = {"users": [{"id": user, "events": rows}], "top_k": 5}
            assert found == behaviors(client.post("/v1/predict", json=whole))
        older = {"events": [TRAINED_EVENT | {"t": "2023-01-01 00:00:00"}]}
        refused = client.post("/v1/users/u1/events", json=older)
        assert (
            refused.status_code == 422 and "comes after one" in refused.json()["error"]["message"]
        )
        for number in range(200):
            assert client.post(
                f"/v1/users/n{number}/events", json={"events": [TRAINED_EVENT]}
            ).is_success
        health = client.get("/health").json()
        assert 0 < health["users"] < 206 and health["state_bytes"] <= 1 << 16


def batch_of_requests() -> list[UserRequest]:
    """Of several users, some twice, in one batch: their events are read, and answers made,
    together."""
    rows = trained_rows(3)
    bad, narrow = rows[0] | {"t": "soon"}, [{k: v for k, v in r.items() if k != "b"} for r in rows]
    return [
        EventsRequest(events=rows[:9]).of("a"),
        EventsRequest(events=[*rows[:2], bad]).of("b"),
        StateRequest(top_k=5).of("a"),
        EventsRequest(events=rows[:20]).of("c/é"),
        StateRequest(top_k=2, prior_correction=0.5).of("c/é"),
        EventsRequest(events=rows[9:11]).of("a"),
        StateRequest(top_k=5).of("a"),
        StateRequest(top_k=5).of("nobody"),
        EventsRequest(events=narrow).of("d"),
        EventsRequest(events=rows[:4], new=True).of("a"),
        EventsRequest(events=[row | {"u": "e"} for row in rows]).of("e"),
        StateRequest(top_k=5).of("a"),
        StateRequest(top_k=5).of("d"),
        EventsRequest(events=rows[:1]).of("c/é"),
    ]


@pytest.mark.parametrize("kind", ["universal", "trained"])
def test_a_batch_answers_as_one_request_after_the_other(kind: str, predictor: Predictor) -> None:
    known: Any = predictor
    if kind == "universal":
        rows = [{"u": f"u{user}"} | row for user in range(9) for row in trained_rows(user)]
        columns = {"user": "u", "time": "t", "event": "e", "location": "l", "behavior": "b"}
        log = pd.DataFrame(rows)
        known = behavegpt.load("universal").fit_tables(log, EventSchema(**columns))  # type: ignore
    together = Users(known, ServeSettings()).answer_all(batch_of_requests())
    alone = Users(known, ServeSettings())
    failures = 0
    for got, request in zip(together, batch_of_requests(), strict=True):
        expected = alone.answer_all([request])[0]
        if isinstance(expected, Exception):
            assert type(got) is type(expected) and str(got) == str(expected)
            failures += 1
            continue
        assert isinstance(got, dict)
        behaviors, exactly = (x["users"][0].pop("behaviors", []) for x in (got, expected))
        assert got == expected
        assert [b["behavior"] for b in behaviors] == [b["behavior"] for b in exactly]
        chances = [[b["probability"] for b in part] for part in (behaviors, exactly)]
        assert np.allclose(*chances, atol=1e-6)
    assert failures == 3, "the unreadable time, the unknown user, and an event from before"


def test_the_command_keeps_the_states_of_a_trained_model(
    predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve MODEL LOG --save FOLDER`, then `serve MODEL FOLDER`."""
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    rows = [{"u": "7"} | row for row in trained_rows(7)]
    pd.DataFrame(rows).to_csv(tmp_path / "log.csv", index=False)

    def ask(url: str, send: bool) -> list[tuple[str, float]]:
        if send:
            sent = httpx.post(f"{url}/v1/users/7/events", json={"events": [TRAINED_EVENT]})
            assert sent.json()["users"] == [{"id": "7", "events": 26}], sent.text
        return behaviors(httpx.post(f"{url}/v1/users/7/predict", json={}))

    told = []
    for source in ("log.csv", "kept"):
        words = [str(tmp_path / "model"), str(tmp_path / source), "wait_ms=1"]
        words += ["--save", str(tmp_path / "kept")]
        told.append(answered_until_sigterm(words, partial(ask, send=source == "log.csv")))
        assert "(states)" in capsys.readouterr().err
    assert told[0] == told[1]
    expected = predictor.predict([*rows, {"u": "7"} | TRAINED_EVENT])
    assert np.allclose([p for _, p in told[1]], expected.probabilities[0], atol=1e-6)


def test_the_other_endpoints_take_the_universal_model(
    client: TestClient, model: UniversalPredictor
) -> None:
    asked = {"users": [{"id": "p07", "events": rows_of(0, "p07")}]}
    vector = client.post("/v1/embed", json=asked | {"pool": ["last"]}).json()["users"][0]["vector"]
    assert np.allclose(vector, model.embed().vectors[7], atol=1e-6)
    future = client.post("/v1/generate", json=asked | {"steps": 5, "seed": 3}).json()["users"][0]
    expected = model.generate(steps=5, seed=3).to_table().filter(np.arange(150) // 5 == 7)
    assert [event["kind"] for event in future["events"]] == expected["kind"].to_pylist()
    told = client.get("/v1/model").json()
    assert told["looks_back"] is None and told["behaviors"] == 7 and told["width"] == 32
    assert "/v1/users/{id}/events" in client.get("/openapi.json").json()["paths"]
    assert "POST /v1/users/{id}/predict" in client.get("/docs").text
