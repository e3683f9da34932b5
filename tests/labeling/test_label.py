"""A label head: what it learns, that it knows no future, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import behavegpt
from behavegpt.cli import main
from behavegpt.demo import online_retail
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.labeling.run import HEAD, finetune_label
from behavegpt.model.label import BehaveGPTForUserLabels, pool

AT = "2011-10-10"
QUICK: dict[str, Any] = {"epochs": 3, "folds": 2, "top_labels": 10}


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    """The log of 300 users."""
    log = pd.read_parquet(online_retail())
    users = np.unique(log["user_id"][log["timestamp"] < AT])[:300]
    return log[log["user_id"].isin(users)]


@pytest.fixture(scope="module")
def labels(events: pd.DataFrame) -> pd.DataFrame:
    """Of each user: whether the last purchase before the date was early in a week, which only the
    states know, and how many lines there were."""
    past = events[events["timestamp"] < AT]
    users = np.unique(past["user_id"])
    last = past.groupby("user_id")["timestamp"].max().reindex(users)
    lines = past.groupby("user_id").size().reindex(users)
    return pd.DataFrame(
        {
            "user_id": users,
            "early": last.dt.dayofweek.to_numpy() < 3,
            "lines": np.log(lines.to_numpy()),
        }
    )


@pytest.fixture(scope="module")
def run(
    events: pd.DataFrame, labels: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("label")
    labels.to_csv(folder / "labels.csv", index=False)
    events.to_parquet(folder / "log.parquet", index=False)
    files = [str(folder / "log.parquet"), "--labels", str(folder / "labels.csv")]
    words = ["--mode", "label", "--label", "early", "--at", AT, f"out={folder / 'run'}"]
    settings = ["lr=3e-3", "folds=2"]
    assert main(["finetune", "demo", *files, *words, *settings]) == 0
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def test_a_label_of_the_past_is_learned(run: Path) -> None:
    told = json.loads((run / "run/label.json").read_text())
    found = {row["metric"]: row["mean"] for row in told["scores"] if row["features"] == HEAD}
    assert found["ROC-AUC"] > 0.85 and found["accuracy"] > 0.75
    beside = {(row["features"], row["probe"]) for row in told["scores"]}
    assert ("counts + aggregates", "boosting") in beside and len(beside) == 7
    assert told["classes"] == ["false", "true"] and told["learned"]["best_epoch"] >= 1
    # the differences are those of the same folds
    other = next(r for r in told["scores"] if r["features"] == "all" and r["metric"] == "accuracy")
    own = next(r for r in told["scores"] if r["features"] == HEAD and r["metric"] == "accuracy")
    difference = next(
        r
        for r in told["differences"]
        if (r["against"], r["probe"], r["metric"]) == ("all", other["probe"], "accuracy")
    )
    np.testing.assert_allclose(difference["values"], np.subtract(own["values"], other["values"]))


def test_no_later_event_enters(events: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path) -> None:
    past = events[events["timestamp"] < AT]
    later = events[events["timestamp"] >= AT]
    assert len(later) > 1000
    options = QUICK | {"label": "early", "seeds": 1}
    # the log with its future, and with one event a day later in place of it
    cut = pd.concat([past, later.tail(1).assign(timestamp=pd.Timestamp("2011-10-11"))])
    one = finetune_label("demo", events, labels, AT, tmp_path / "one", **options)
    other = finetune_label("demo", cut, labels, AT, tmp_path / "other", **options)
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert one.to_table().equals(other.to_table())

    model = behavegpt.load_label(tmp_path / "one")
    assert model.predict(events, at=AT).to_table().equals(model.predict(past, at=AT).to_table())
    assert not np.array_equal(model.predict(events).values, model.predict(past).values)


def test_what_is_read_back_says_the_same(
    run: Path, events: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    model = behavegpt.load_label(run / "run", "cpu")
    said = model.predict(events, at=AT)
    assert said.classes == ("false", "true")
    np.testing.assert_allclose(said.values.sum(1), 1)

    strange = events.assign(event="unheard of", timestamp=events["timestamp"].astype(str))
    strange.loc[strange.index[0], "timestamp"] = "soon"
    told = model.predict(strange, at=AT)
    assert told.unknown["event"] > said.unknown["event"] and told.unknown["location"] == 0
    assert dict(told.rejected) == {"time cannot be read": 1}

    # the same user alone; users of a call change nothing
    alone = events[events["user_id"] == int(said.users[5].as_py())]
    np.testing.assert_allclose(model.predict(alone, at=AT).values[0], said.values[5], atol=1e-5)
    capsys.readouterr()
    command = ["predict", str(run / "run"), str(run / "log.parquet"), "--at", AT]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["user"] for row in rows] == said.users.to_pylist()
    np.testing.assert_allclose([row["p(true)"] for row in rows], said.values[:, 1], atol=1e-6)
    assert {row["early"] for row in rows} == {"false", "true"}
    assert main([*command, "--out", str(run / "said.csv")]) == 0
    assert len(pd.read_csv(run / "said.csv")) == len(rows)

    again = AutoModelForSequenceClassification.from_pretrained(run / "run/model")
    assert isinstance(again, BehaveGPTForUserLabels) and again.config.label == "early"
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.model.state_dict()[name]), name
    with pytest.raises(CheckpointError, match=r"label head.*load_label"):
        behavegpt.load(run / "run/model")


def test_numbers_are_regressed(events: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path) -> None:
    """In their own unit: the log of the lines, which the aggregates hold."""
    options = {"label": "lines", "epochs": 30, "lr": 3e-3, "seeds": 0}
    result = finetune_label("demo", events, labels, AT, tmp_path, **options)
    assert result.facts["task"] == "regression" and not result.scores.rows
    said = behavegpt.load_label(tmp_path).predict(events, at=AT)
    assert not said.classes and said.to_table().column_names == ["user", "lines"]
    assert np.corrcoef(said.values[:, 0], labels["lines"])[0, 1] > 0.9
    assert abs(said.values.mean() - labels["lines"].mean()) < 0.3


def test_the_body_may_stay_as_it_is(
    events: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path
) -> None:
    base = behavegpt.load("demo", "cpu").model.model.state_dict()
    for rate, same in ((0.0, True), (1e-3, False)):
        options = {"label": "early", "epochs": 2, "seeds": 0, "body_lr": rate}
        finetune_label("demo", events, labels, AT, tmp_path / str(rate), **options)
        found = behavegpt.load_label(tmp_path / str(rate), "cpu").model.model.state_dict()
        assert all(torch.equal(found[name], base[name]) for name in base) == same


def test_histories_of_a_row_are_pooled_apart() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    document = torch.tensor([[0, 0, 1], [0, -1, -1]])
    pooled = pool(hidden, document)
    np.testing.assert_allclose(pooled, [[1, 2, 2, 3], [4, 5, 4, 5], [6, 7, 6, 7]])


REFUSED: dict[str, tuple[dict[str, Any], type[BehaveGPTError], str]] = {
    "universal": ({"model": "universal"}, ConfigError, "no network"),
    "rate": ({"lr": 0}, ConfigError, "lr"),
    "setting": ({"epoch": 3}, ConfigError, "epoch"),
    "column": ({"label": "churn"}, DataError, "no column 'churn'"),
    "date": ({"at": "2031-01-01"}, DataError, "outside the log"),
    "few": ({"min_users": 5000}, DataError, "at least 5000"),
}


def test_a_file_in_the_way_is_told_before_the_training(
    events: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="a file, where a folder"):
        finetune_label("demo", events, labels, AT, tmp_path / "run", label="early")


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(
    case: str, events: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path
) -> None:
    changed, error, message = REFUSED[case]
    options = {"model": "demo", "at": AT, "label": "early"} | changed
    model, at = options.pop("model"), options.pop("at")
    with pytest.raises(error, match=message):
        finetune_label(model, events, labels, at, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


LABEL_HEAD = ("LOG", "--mode", "label", "--labels", "TABLE", "--at", AT, "out=x")
COMMANDS = {
    "no labels": (["finetune", "demo", "LOG", "--mode", "label", "--at", AT, "out=x"], "--labels"),
    "no out": (["finetune", "demo", "LOG", "--mode", "label", "--labels", "TABLE"], "--at DATE"),
    "no mode": (["finetune", "adapt/new_behavior", "--at", AT], "option of --mode label"),
    "filters": (["predict", "RUN", "LOG", "--exclude-seen"], "about behaviors"),
    "no features": (
        ["predict", "RUN", "LOG", "--users", "TABLE"],
        "reads no features of users",
    ),
    "no features to learn from": (
        ["finetune", "demo", *LABEL_HEAD, "--users", "TABLE"],
        "reads no features of users",
    ),
    "users of the universal model": (
        ["finetune", "universal", *LABEL_HEAD, "--users", "TABLE"],
        "--users is for trained models",
    ),
    "no log": (["predict", "RUN"], "add the log files"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands_name_the_remedy(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, message = COMMANDS[case]
    files = {"LOG": run / "log.parquet", "TABLE": run / "labels.csv", "RUN": run / "run"}
    assert main([str(files.get(word, word)) for word in command]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_folder_is_told(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "run/model", tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        behavegpt.load_label(tmp_path)
    with pytest.raises(CheckpointError, match="not a label model's folder"):
        behavegpt.load_label(tmp_path / "nowhere")
