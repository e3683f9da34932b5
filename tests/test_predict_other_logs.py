"""The form of times that a preparation chose is the model's: in files, frames, lists of rows and
over HTTP; and logs whose columns are named otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.errors import ConfigError, DataError
from behavegpt.ingest.prepare import prepare
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from tests.runs import tiny_settings

RNG = np.random.default_rng(0)
TIMES = pd.Series(
    pd.Timestamp("2024-04-01 06:00")
    + pd.to_timedelta(np.sort(RNG.integers(0, 40 * 86_400, 600)), "s")
)


def log(**columns: Any) -> pd.DataFrame:
    people = {
        "Kunde": [f"k{i % 20}" for i in range(600)],
        "Artikel": [f"a{i}" for i in RNG.integers(0, 6, 600)],
    }
    return pd.DataFrame(people | columns)


def trained(frame: pd.DataFrame, folder: Path) -> Predictor:
    frame.to_csv(folder / "log.csv", sep=";", index=False)
    prepare(folder / "log.csv", folder / "data")
    pretrain(
        PretrainSettings.model_validate(tiny_settings(folder / "data", folder / "run", steps=2))
    )
    return behavegpt.load(folder / "run" / "model", "cpu")


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Trained on Datum and Uhrzeit, dd.mm.yyyy."""
    columns = {"Datum": TIMES.dt.strftime("%d.%m.%Y"), "Uhrzeit": TIMES.dt.strftime("%H:%M")}
    return trained(log(**columns), tmp_path_factory.mktemp("german"))


ROWS = [
    {"Kunde": "x", "Artikel": "a1", "Datum": "03.04.2024", "Uhrzeit": "18:45"},
    {"Kunde": "x", "Artikel": "a2", "Datum": "04.05.2024", "Uhrzeit": "07:15"},
]
SECONDS = [
    pd.Timestamp("2024-04-03 18:45").timestamp(),
    pd.Timestamp("2024-05-04 07:15").timestamp(),
]


def as_file(ending: str, folder: Path) -> str:
    frame, path = pd.DataFrame(ROWS), folder / f"log{ending}"
    if ending == ".csv":
        frame.to_csv(path, index=False)
    elif ending == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("kind", ["rows", "frame", "dict", ".csv", ".jsonl", ".parquet"])
def test_times_are_read_as_in_training(german: Predictor, tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(ROWS)
    logs: Any = {"rows": ROWS, "frame": frame, "dict": frame.to_dict("list")}.get(kind)
    encoded = german.encode(as_file(kind, tmp_path) if logs is None else logs)
    assert encoded.columns["time"].tolist() == SECONDS
    assert encoded.columns["slot"].tolist() == [37, 14]
    iso = frame.assign(Datum=["2024-04-03", "2024-05-04"])
    assert german.encode(iso).columns["time"].tolist() == SECONDS


def test_times_are_read_as_in_training_over_http(german: Predictor) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    from behavegpt.serving.answers import answer_all, key
    from behavegpt.serving.requests import PredictRequest

    events = [{name: value for name, value in row.items() if name != "Kunde"} for row in ROWS]
    request = PredictRequest.model_validate({"users": [{"id": "x", "events": events}]})
    assert key(request, german.tokenizer.event_schema) is None
    answer: Any = answer_all(german, [request])[0]
    expected = german.predict(ROWS)
    assert [b["behavior"] for b in answer["users"][0]["behaviors"]] == expected.labels[0].tolist()
    assert [b["probability"] for b in answer["users"][0]["behaviors"]] == expected.probabilities[
        0
    ].tolist()
    del events[0]["Uhrzeit"], events[1]["Uhrzeit"]
    request = PredictRequest.model_validate({"users": [{"id": "x", "events": events}]})
    assert "no column 'Uhrzeit' (the time)" in str(answer_all(german, [request])[0])


OTHER = [
    {"uid": "x", "item": "a1", "when": "04/03/2024 06:45 PM"},
    {"uid": "x", "item": "a2", "when": "05/04/2024 07:15 AM"},
]
NAMED = {"user": "uid", "event": "item", "time": "when", "time_format": "%m/%d/%Y %I:%M %p"}


def test_columns_may_be_named(german: Predictor) -> None:
    assert german.reading(**NAMED).encode(OTHER).columns["time"].tolist() == SECONDS
    assert (
        german.reading(**NAMED).predict(OTHER).probabilities.tolist()
        == german.predict(ROWS).probabilities.tolist()
    )
    assert german.tokenizer.event_schema.user == "Kunde"
    with pytest.raises(DataError, match="Name the right one with --time COLUMN"):
        german.predict(pd.DataFrame(OTHER).rename(columns={"uid": "Kunde", "item": "Artikel"}))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"location": "place"}, "the model has no location"),
        ({"behavior": "kind"}, "the model has no behavior"),
        ({"tz": "Europe/Berlin"}, "tz is part of the model"),
        ({"time_format": "%H"}, "year, month and day"),
        ({"user": "Artikel"}, "three different columns"),
    ],
)
def test_what_is_the_models_is_refused(
    german: Predictor, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        german.reading(**changes)


@pytest.mark.parametrize("verb", ["predict", "embed", "generate", "export"])
def test_the_commands_take_the_columns(
    german: Predictor, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from behavegpt.training.model_folder import save_model

    model, file = tmp_path / "model", tmp_path / "log.csv"
    save_model(german.model, german.tokenizer, model)
    pd.DataFrame(OTHER).to_csv(file, index=False)
    out = {
        "predict": ["--out", "p.csv"],
        "embed": ["--out", "v.parquet"],
        "generate": ["--out", "g.csv"],
        "export": ["v"],
    }
    more = [word if word.startswith("--") else str(tmp_path / word) for word in out[verb]]
    options = [
        word for name, value in NAMED.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    assert main([verb, str(model), str(file), *more, *options]) == 0, capsys.readouterr().err
    assert main([verb, str(model), str(file), *more, *options, "--location", "x"]) == 2
    assert "the model has no location" in " ".join(capsys.readouterr().err.split())


def test_a_model_without_a_clock_trains_predicts_and_generates(tmp_path: Path) -> None:
    model = trained(log(Datum=TIMES.dt.strftime("%d.%m.%Y")), tmp_path)
    assert model.tokenizer.event_schema.slots == 1
    rows = [{"Kunde": "x", "Artikel": "a1", "Datum": "13.04.2024"}]
    assert np.isclose(model.predict(rows, top_k=100).probabilities.sum(), 1)
    assert model.encode([rows[0] | {"Datum": "2024-04-13T18:00:00"}]).columns["slot"].tolist() == [
        0
    ]
    future = model.generate(rows, steps=3).to_table()
    assert future.num_rows == 3
    assert (
        json.loads((tmp_path / "data" / "dataset.json").read_text())["event_schema"]["slot_minutes"]
        == 1440
    )


@pytest.mark.filterwarnings("error")
def test_dates_alone_are_told_to_a_model_that_knows_slots(german: Predictor) -> None:
    dates = pd.DataFrame(
        [{"Kunde": "x", "Artikel": "a1", "Datum": f"{1 + i}.04.2024"} for i in range(12)]
    )
    with pytest.raises(UserWarning, match="all 12 times are at midnight"):
        german.reading(time="Datum", time_format="%d.%m.%Y").encode(dates)
    german.reading(time="Datum", time_format="%d.%m.%Y").encode(dates[:5])
