"""What strangers may send to the service: bodies, headers and connections made to hurt, each
refused at little cost."""

# ruff: noqa: E402 - what follows a skip
from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for _library in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(
        _library, reason=f"{_library} is not installed: the extra `serve`, and httpx"
    )

import httpx

from behavegpt.errors import BehaveGPTError
from behavegpt.predictor import Predictor
from behavegpt.serving import bodies
from behavegpt.serving.answers import answer_all
from behavegpt.serving.app import make_app
from behavegpt.serving.bodies import Bodies
from behavegpt.serving.errors import Late, Refused, over_http
from behavegpt.serving.requests import ServeSettings
from tests.conftest import ROOT

JSON = {"content-type": "application/json"}
EVENT = {"t": "2020-01-02 10:00:00", "e": "event1", "l": "location1"}
GOOD = {"users": [{"id": "a", "events": [EVENT]}]}


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    with TestClient(
        make_app(predictor, ServeSettings(wait_ms=0)), raise_server_exceptions=False
    ) as client:
        yield client


def users(*events: Any, **more: Any) -> bytes:
    return json.dumps({"users": [{"events": list(events)}], **more}).encode()


MB = 1 << 20
BODIES: dict[str, tuple[bytes, set[int]]] = {
    "millions of numbers for users": (b'{"users":[' + b"1," * (39 * MB // 10) + b"1]}", {413}),
    "a few numbers for users": (b'{"users":[' + b"1," * 400_000 + b"1]}", {422}),
    "numbers within the limit": (b'{"users":[' + b"1," * 200 + b"1]}", {422}),
    "empty objects for users": (b'{"users":[' + b"{}," * 250_000 + b"{}]}", {422}),
    "numbers for events": (b'{"users":[{"events":[' + b"1," * 400_000 + b"1]}]}", {422}),
    "numbers for events of each user": (
        b'{"users":[' + b",".join([b'{"events":[' + b"1," * 1900 + b"1]}"] * 256) + b"]}",
        {422},
    ),
    "events of wrong values": (users(*[{f"c{n}": [n] for n in range(60)}] * 2000), {422}),
    "an event of many names": (users({f"c{n}": n for n in range(200_000)}), {422}),
    "a user of many "
    "names": (json.dumps({"users": [{f"c{n}": n for n in range(200_000)}]}).encode(), {422}),
    "a request of many names": (json.dumps({f"c{n}": n for n in range(200_000)}).encode(), {422}),
    "a pool of many parts": (users(EVENT, pool=["last"] * 300_000), {422}),
    "deep lists": (b'{"users":' + b"[" * 500_000, {400, 413}),
    "deep objects": (b'{"users":' * 100_000 + b"1" + b"}" * 100_000, {400}),
    "a deep label": (users({"e": json.loads("[" * 150 + "]" * 150)}), {422}),
    "a label of megabytes": (users({**EVENT, "e": "x" * 7 * MB}), {422}),
    "an id of "
    "megabytes": (json.dumps({"users": [{"id": "x" * 7 * MB, "events": [EVENT]}]}).encode(), {422}),
    "a number of many "
    "digits": (users({**EVENT, "e": 1}).replace(b'"e": 1', b'"e": ' + b"9" * 100_000), {400, 422}),
    "an id of many "
    "digits": (b'{"users":[{"id":' + b"9" * 5000 + b',"events":[{"e":"x"}]}]}', {400, 422}),
    "a number beyond "
    "floats": (users({**EVENT, "e": 1}).replace(b'"e": 1', b'"e": 1e999'), {400, 422}),
    "NaN": (users({**EVENT, "e": 1}).replace(b'"e": 1', b'"e": NaN'), {400}),
    "Infinity": (b'{"users": Infinity}', {400}),
    "bad UTF-8": (b'{"users": "\xff\xfe"}', {400}),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), {400}),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), {400}),
    "null bytes": (b"\0" * 1000, {400}),
    "nothing": (b"", {400}),
    "two bodies": (json.dumps(GOOD).encode() * 2, {400}),
    "a list": (b"[]", {422}),
    "a string": (b'"users"', {422}),
    "null": (b"null", {422}),
    "other users in the events": (users({**EVENT, "u": "a"}, {**EVENT, "u": "b"}), {422}),
    "another user in the events": (
        json.dumps({"users": [{"id": "a", "events": [{**EVENT, "u": "b"}]}]}).encode(),
        {422},
    ),
    "top_k as text": (users(EVENT, top_k="3"), {422}),
    "top_k of a half": (users(EVENT, top_k=2.5), {422}),
    "top_k null": (users(EVENT, top_k=None), {422}),
    "top_k true": (users(EVENT, top_k=True), {422}),
    "top_k beyond the limit": (users(EVENT, top_k=1001), {422}),
    "top_k huge": (users(EVENT, top_k=10**300), {400, 422}),
    "negative prior_correction": (users(EVENT, prior_correction=-1), {422}),
}  # fmt: skip


def refusal(answer: Any) -> str:
    """The message of an answer that must be a refusal in the documented shape."""
    assert answer.headers["content-type"] == "application/json" and len(answer.content) < 3000
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"} and set(error) == {"type", "message"}
    assert not re.search(r"(?<![\w-])--[a-z]", error["message"]), (
        "HTTP has no options of the command line"
    )
    return str(error["message"])


@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies_are_refused_at_little_cost(client: Any, name: str) -> None:
    body, codes = BODIES[name]
    began = time.process_time()
    answer = client.post(
        "/v1/predict" if "pool" not in name else "/v1/embed", content=body, headers=JSON
    )
    seconds = time.process_time() - began
    assert answer.status_code in codes, answer.text[:500]
    refusal(answer)
    assert seconds < 2, "a refusal costs no more than reading the body"
    assert client.post("/v1/predict", json=GOOD).status_code == 200


@pytest.mark.parametrize(("events", "apart"), [(1, False), (600, True), (1900, True)])
def test_large_bodies_are_parsed_off_the_event_loop(
    client: Any, events: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a large body does not stop the others' answers; small ones are done at once."""
    on_the_loop, parsed = [], bodies.parse

    def parse(*arguments: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_the_loop.append(False)
        else:
            on_the_loop.append(True)
        return parsed(*arguments)

    monkeypatch.setattr(bodies, "parse", parse)
    body = users(*[EVENT | {"e": "x" * 100}] * events)
    assert client.post("/v1/predict", content=body, headers=JSON).is_success
    assert on_the_loop == [not apart]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1001},
        {"samples": 1001, "steps": 1},
        {"steps": 500, "samples": 41},
        {"steps": "3"},
        {"steps": 2.5},
        {"temperature": 1e-320},
        {"temperature": -1},
        {"temperature": "1"},
        {"top_p": 1e-300},
        {"top_p": 0},
        {"until": "99999999999999999 weeks"},
        {"until": "{a: [1, 2]}"},
        {"until": "&a [*a]"},
        {"until": "!!python/object:x"},
        {"until": 3},
        {"until": "9" * 100_000},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"time": "never"},
        {"place": ["head"]},
        {"keep": 3},
    ],
    ids=str,
)
def test_options_of_a_generation(client: Any, options: dict[str, Any]) -> None:
    answer = client.post("/v1/generate", json=GOOD | options)
    assert answer.status_code == 422, answer.text
    assert next(iter(options)) in refusal(answer)


HEADERS: dict[str, tuple[dict[str, str], bytes, int]] = {
    "no content type": ({}, json.dumps(GOOD).encode(), 200),
    "a charset": (
        {"content-type": "application/json; charset=UTF-8"},
        json.dumps(GOOD).encode(),
        200,
    ),
    "a kind of JSON": (
        {"content-type": "application/vnd.api+json"},
        json.dumps(GOOD).encode(),
        200,
    ),
    "a form": (
        {"content-type": "application/x-www-form-urlencoded"},
        json.dumps(GOOD).encode(),
        415,
    ),
    "text": ({"content-type": "text/plain"}, json.dumps(GOOD).encode(), 415),
    "another charset": (
        {"content-type": "application/json; charset=latin-1"},
        json.dumps(GOOD).encode(),
        415,
    ),
    "gzip": (JSON | {"content-encoding": "gzip"}, gzip.compress(json.dumps(GOOD).encode()), 415),
    "gzip, unsaid": (JSON, gzip.compress(json.dumps(GOOD).encode()), 400),
    "a bomb": (JSON | {"content-encoding": "gzip"}, gzip.compress(b" " * 50 * MB), 415),
    "brotli": (JSON | {"content-encoding": "br"}, b"x", 415),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(client: Any, name: str) -> None:
    headers, body, code = HEADERS[name]
    answer = client.post("/v1/predict", content=body, headers=headers)
    assert answer.status_code == code, answer.text
    if code != 200:
        refusal(answer)


@pytest.mark.parametrize(
    "method,path,code",
    [
        ("GET", "/v1/predict", 405),
        ("PUT", "/v1/predict", 405),
        ("DELETE", "/health", 405),
        ("POST", "/v1/predict/", 404),
        ("POST", "/v2/predict", 404),
        ("GET", "/../../etc/passwd", 404),
        ("POST", "/docs", 405),
    ],
)
def test_other_paths_and_methods(client: Any, method: str, path: str, code: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == code and "/v1/predict" in refusal(answer)
    assert code != 405 or answer.headers["allow"]


def test_options_behind_a_question_mark_are_refused_not_ignored(client: Any) -> None:
    for verb in ("predict", "embed", "generate"):
        answer = client.post(f"/v1/{verb}?top_k=1", json=GOOD)
        assert answer.status_code == 400 and "write them into the body" in refusal(answer)


def test_missing_columns_and_heads_are_told_in_terms_of_http(client: Any) -> None:
    for event in (
        {"T": EVENT["t"], "e": "x", "l": "y"},
        {"t": EVENT["t"], "l": "y"},
        {"t": EVENT["t"], "e": "x"},
    ):
        assert "GET /v1/model" in refusal(
            client.post("/v1/predict", json={"users": [{"events": [event]}]})
        )
    for day in ("02/01/2024", "31/31/2024", 10**17):  # the command line would name --time-format
        dates = [{**EVENT, "t": day}]
        assert "GET /v1/model" in refusal(
            client.post("/v1/predict", json={"users": [{"events": dates}]})
        )


@pytest.mark.parametrize(
    "message,kept",
    [
        ("no column 't'. Name the right one with --time COLUMN.", "no column 't'."),
        ("train with heads, or give the data: --data DIR.", "train with heads."),
        ("take --scale standard", "take."),
        ("all is well -- or not.", "all is well -- or not."),
    ],
)
def test_hints_of_the_command_line_are_left_out(message: str, kept: str) -> None:
    assert over_http(message).startswith(kept) and "--data" not in over_http(message)


def test_the_page_needs_no_other_server(client: Any) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text and "<script" not in page.text
    assert all(name in page.text for name in ("/v1/generate", "temperature", "most_events"))
    schema = client.get("/openapi.json").json()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert {"PredictRequest", "History"} <= named <= set(schema["components"]["schemas"])


def test_every_limit_is_documented() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for name, field in ServeSettings.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}`")), None)
        assert row is not None, name
        shown = "8 MiB" if name == "most_bytes" else f"{field.default:,}".removesuffix(".0")
        assert f"| {shown} |" in row, row


def test_large_bodies_hold_a_bounded_memory(predictor: Predictor) -> None:
    bodies = Bodies(ServeSettings(most_bytes=1 << 20), predictor.tokenizer.event_schema)
    held = [bodies.holder() for _ in range(9)]
    for holder in held[:8]:
        holder.hold(1 << 20)
    with pytest.raises(Refused) as error, held[8]:
        held[8].hold(1)
    assert error.value.code == 503
    with held[0]:
        pass
    held[8].hold(1)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def is_closed(one: socket.socket) -> bool:
    """Whether the service has ended the connection; waits as long as the socket's time-out says."""
    try:
        return one.recv(1) == b""
    except (BlockingIOError, TimeoutError):
        return False
    except ConnectionError:
        return True


HEAD = (
    b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
    b"1000\r\n\r\n"
)


def test_slow_and_idle_connections(running: Any) -> None:
    """A body that does not come, a head that does not end, silence, and a head that drips."""
    with running(body_timeout_s=0.5, idle_timeout_s=1.0, wait_ms=0) as port:
        slow, half, silent, drip = (connect(port) for _ in range(4))
        slow.sendall(HEAD + b"{")
        half.sendall(HEAD[:30])
        answer = b"".join(iter(lambda: slow.recv(10_000), b""))  # head and body may come apart
        assert answer.startswith(b"HTTP/1.1 408") and b'{"error":{"type":"Timeout"' in answer
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 10:
                drip.sendall(b"G")
                time.sleep(0.05)
        assert is_closed(half) and is_closed(silent)
        # one that goes on asking is kept
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(8):
                assert client.post("/v1/predict", json=GOOD).status_code == 200
                time.sleep(0.3)


def test_too_many_connections(running: Any) -> None:
    """Those that ask nothing are closed; who asks is answered."""
    with running(most_connections=20, idle_timeout_s=60, wait_ms=0) as port:
        idle = [connect(port) for _ in range(100)]
        time.sleep(1.5)
        assert httpx.post(f"http://127.0.0.1:{port}/v1/predict", json=GOOD).status_code == 200
        for one in idle:
            one.setblocking(False)
        assert sum(map(is_closed, idle)) >= 80


def test_broken_http_is_told_in_the_same_shape(running: Any) -> None:
    with running() as port:
        for text in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET /\r\n\r\n",
            b"no\r\n\r\n",
        ):
            with connect(port) as raw:
                raw.sendall(text)
                answer = b"".join(iter(lambda: raw.recv(1000), b""))
            assert (
                answer.startswith(b"HTTP/1.1 400") and b'"error": {"type": "BadRequest"' in answer
            )


def stoppable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record how the work of each batch ended."""
    ends: list[str] = []

    def recorded(*arguments: Any) -> Any:
        try:
            answers = answer_all(*arguments)
        except Late:
            ends.append("stopped")
            raise
        ends.append(
            "failed" if any(isinstance(answer, BehaveGPTError) for answer in answers) else "done"
        )
        return answers

    monkeypatch.setattr("behavegpt.serving.app.answer_all", recorded)
    return ends


def wait_for(ends: list[str], number: int) -> None:
    until = time.monotonic() + 20
    while len(ends) < number and time.monotonic() < until:
        time.sleep(0.02)


LONG = GOOD | {"steps": 20_000}


def test_a_generation_that_timed_out_stops_and_holds_up_nobody(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = stoppable(monkeypatch)
    with running(timeout_s=1.0, most_steps=20_000, wait_ms=0) as port:
        url = f"http://127.0.0.1:{port}"
        codes: list[int] = []
        asking = threading.Thread(
            target=lambda: codes.append(httpx.post(f"{url}/v1/generate", json=LONG).status_code)
        )
        asking.start()
        time.sleep(0.3)
        assert httpx.post(f"{url}/v1/predict", json=GOOD, timeout=0.7).status_code == 200, (
            "in the other lane"
        )
        asking.join()
        wait_for(ends, 2)
        assert codes == [504] and ends == ["done", "stopped"]


def test_the_work_of_a_client_that_has_gone_stops(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = stoppable(monkeypatch)
    body = json.dumps(LONG).encode()
    with running(most_steps=20_000, wait_ms=0) as port:
        gone = connect(port)
        gone.sendall(
            HEAD.replace(b"predict", b"generate").replace(b"1000", b"%d" % len(body)) + body
        )
        time.sleep(0.5)
        gone.close()
        wait_for(ends, 1)
        assert ends == ["stopped"]


def test_the_command_refuses_what_cannot_be(
    predictor: Predictor, tmp_path: Path, capsys: Any
) -> None:
    from behavegpt.cli import main
    from behavegpt.training.model_folder import save_model

    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    taken = socket.create_server(("127.0.0.1", 0))
    for options, text in [
        (["--port", "70000"], "--port 70000"),
        (["--port", str(taken.getsockname()[1])], "choose another"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--threads", "0"], "--threads 0"),
        (["timeout_s=.nan"], "timeout_s"),
        (["wait_ms=.inf"], "wait_ms"),
        (["most_users=0"], "most_users"),
    ]:
        assert main(["serve", str(tmp_path / "model"), *options]) == 2
        assert text in capsys.readouterr().err
