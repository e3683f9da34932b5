"""The service: the Predictor's answers, batches that change nothing, limits, errors, shutdown."""

# ruff: noqa: E402 - what follows a skip
from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

for _library in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(_library, reason=f"{_library} is not installed; pip install httpx")

import httpx
import uvicorn

from behavegpt.predictor import Predictor
from behavegpt.serving import app as module
from behavegpt.serving.answers import answer_all, key
from behavegpt.serving.app import make_app
from behavegpt.serving.batcher import Batcher, Busy
from behavegpt.serving.requests import PredictRequest, ServeSettings

HEADER = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    with TestClient(make_app(predictor, LIMITS), raise_server_exceptions=False) as client:
        yield client


LIMITS = ServeSettings(
    most_users=40, most_events=100, most_bytes=100_000, most_generated=200, wait_ms=20
)


def history(seed: int, events: int = 12, **changed: Any) -> list[dict[str, Any]]:
    """Rows with the columns of `random_store`: t, e, l; some labels are unknown to the model."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 40 * 86400, events)) + np.datetime64("2020-01-01", "s").astype(
        int
    )
    return [
        {
            "t": str(np.datetime64(int(t), "s")),
            "e": f"event{rng.integers(14)}",
            "l": f"location{rng.integers(4)}",
        }
        | changed
        for t in times
    ]


def users(seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": f"u{seed}", "events": history(seed, 3 + seed % 20)} for seed in seeds]


def as_log(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for the Predictor."""
    return [row | {"u": user["id"]} for user in asked for row in user["events"]]


def test_predictions_are_the_predictors(client: Any, predictor: Predictor) -> None:
    asked = users([3, 1, 7])
    answer = client.post("/v1/predict", json={"users": asked, "top_k": 4, "prior_correction": 0.3})
    assert answer.status_code == 200
    expected = predictor.predict(as_log(asked), 4, prior_correction=0.3)
    place = {user: i for i, user in enumerate(expected.users.to_pylist())}
    for user in answer.json()["users"]:
        i = place[user["id"]]
        assert [b["behavior"] for b in user["behaviors"]] == expected.labels[i].tolist()
        assert np.allclose(
            [b["probability"] for b in user["behaviors"]], expected.probabilities[i], atol=1e-6
        )
    assert [user["id"] for user in answer.json()["users"]] == ["u3", "u1", "u7"]
    assert answer.json()["unknown"] == expected.unknown and answer.json()["rejected"] == {}


def test_one_user_gets_the_predictors_bits(client: Any, predictor: Predictor) -> None:
    asked = users([5])
    answer = client.post("/v1/predict", json={"users": asked}).json()["users"][0]["behaviors"]
    assert [b["probability"] for b in answer] == predictor.predict(as_log(asked)).probabilities[
        0
    ].tolist()
    vector = client.post("/v1/embed", json={"users": asked, "pool": ["last", "decayed"]}).json()[
        "users"
    ][0]["vector"]
    assert vector == predictor.embed(as_log(asked), ["last", "decayed"]).vectors[0].tolist()


def test_futures_are_the_predictors(client: Any, predictor: Predictor) -> None:
    asked = users([2, 9])
    options = {"steps": 5, "samples": 2, "seed": 3, "top_p": 0.9}
    answer = client.post("/v1/generate", json={"users": asked} | options)
    assert answer.status_code == 200, answer.text
    expected = predictor.generate(as_log(asked), **options).to_table().to_pylist()
    got = [row | {"u": user["id"]} for user in answer.json()["users"] for row in user["events"]]
    assert got == [row | {"t": row["t"].isoformat()} for row in expected]


def test_requests_of_many_clients_are_answered_together_and_right(
    client: Any, predictor: Predictor
) -> None:
    """Some are alone: other options, integers, numbers as text; one is wrong and spoils no
    other."""
    bodies = [{"users": users([n]), "top_k": 3} for n in range(24)]
    bodies[3]["top_k"] = 2
    bodies[5]["users"][0]["events"] = history(5, e=7)
    bodies[6]["users"][0]["events"] = history(6, e="7.0")
    bodies[7]["users"][0]["events"] = [*history(1), *history(2, e=2**80)]
    bodies[8]["users"][0]["events"] = history(8, t="never")
    alone = [answer_all(predictor, [PredictRequest.model_validate(body)])[0] for body in bodies]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda body: client.post("/v1/predict", json=body), bodies))
    assert [a.status_code for a in answers] == [422 if n == 8 else 200 for n in range(24)]
    for n, answer in enumerate(answers):
        if n != 8:
            same(answer.json(), alone[n])
    text = client.get("/metrics").text
    counts = {
        line.split(" ")[0]: float(line.split(" ")[1])
        for line in text.splitlines()
        if line[0] != "#"
    }
    assert counts['behavegpt_requests_total{path="/v1/predict",code="422"}'] == 1
    # batches of several users
    assert counts["behavegpt_batch_users_count"] < counts["behavegpt_batch_users_sum"]
    assert counts["behavegpt_waiting"] == 0


def same(got: Any, expected: Any) -> None:
    """Equal, numbers up to rounding: other rows in a batch may change a float's last bits."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            same(got[name], expected[name])
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for one, two in zip(got, expected, strict=True):
            same(one, two)
    elif isinstance(expected, float):
        assert abs(got - expected) <= 1e-6
    else:
        assert got == expected


def test_what_depends_on_other_rows_is_answered_alone(predictor: Predictor) -> None:
    schema = predictor.tokenizer.event_schema
    changes: dict[str, dict[str, Any]] = {
        "plain": {}, "other": {"e": "x"}, "integers": {"e": 3}, "floats": {"e": 3.0},
        "text": {"e": "3.0"}, "epoch": {"t": 1_600_000_000}, "epoch as text": {"t": "1600000000"},
        "null": {"l": None}, "more": {"z": "1"},
    }  # fmt: skip
    keys = {}
    for name, changed in changes.items():
        body = {"users": [{"events": history(1, **changed)}]}
        keys[name] = key(PredictRequest.model_validate(body), schema)
    assert keys["plain"] == keys["other"] == keys["more"] is not None
    assert keys["integers"] not in (None, keys["plain"]) and keys["null"] not in (
        None,
        keys["plain"],
    )
    assert all(keys[name] is None for name in ("floats", "text", "epoch", "epoch as text"))


BAD: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{", 400, "not JSON"),
    "no users": ({"users": []}, 422, "users"),
    "no events": ({"users": [{"events": []}]}, 422, "events"),
    "unknown setting": ({"users": users([1]), "topk": 3}, 422, "topk"),
    "a list as label": (
        {"users": [{"events": [{"t": "2020-01-01", "e": [1], "l": "x"}]}]},
        422,
        "events",
    ),
    "no time column": ({"users": [{"events": [{"e": "a", "l": "b"}]}]}, 422, "no column 't'"),
    "no usable time": (
        {"users": [{"id": "x", "events": history(1, t="never")}]},
        422,
        "time cannot be read",
    ),
    "one of two": (
        {"users": [*users([1]), {"id": "x", "events": history(1, t="never")}]},
        422,
        "user 'x'",
    ),
    "half a character": (
        b'{"users": [{"events": [{"t": "2020-01-01 10:00:00", "e": "\\ud800", "l": "x"}]}]}',
        400,
        "JSON",
    ),
    "too many users": ({"users": users(range(41))}, 422, "at most 40"),
    "too many events": ({"users": [{"events": history(1, 101)}]}, 422, "the last 100"),
    "a long label": ({"users": [{"events": history(1, e="x" * 1001)}]}, 422, "1000"),
    "too long": (
        {"users": [{"events": history(1, 90, e="x" * 990)} for _ in range(2)]},
        413,
        "100000 bytes",
    ),
    "top_k 0": ({"users": users([1]), "top_k": 0}, 422, "top_k"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(client: Any, name: str) -> None:
    body, code, text = BAD[name]
    sent = {"content": body, "headers": HEADER} if isinstance(body, bytes) else {"json": body}
    answer = client.post("/v1/predict", **sent)
    assert answer.status_code == code, answer.text
    assert text in answer.json()["error"]["message"] and len(answer.text) < 2000


def test_other_endpoints_refuse_too(client: Any) -> None:
    for path, options, text in [
        ("generate", {"steps": 201}, "201 events to draw"),
        ("generate", {"until": "soon"}, "until"),
        ("generate", {"time": "never"}, "time"),
        ("embed", {"pool": ["first"]}, "pool"),
        ("embed", {"pool": []}, "pool"),
        ("embed", {"pool": ["last", "last"]}, "twice"),
    ]:
        answer = client.post(f"/v1/{path}", json={"users": users([1])} | options)
        assert answer.status_code == 422 and text in answer.json()["error"]["message"], answer.text
    assert client.get("/v1/predict").status_code == 405
    assert client.get("/nothing").status_code == 404
    idle = {"status": "ok", "waiting": 0, "users": 0, "state_bytes": 0}
    assert client.get("/health").json() == idle
    assert client.get("/v1/model").json()["columns"] == {
        "event": "e",
        "location": "l",
        "behavior": "b",
        "time": "t",
    }


def test_a_body_without_a_length_is_cut_off(client: Any) -> None:
    sent = []

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            sent.append(1)
            yield b" " * 10_000

    assert client.post("/v1/predict", content=chunks(), headers=HEADER).status_code == 413


def serving(
    predictor: Predictor, settings: ServeSettings
) -> tuple[uvicorn.Server, threading.Thread, str]:
    """The service on a free port of this machine, in a thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(
        make_app(predictor, settings), port=port, log_level="error", timeout_graceful_shutdown=20
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return server, thread, f"http://127.0.0.1:{port}"


def slow_answers(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    def slowly(predictor: Predictor, requests: Sequence[Any], interrupt: Any) -> list[Any]:
        time.sleep(seconds)
        return answer_all(predictor, requests)

    monkeypatch.setattr(module, "answer_all", slowly)


def test_too_slow_too_many_and_shutdown(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waits is answered though the service is told to stop meanwhile."""
    slow_answers(monkeypatch, 0.5)
    server, thread, url = serving(
        predictor, ServeSettings(timeout_s=0.2, most_waiting=1, wait_ms=0)
    )
    assert httpx.post(f"{url}/v1/predict", json={"users": users([1])}).status_code == 504
    with ThreadPoolExecutor(6) as pool:
        codes = list(
            pool.map(
                lambda n: httpx.post(f"{url}/v1/predict", json={"users": users([n])}).status_code,
                range(6),
            )
        )
    assert set(codes) == {503, 504}
    server.should_exit = True
    thread.join()

    slow_answers(monkeypatch, 2.0)
    server, thread, url = serving(predictor, ServeSettings(wait_ms=0))
    with ThreadPoolExecutor(3) as pool, httpx.Client(timeout=60) as client:
        answers = [
            pool.submit(client.post, f"{url}/v1/predict", json={"users": users([n])})
            for n in range(3)
        ]
        until = time.monotonic() + 20
        while len(server.server_state.tasks) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        server.handle_exit(signal.SIGTERM, None)
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]
    thread.join(timeout=20)
    assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_lone_client_is_not_kept_waiting() -> None:
    sizes: list[int] = []

    def work(payloads: Sequence[int]) -> list[int]:
        sizes.append(len(payloads))
        return list(payloads)

    batcher = Batcher(work, most=9, wait=30.0, most_waiting=10)
    for number in range(3):
        assert batcher.submit("a", 1, number).result(timeout=10) == number
    assert sizes == [1, 1, 1]
    batcher.close()


def test_batches() -> None:
    """Same keys together, up to the size; a None alone; cancelled ones left out; a crash reaches
    its batch only."""
    seen: list[list[int]] = []
    go = threading.Event()

    def work(payloads: Sequence[int]) -> list[int]:
        go.wait()
        seen.append(list(payloads))
        if 99 in payloads:
            raise ZeroDivisionError
        return [payload * 2 for payload in payloads]

    batcher = Batcher(work, most=3, wait=0.0, most_waiting=10)
    first = batcher.submit("a", 1, 0)
    time.sleep(0.1)
    asked = [
        batcher.submit(k, 1, n)
        for n, k in [(1, "a"), (2, "b"), (3, "a"), (4, None), (5, None), (6, "a"), (7, "a")]
    ]
    bad = batcher.submit("c", 5, 99)
    asked[1].cancel()
    for _ in range(2):
        batcher.submit("d", 1, 8)
    with pytest.raises(Busy):
        batcher.submit("d", 1, 8)
    go.set()
    batcher.close()
    assert first.result() == 0
    assert [f.result() for n, f in enumerate(asked) if n != 1] == [2, 6, 8, 10, 12, 14]
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert seen == [[0], [1, 3], [4], [5], [6, 7], [99], [8, 8]]
    with pytest.raises(Busy):
        batcher.submit("a", 1, 1)


FILTERS: dict[str, dict[str, Any]] = {
    "among": {"among": ["behavior1", "behavior3"]},
    "exclude": {"exclude": ["behavior1"], "prior_correction": 0.5},
    "exclude seen": {"exclude_seen": True},
    "groups": {"per_group": {"behavior1": "a", "behavior2": "a", "behavior3": "b"}, "top_k": 1},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_filters_are_those_of_the_predictor(
    client: Any, predictor: Predictor, filters: dict[str, Any]
) -> None:
    rows = [row | {"b": f"behavior{number % 3}"} for number, row in enumerate(history(3))]
    answer = client.post("/v1/predict", json={"users": [{"id": "7", "events": rows}], **filters})
    assert answer.status_code == 200, answer.text
    frame = [row | {"u": "7"} for row in rows]
    found = predictor.predict(frame, **filters).to_table().drop_columns(["user", "rank"])
    told = answer.json()["users"][0]["behaviors"]
    assert [row["behavior"] for row in told] == found["behavior"].to_pylist()
    assert [row.get("group") for row in told] == (
        found["group"].to_pylist() if "per_group" in filters else [None] * len(told)
    )
    assert np.allclose([row["probability"] for row in told], found["probability"], atol=1e-6)

    client.post("/v1/users/7/events", json={"events": rows, "new": True})
    of_state = client.post("/v1/users/7/predict", json=filters)
    if "exclude_seen" in filters:
        assert of_state.status_code == 422 and "last events alone" in of_state.text
    else:
        assert [row["behavior"] for row in of_state.json()["users"][0]["behaviors"]] == [
            row["behavior"] for row in told
        ]


def test_a_filter_of_unknown_labels_is_one_error(client: Any) -> None:
    users = [{"id": "7", "events": history(3)}]
    for filters, words in (
        ({"exclude": ["behavor1"]}, "Did you mean 'behavior1'"),
        ({"exclude": "behavior1"}, "write a list of labels"),
        ({"per_group": {"behavior1": None}}, "per_group"),
    ):
        answer = client.post("/v1/predict", json={"users": users, **filters})
        assert answer.status_code == 422 and words in answer.json()["error"]["message"]


def test_an_explanation_is_that_of_the_predictor(client: Any, predictor: Predictor) -> None:
    rows = [row | {"b": f"behavior{number % 3}"} for number, row in enumerate(history(3))]
    users = [{"id": "7", "events": rows}, {"id": "8", "events": rows[:5]}]
    body = {"users": users, "last": 4, "exclude": ["behavior0"]}
    answer = client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    frame = [row | {"u": user["id"]} for user in users for row in user["events"]]
    found = predictor.explain(frame, 4, exclude=["behavior0"])
    told = answer.json()["users"]
    assert [user["because"] for user in told] == found.because
    assert [user["behavior"] for user in told] == found.labels.tolist()
    effects = [event["effect"] for event in told[0]["events"]]
    expected = np.sort(found.effects[0][found.effects[0] > 0])[::-1][:3]
    assert np.allclose(effects, expected, atol=1e-4)
    assert client.post("/v1/explain", json=body | {"last": 65}).status_code == 422
