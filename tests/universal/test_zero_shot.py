"""Predictions without training: on any table, the same alone and in company, through Python and the
commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.schema import EventSchema
from behavegpt.demo import online_retail
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.evaluate_universal import evaluate_universal
from behavegpt.ingest.prepare import prepare
from behavegpt.loading import load_zero_shot
from behavegpt.shipped import is_universal
from behavegpt.universal.model import SHIPPED, load_universal
from behavegpt.universal.train import UniversalSettings
from behavegpt.zero_shot import UniversalPredictor
from tests.conftest import ROOT

SCHEMA = EventSchema(user="who", time="when", event="what")


@pytest.fixture(scope="module")
def universal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights trained on three small random worlds."""
    out = tmp_path_factory.mktemp("universal")
    assert main(["pretrain-universal", "configs/universal/tiny.yaml", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def habits() -> pd.DataFrame:
    """Forty people who each alternate between two things of their own."""
    rng = np.random.default_rng(0)
    rows = []
    for person in range(40):
        pair = rng.choice(12, 2, replace=False)
        times = pd.date_range("2024-03-01", periods=20, freq="5h")
        rows += [(f"p{person:02}", time, f"thing {pair[n % 2]}") for n, time in enumerate(times)]
    return pd.DataFrame(rows, columns=["who", "when", "what"])


def test_it_predicts_what_nobody_trained(universal: Path, habits: pd.DataFrame) -> None:
    model = load_zero_shot(universal).fit_tables(habits, SCHEMA)
    found = model.predict(top_k=3)
    assert found.users.to_pylist() == sorted(habits.who.unique())
    assert np.all(np.diff(found.probabilities, axis=1) <= 0) and np.all(
        found.probabilities.sum(1) <= 1 + 1e-5
    )
    following = habits.groupby("who").what.nth(-2).to_list()
    assert (
        np.mean([label == true for label, true in zip(found.labels[:, 0], following, strict=True)])
        > 0.9
    )
    direct = load_zero_shot(universal).predict(
        habits.rename(columns={"who": "user", "when": "time", "what": "event"}), top_k=3
    )
    assert np.array_equal(direct.labels, found.labels)
    rows = habits.assign(when=habits.when.astype(str)).to_dict("records")
    for listed in (rows, rows[::-1]):
        counted = load_zero_shot(universal).fit_tables(listed, SCHEMA)
        assert np.array_equal(counted.predict(top_k=3).labels, found.labels)


def test_a_user_alone_gets_the_same_answer(universal: Path, habits: pd.DataFrame) -> None:
    model = load_zero_shot(universal).fit_tables(habits, SCHEMA)
    everyone = model.predict(top_k=4)
    alone = model.predict(habits[habits.who == "p07"], top_k=4)
    assert np.array_equal(alone.labels[0], everyone.labels[7])
    assert np.allclose(alone.probabilities[0], everyone.probabilities[7], atol=1e-6)


def test_evaluate_uses_the_training_split_alone(universal: Path, tmp_path: Path) -> None:
    schema = EventSchema(
        user="user_id", time="timestamp", event="event", behavior="family", order="line"
    )
    log = pd.read_parquet(online_retail())
    people = log.user_id.drop_duplicates().sample(150, random_state=0)
    log[log.user_id.isin(people)].to_parquet(tmp_path / "log.parquet")
    store = prepare(tmp_path / "log.parquet", tmp_path / "data", schema)
    result = evaluate_universal(load_universal(universal), store, tmp_path / "metrics.json")
    figures = result["models"]
    assert figures["universal"]["rec_w"] > figures["most_frequent"]["rec_w"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert result["protocol"]["training"].startswith("none on this log")


def test_the_same_seed_gives_the_same_weights(universal: Path, tmp_path: Path) -> None:
    assert (
        main(["pretrain-universal", "configs/universal/tiny.yaml", f"out={tmp_path / 'again'}"])
        == 0
    )
    name = "universal.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (universal / name).read_bytes()


def test_mistakes(universal: Path, habits: pd.DataFrame, tmp_path: Path) -> None:
    model: UniversalPredictor = load_zero_shot(universal)
    with pytest.raises(ConfigError, match="top_k = 0"):
        model.fit_tables(habits, SCHEMA).predict(top_k=0)
    with pytest.raises(DataError, match="no usable event"):
        model.fit_tables(habits.assign(what=None), SCHEMA)
    (tmp_path / "universal.json").write_text("{}")
    assert (
        is_universal(tmp_path)
        and is_universal("universal")
        and not is_universal(tmp_path / "nothing")
    )
    with pytest.raises(CheckpointError, match="not a universal model"):
        load_zero_shot(tmp_path)


def test_the_commands_take_the_name(
    habits: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the weights that ship."""
    habits.rename(columns={"who": "uid"}).to_csv(tmp_path / "log.csv", index=False)
    columns = ["--user", "uid", "--time", "when", "--event", "what"]
    assert (
        main(
            ["predict", "universal", str(tmp_path / "log.csv"), *columns, "--top-k", "2", "--json"]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * habits.who.nunique() and {row["rank"] for row in rows} == {1, 2}
    assert (
        main(["prepare", str(tmp_path / "log.csv"), "--out", str(tmp_path / "data"), *columns]) == 0
    )
    assert main(["evaluate", "universal", str(tmp_path / "data"), "--json"]) == 0
    assert (
        json.loads((tmp_path / "data/eval/universal.json").read_text())["models"]["universal"][
            "rec_w"
        ]
        > 0.8
    )
    assert main(["export", "universal", str(tmp_path / "log.csv"), str(tmp_path / "vectors")]) == 2
    assert "needs a trained model" in capsys.readouterr().err


def test_the_zone_of_a_counted_log_is_named_and_kept(
    habits: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weekdays and hours are those of the zone, so the log is counted otherwise than in UTC."""
    log, counted = str(tmp_path / "log.csv"), str(tmp_path / "counted")
    habits.rename(columns={"who": "user", "when": "time", "what": "event"}).to_csv(log, index=False)
    told = {}
    for zone in ("UTC", "Asia/Tokyo"):
        words = ["predict", "universal", log, "--tz", zone, "--naive-time", "utc", "--json"]
        assert main([*words, "--save", f"{counted}-{zone[:3]}"]) == 0
        model = behavegpt.load(f"{counted}-{zone[:3]}")
        assert model.tokenizer.event_schema.tz == zone
        told[zone] = json.loads(capsys.readouterr().out)
    assert told["UTC"] != told["Asia/Tokyo"]
    assert main(["predict", f"{counted}-UTC", log, "--tz", "UTC"]) == 2
    assert "keeps the time zone" in capsys.readouterr().err


def test_the_commands_that_use_counts(
    habits: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """embed and generate on a log; what was counted once is a model, with the same answers without
    the log."""
    log, counted = str(tmp_path / "log.csv"), str(tmp_path / "counted")
    habits.rename(columns={"who": "uid"}).to_csv(log, index=False)
    columns = ["--user", "uid", "--time", "when", "--event", "what"]
    assert main(["predict", "universal", log, *columns, "--save", counted, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["predict", counted, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == first
    habits.to_csv(log, index=False)  # another name of a column
    assert main(["predict", counted, log, "--user", "who", "--json"]) == 0
    assert [row["behavior"] for row in json.loads(capsys.readouterr().out)] == [
        row["behavior"] for row in first
    ]
    assert (
        main(
            [
                "embed",
                "universal",
                log,
                "--user",
                "who",
                *columns[2:],
                "--out",
                str(tmp_path / "v.parquet"),
            ]
        )
        == 0
    )
    assert pd.read_parquet(tmp_path / "v.parquet").vector.map(len).unique().tolist() == [32]
    futures = ["--steps", "4", "--samples", "2", "--temperature", "0", "--json"]
    capsys.readouterr()
    assert main(["generate", "universal", log, "--user", "who", *columns[2:], *futures]) == 0
    drawn = pd.DataFrame(json.loads(capsys.readouterr().out))
    assert len(drawn) == 40 * 2 * 4
    for person, own in drawn[drawn["sample"] == 0].groupby("who"):
        pair = habits[habits.who == person].what.iloc[-2:].tolist()
        assert own.what.tolist() == pair * 2, "each drawn event is known to the next draw"
        assert own.when.is_monotonic_increasing


MISTAKES = {
    "no log": (["predict", "universal"], "add the log files after the model"),
    "no log to embed": (
        ["embed", "universal", "--out", "v.parquet"],
        "add the log files after the model",
    ),
    "a head": (["generate", "universal", "LOG", "--policy", "head"], "has no time head"),
    "links": (["generate", "universal", "LOG", "--data", "."], "--data is for trained models"),
    "nothing to serve": (["serve", "universal"], "add the log files after the model"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_commands(
    name: str,
    habits: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, message = MISTAKES[name]
    habits.rename(columns={"who": "user", "when": "time", "what": "event"}).to_csv(
        "LOG", index=False
    )
    (tmp_path / "LOG").rename("LOG.csv")
    assert main([word.replace("LOG", "LOG.csv") for word in words]) == 2
    assert message in capsys.readouterr().err


def test_futures_do_not_depend_on_who_else_is_asked(universal: Path, habits: pd.DataFrame) -> None:
    model = load_zero_shot(universal).fit_tables(habits, SCHEMA)
    everyone = model.generate(steps=6, samples=2, seed=4, rows=7).to_table().to_pandas()
    alone = (
        model.generate(habits[habits.who == "p07"], steps=6, samples=2, seed=4)
        .to_table()
        .to_pandas()
    )
    pd.testing.assert_frame_equal(everyone[everyone.who == "p07"].reset_index(drop=True), alone)
    until = model.generate(until="11 hours", steps=50)  # gaps are of five hours
    assert until.to_table().num_rows == 80 and until.policies == {
        "behavior": "head",
        "time": "observed",
    }


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/universal").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_shipped_config_loads(path: Path) -> None:
    assert read_settings(UniversalSettings, path).out == "runs/universal"
    assert (
        path.read_text().startswith("# ")
        and "# Run: behavegpt pretrain-universal" in path.read_text()
    )


def test_the_shipped_weights_say_how_they_were_made() -> None:
    described = json.loads((SHIPPED / "universal.json").read_text())
    settings = read_settings(UniversalSettings, ROOT / "configs/universal/shipped.yaml")
    assert described["settings"] == settings.model_dump(mode="json")
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 5_000_000
