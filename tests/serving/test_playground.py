"""The playground: a page of the service itself, tried in a browser."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest

for _library in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(_library, reason=f"{_library} is not installed; pip install httpx")

import uvicorn  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

import behavegpt  # noqa: E402
from behavegpt.demo import online_retail  # noqa: E402
from behavegpt.predictor import Predictor  # noqa: E402
from behavegpt.serving.app import make_app  # noqa: E402
from behavegpt.serving.pages import frequent_labels  # noqa: E402
from behavegpt.serving.requests import ServeSettings  # noqa: E402
from behavegpt.zero_shot import UniversalPredictor  # noqa: E402
from tests.serving.conftest import answered_until_sigterm  # noqa: E402
from tests.universal.test_state import SCHEMA, table  # noqa: E402

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def test_the_page_needs_nothing_but_the_service(predictor: Predictor) -> None:
    client = TestClient(make_app(predictor, ServeSettings()))
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; connect-src 'self'" in page.text
    assert not re.search(r"(src|href)=\"(https?:)?//", page.text)
    assert "innerHTML" not in page.text, "labels are text"


def test_labels_are_the_first_of_each_column(predictor: Predictor) -> None:
    """In the order of the vocabulary, which is that of their frequency."""
    found = TestClient(make_app(predictor, ServeSettings())).get("/v1/labels").json()["labels"]
    assert set(found) == set(predictor.tokenizer.event_schema.label_columns)
    for role, labels in found.items():
        assert labels == predictor.tokenizer.vocabulary[role].values.to_pylist()[:200]
    few = frequent_labels(predictor.tokenizer, 2)
    assert all(labels == found[role][:2] for role, labels in few.items())


@contextlib.contextmanager
def serving(model: Any) -> Iterator[str]:
    config = uvicorn.Config(make_app(model, ServeSettings()), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def address(predictor: Predictor) -> Iterator[str]:
    with serving(predictor) as found:
        yield found


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_an_invented_user_gets_predictions_and_a_future(
    address: str, predictor: Predictor, tmp_path: Path
) -> None:
    """Under the page's own policy: nothing is injected."""
    dom = seen(address, tmp_path)
    labels = set(predictor.tokenizer.behaviors.values.to_pylist())
    shares = [float(text) for text in re.findall(r'class="share">([\d.]+) %', dom)]
    named = re.search(r'id="next">(.*?)</section>', dom, re.DOTALL)
    assert named is not None
    predicted = re.findall(r"<span>(.*?)</span>", named[1])
    assert len(shares) == len(predicted) == min(8, len(labels)) and set(predicted) <= labels
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5
    future = re.search(r'id="future">(.*?)</section>', dom, re.DOTALL)
    assert future is not None and 1 <= future[1].count("<time>") <= 50, "the week ahead"
    days = {date.fromisoformat(day) for day in re.findall(r", (\d{4}-\d\d-\d\d)</p>", future[1])}
    assert max(days) - min(days) <= timedelta(days=7)
    assert re.search(r'role="alert" id="error"></p>', dom), "no error is shown"
    assert dom.count('aria-label="remove this event"') == 6
    assert 'id="labels-event"' in dom and 'id="asked-' not in dom


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_what_a_model_is_given_is_asked_for(tmp_path: Path) -> None:
    universal = behavegpt.load("universal")
    assert isinstance(universal, UniversalPredictor)
    timed = universal.fit_tables(table(0), SCHEMA, given=["time", "location"])
    with serving(timed) as address:
        dom = seen(address, tmp_path)
    fields = dict(re.findall(r'<input id="asked-(\w+)" (type|list)=', dom))
    assert fields == {"time": "type", "location": "list"}
    assert 'class="share"' in dom and re.search(r'role="alert" id="error"></p>', dom)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_model_that_knows_times_tells_the_next_one(address: str, tmp_path: Path) -> None:
    """Of the counted log; a model without times says nothing of them."""
    universal = behavegpt.load("universal")
    assert isinstance(universal, UniversalPredictor)
    with serving(universal.fit_tables(table(0), SCHEMA)) as other:
        dom = seen(other, tmp_path)
    shown = dict(re.findall(r'id="(error|when)">(.*?)</p>', dom))
    assert shown["error"] == ""
    assert re.match(r"The median time to the next event is [\w. ]+; half", shown["when"])
    assert 'id="when"></p>' in seen(address, tmp_path)


def counted() -> UniversalPredictor:
    """The universal model on a log of 30 users, which stays in memory."""
    universal = behavegpt.load("universal")
    assert isinstance(universal, UniversalPredictor)
    return universal.fit_tables(table(0), SCHEMA)


@pytest.mark.parametrize(
    "words,shown",
    [([], True), (["--host=0.0.0.0"], False), (["--host=0.0.0.0", "examples=3"], True)],
)
def test_real_users_are_shown_to_this_machine_alone(
    words: list[str], shown: bool, tmp_path: Path
) -> None:
    import httpx

    log = pq.read_table(online_retail()).slice(0, 300)
    pq.write_table(log, tmp_path / "log.parquet")

    def ask(url: str) -> Any:
        return httpx.get(f"{url}/v1/examples").json()["users"]

    found = answered_until_sigterm(["demo", str(tmp_path / "log.parquet"), *words], ask)
    assert bool(found) == shown


def test_examples_are_the_last_events_of_users_of_the_log(predictor: Predictor) -> None:
    """As the log has them, under its column names; a model without a log has none."""
    client = TestClient(make_app(counted(), ServeSettings(examples=4)))
    users = client.get("/v1/examples").json()["users"]
    assert [user["id"] for user in users] == ["p00", "p09", "p19", "p29"]
    log = table(0)
    for user in users:
        rows = log[log["who"] == user["id"]]
        assert [event["when"].replace("T", " ") for event in user["events"]] == list(rows["when"])
        told = sorted((event["what"], event["where"], event["kind"]) for event in user["events"])
        assert told == sorted(zip(rows["what"], rows["where"], rows["kind"], strict=True))
    answer = client.post("/v1/embed", json={"users": users})
    assert answer.status_code == 200 and len(answer.json()["users"]) == 4

    for model, most in ((counted(), 0), (predictor, 50)):
        client = TestClient(make_app(model, ServeSettings(examples=most)))
        assert client.get("/v1/examples").json() == {"users": []}


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_an_example_user_is_chosen_and_compared(address: str, tmp_path: Path) -> None:
    with serving(counted()) as other:
        dom = seen(other, tmp_path)
    assert re.search(r'role="alert" id="error"></p>', dom), "no error is shown"
    assert dom.count('<option value="') >= 31 and "user p00</option>" in dom
    assert dom.count('aria-label="remove this event"') == 12, "the last events of the first user"
    near = re.search(r'<section id="similar">(.*?)</section>', dom, re.DOTALL)
    assert near is not None
    named = re.findall(r">user (p\d\d)</button>", near[1])
    cosines = [float(text) for text in re.findall(r'class="share">(-?[\d.]+)<', near[1])]
    assert len(set(named)) == 5 and "p00" not in named
    assert cosines == sorted(cosines, reverse=True) and all(-1 <= c <= 1 for c in cosines)
    assert '<section id="similar" hidden="">' in seen(address, tmp_path), "no log, no examples"


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_filters_and_reasons_are_those_of_the_address(
    address: str, predictor: Predictor, tmp_path: Path
) -> None:
    """A link keeps them; labels of the address are text, whatever they hold."""
    labels = predictor.tokenizer.behaviors.values.to_pylist()
    groups = "\n".join(f"{label} = group {place % 2}" for place, label in enumerate(labels))
    chosen = [("exclude", labels[0]), ("per_group", groups), ("why", "1")]
    dom = seen(f"{address}#{urlencode(chosen)}", tmp_path)
    assert re.search(r'role="alert" id="error"></p>', dom), "no error is shown"

    named = re.search(r'id="next">(.*?)</section>', dom, re.DOTALL)
    assert named is not None
    predicted = re.findall(r"<span>(.*?)</span>", named[1])
    assert predicted and labels[0] not in predicted and set(predicted) <= set(labels)
    assert set(re.findall(r'class="group">(.*?)</span>', named[1])) == {"group 0", "group 1"}
    why = re.search(r'<section id="reasons">(.*?)</section>', dom, re.DOTALL)
    assert why is not None and f'id="because">{max_of(named[1])}: ' in why[1]
    assert "removing each event" in why[1]

    dom = seen(f"{address}#{urlencode([('among', '<b>x</b>')])}", tmp_path)
    assert "<b>x</b>" not in dom and "&lt;b&gt;x&lt;/b&gt; ×" in dom
    assert re.search(r'id="error">[^<]*among[^<]*</p>', dom), "an unknown label is told"


def max_of(shown: str) -> str:
    """The most probable behavior of a list."""
    pairs = re.findall(r'<span>([^<]*)</span><div.*?class="share">([\d.]+) %', shown)
    return max(pairs, key=lambda pair: float(pair[1]))[0]


def seen(address: str, folder: Path) -> str:
    """The page once its script has asked the service."""
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
    command: list[Any] = [BROWSER, *flags, f"--user-data-dir={folder / 'browser'}", "--dump-dom"]
    return subprocess.run(
        [*command, address], capture_output=True, text=True, timeout=120, check=True
    ).stdout
