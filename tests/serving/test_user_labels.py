"""A model with a label head over HTTP: the predictor's answers, and an error for what it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.demo import online_retail
from behavegpt.labeling.predictor import LabelPredictor, load_label
from behavegpt.labeling.run import finetune_label
from behavegpt.serving.app import make_app
from behavegpt.serving.requests import ServeSettings
from tests.serving.conftest import answered_until_sigterm

AT = "2011-10-10"
USERS = 60
COLUMNS = ["timestamp", "event", "location", "family", "line"]


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    log = pd.read_parquet(online_retail())
    users = log["user_id"][log["timestamp"] < AT].unique()[:USERS]
    return log[log["user_id"].isin(users)]


@pytest.fixture(scope="module")
def runs(events: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    past = events[events["timestamp"] < AT].groupby("user_id").size()
    labels = pd.DataFrame(
        {"user_id": past.index, "many": past.to_numpy() > 30, "lines": past.to_numpy()}
    )
    folder = tmp_path_factory.mktemp("labels")
    for name in ("many", "lines"):
        quick = {"label": name, "epochs": 1, "seeds": 0}
        finetune_label("demo", events, labels, AT, folder / name, **quick)
    return folder


def asked(events: pd.DataFrame, ids: list[int]) -> list[dict[str, Any]]:
    """Histories of users as a client sends them."""
    columns = [name for name in COLUMNS if name in events.columns]
    users = []
    for user in ids:
        rows = events[events["user_id"] == user][columns]
        rows = rows.assign(timestamp=rows["timestamp"].astype(str)).to_dict("records")
        users.append({"id": int(user), "events": rows[-200:]})
    return users


@pytest.fixture(scope="module")
def ids(events: pd.DataFrame) -> list[int]:
    early = events[events["timestamp"] < AT]["user_id"].unique().tolist()
    return [early[3], early[0], early[9]]


def client_of(model: LabelPredictor) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(make_app(model, ServeSettings()))


@pytest.mark.parametrize("name", ["many", "lines"])
def test_labels_are_the_predictors(
    name: str, runs: Path, events: pd.DataFrame, ids: list[int]
) -> None:
    model = load_label(runs / name)
    users = asked(events, ids)
    flat = [row | {"user_id": user["id"]} for user in users for row in user["events"]]
    expected = model.predict(flat, at=AT).to_table().to_pylist()
    by_user = {row["user"]: row for row in expected}
    with client_of(model) as client:
        answer = client.post("/v1/label", json={"users": users, "at": AT})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["label"] == name and told["before"].startswith(
        "2011-10-09T23:00"
    )  # London's midnight
    assert [user["id"] for user in told["users"]] == ids
    for user in told["users"]:
        row = by_user[str(user["id"])]
        assert user["value"] == row[name]
        if name == "many":
            assert user["probabilities"] == {"false": row["p(false)"], "true": row["p(true)"]}
            assert sum(user["probabilities"].values()) == pytest.approx(1)


def test_alone_as_in_company(runs: Path, events: pd.DataFrame, ids: list[int]) -> None:
    users = asked(events, ids)
    with client_of(load_label(runs / "many")) as client:
        together = client.post("/v1/label", json={"users": users, "at": AT}).json()["users"]
        alone = [
            client.post("/v1/label", json={"users": [user], "at": AT}).json()["users"][0]
            for user in users
        ]
    for one, other in zip(alone, together, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_what_it_cannot_answer_is_refused(runs: Path, events: pd.DataFrame, ids: list[int]) -> None:
    users = asked(events, ids)
    late = [users[0], {"id": 7, "events": [users[0]["events"][0] | {"timestamp": "2011-12-01"}]}]
    cases = [
        ({"users": [users[0], users[0]]}, 422, "is there twice"),
        ({"users": late, "at": AT}, 422, "user '7' has no usable event"),
        ({"users": users, "at": "2001-01-01"}, 422, "no usable event before"),
        ({"users": users, "at": "soon"}, 422, "soon"),
        ({"users": users, "top_k": 3}, 422, "top_k"),
        ({"users": [{"events": [{"event": "x"}]}]}, 422, "no column 'location' (the location)"),
    ]
    with client_of(load_label(runs / "many")) as client:
        for body, status, text in cases:
            answer = client.post("/v1/label", json=body)
            assert (answer.status_code, text in answer.json()["error"]["message"]) == (
                status,
                True,
            ), answer.text
        answer = client.post("/v1/predict", json={"users": users})
        assert (
            answer.status_code == 404 and "POST /v1/label; GET" in answer.json()["error"]["message"]
        )
        facts = client.get("/v1/model").json()
        assert facts["label"] == "many" and facts["classes"] == ["false", "true"]
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}
        assert "/v1/label" in client.get("/").text and "/v1/predict" not in client.get("/docs").text
        assert next(iter(client.get("/openapi.json").json()["paths"])) == "/v1/label"
        assert "behavegpt_requests_total" in client.get("/metrics").text


def test_the_command_serves_it(runs: Path, events: pd.DataFrame, ids: list[int]) -> None:
    import httpx

    users = asked(events, ids[:1])

    def ask(url: str) -> Any:
        return httpx.post(f"{url}/v1/label", json={"users": users, "at": AT}, timeout=60).json()

    answer = answered_until_sigterm([str(runs / "many")], ask)
    assert answer["users"][0]["id"] == ids[0] and answer["users"][0]["value"] in ("true", "false")


@pytest.mark.parametrize("words", [["log.csv"], ["--save", "kept"], ["--given", "time"]])
def test_what_is_about_behaviors_is_refused(
    words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(runs / "many"), *words, "--port", "0"]) == 2
    assert "leave" in capsys.readouterr().err


def test_a_model_of_behaviors_says_no_label() -> None:
    from fastapi.testclient import TestClient

    with TestClient(make_app(behavegpt.load("demo"), ServeSettings())) as client:
        answer = client.post("/v1/label", json={"users": []})
    assert answer.status_code == 404 and "/v1/predict" in answer.json()["error"]["message"]
