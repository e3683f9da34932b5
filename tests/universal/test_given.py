"""The universal model, asked about a time and a place: of logs, states and saved folders, in
Python, over HTTP and by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.schema import EventSchema
from behavegpt.errors import ConfigError, DataError
from behavegpt.evaluate_universal import evaluate_universal
from behavegpt.universal.model import load_universal
from behavegpt.universal.train import UniversalSettings, read_views
from behavegpt.zero_shot import UniversalPredictor
from tests.helpers import random_store
from tests.runs import save_store
from tests.universal.test_state import SCHEMA, same, table

TIME, BOTH = ("time",), ("time", "location")
MORNING, EVENING = "2024-06-03 08:10", "2024-06-03 20:10"


def habits() -> pd.DataFrame:
    """Twenty people who do one thing in the morning and another in the evening, at random times."""
    rng = np.random.default_rng(0)
    rows = []
    for person in range(20):
        pair = rng.choice(8, 2, replace=False)
        for day in range(30):
            late = int(rng.integers(2))
            time = pd.Timestamp("2024-03-01") + pd.Timedelta(days=day, hours=8 + 12 * late)
            thing = f"thing {pair[late]}"
            rows.append((f"p{person:02}", time + pd.Timedelta(minutes=10), thing, f"place {late}"))
    return pd.DataFrame(rows, columns=["who", "when", "what", "where"])


HABITS = EventSchema(user="who", time="when", event="what", location="where")


def universal() -> UniversalPredictor:
    found = behavegpt.load("universal")
    assert isinstance(found, UniversalPredictor)
    return found


@pytest.fixture(scope="module", params=[TIME, BOTH], ids=" ".join)
def model(request: pytest.FixtureRequest) -> UniversalPredictor:
    return universal().fit_tables(table(0), SCHEMA, given=request.param)


def asked(model: UniversalPredictor, at: Any = EVENING, location: Any = "home") -> dict[str, Any]:
    told = {"time": {"at": at}, "location": {"location": location}}
    return {key: value for name in model.given for key, value in told[name].items()}


@pytest.mark.parametrize("told", [{"given": TIME}, {}], ids=["counted with it", "counted again"])
def test_it_says_what_is_done_at_that_time(told: dict[str, Any]) -> None:
    log = habits()
    model = universal().fit_tables(log, HABITS, **told)
    for hour, at in ((8, MORNING), (20, EVENING)):
        found = model.predict(top_k=1, at=at)
        usual = log[log.when.dt.hour == hour].groupby("who").what.first()
        assert np.mean(found.labels[:, 0] == usual.to_numpy()) > 0.9
    by_user = model.predict(top_k=1, at=dict.fromkeys(log.who.unique(), MORNING))
    assert same(by_user, model.predict(top_k=1, at=MORNING))


def test_states_answer_as_whole_histories(model: UniversalPredictor, tmp_path: Path) -> None:
    """Event by event, of users the log knows and others; a question changes nothing."""
    for user, history in table(1, people=3).groupby("who"):
        state = model.state(str(user), new=True)
        for row in history.drop(columns="who").to_dict("records"):
            model.update(state, {str(name): value for name, value in row.items()})
            model.predict(state, **asked(model, MORNING, "shop"))
        assert same(
            model.predict(state, top_k=7, **asked(model)),
            model.predict(history, top_k=7, **asked(model)),
        )
    everyone = model.predict(top_k=4, **asked(model))
    states = [model.state(user) for user in everyone.users.to_pylist()]
    assert same(model.predict(states, top_k=4, **asked(model)), everyone)
    kept = behavegpt.load(model.save(tmp_path / "counted"))
    assert isinstance(kept, UniversalPredictor) and kept.given == model.given
    assert same(kept.predict(top_k=4, **asked(model)), everyone)
    other = model.predict(top_k=4, **asked(model, MORNING, "work"))
    assert not same(other, everyone)


def test_futures_draw_times_first(model: UniversalPredictor) -> None:
    """The first drawn event again, by asking about its time and place."""
    log = table(0)
    found = model.generate(steps=3, seed=4, probabilities=5)
    rows = found.to_table().to_pandas()
    first = rows.groupby("who").nth(0)
    told = {
        "at": dict(zip(first.who, first.when.dt.strftime("%F %T"), strict=True)),
        "location": dict(zip(first.who, first["where"], strict=True)),
    }
    known = {key: told[key] for key in asked(model)}
    answer = model.predict(top_k=5, **known)
    step = found.columns["step"] == 0
    users = found.columns["user"][step]
    np.testing.assert_allclose(found.probability[step], answer.probabilities[users], rtol=1e-4)
    assert len(rows) == 3 * log.who.nunique()
    assert same(model.predict(top_k=5, **known), answer)


def test_questions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    timed = universal().fit_tables(table(0), SCHEMA, given=TIME)
    plain = universal().fit_tables(table(0), SCHEMA)
    with pytest.raises(ConfigError, match=r"this counted log is given the time .* say which time"):
        timed.predict()
    with pytest.raises(
        ConfigError, match=r"given the time alone .* `location` would .* count the log again"
    ):
        timed.predict(at=EVENING, location="home")
    with pytest.raises(ConfigError, match=r"this counted log is given nothing .* would change"):
        plain.predict(plain.state("p00"), at=EVENING)
    with pytest.raises(ConfigError, match="states cannot be counted again; count the log with"):
        behavegpt.load(plain.save(tmp_path / "counted")).predict(None, at=EVENING)
    with pytest.raises(ConfigError, match="which a vector does not know"):
        timed.embed()
    with pytest.raises(ConfigError, match="the log has no location"):
        universal().fit_tables(
            table(0), EventSchema(user="who", time="when", event="what"), given=BOTH
        )
    with pytest.raises(DataError, match="'late' is not a time"):
        timed.predict(at="late")
    with pytest.raises(ConfigError, match="'hour' is none of time, location"):
        universal().fit_tables(table(0), SCHEMA, given=["hour"])


def test_evaluation_gives_model_and_counts_the_same(tmp_path: Path) -> None:
    """Behaviors that are told by the hour alone: with the hour given all know them."""
    store = random_store(0, users=60, behaviors=None, events=8)
    slot = np.array(store.columns["slot"])
    columns = {**store.columns, "event": (2 + slot // 6).astype(np.uint8)}
    store = store.__class__(store.path, store.manifest, store.vocabulary, columns, store.offsets)
    recall = {}
    for given in ((), TIME):
        found = evaluate_universal(
            load_universal(), store, tmp_path / f"{len(given)}.json", given=given
        )
        assert found["protocol"]["given"] == (" and ".join(given) or "nothing")
        recall[given] = {name: figures["rec_w"] for name, figures in found["models"].items()}
    for name in ("universal", "by_hour", "mixture"):
        assert recall[TIME][name] > 0.6 > 0.4 > recall[()][name], name
    assert recall[TIME]["markov"] == recall[()]["markov"]


def test_pretraining_asks_with_the_time_given_too(tmp_path: Path) -> None:
    save_store(random_store(0, users=60), tmp_path / "data")
    settings = read_settings(
        UniversalSettings,
        None,
        [
            "out=out",
            "worlds=0",
            f"questions={json.dumps({'a': {'path': str(tmp_path / 'data'), 'rows': 200}})}",
            'questions.a.variants=["whole","timed","placed"]',
        ],
    )
    views = {view.name: view for view in read_views(settings, np.random.default_rng(0))}
    assert {f"a/{variant}/train" for variant in ("whole", "timed", "placed")} <= views.keys()
    slots = {name: view.readings.context[:, 2] for name, view in views.items()}
    assert not np.array_equal(np.unique(slots["a/timed/valid"]), np.unique(slots["a/whole/valid"]))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    habits().to_csv(tmp_path / "log.csv", index=False)
    columns = ["--user", "who", "--time", "when", "--event", "what", "--location", "where"]
    command = ["predict", "universal", str(tmp_path / "log.csv"), "--json", "--top-k", "1"]
    saved = ["--save", str(tmp_path / "counted")]
    assert main([*command, *columns, "--at", EVENING, *saved]) == 0
    asked_now = json.loads(capsys.readouterr().out)
    again = ["predict", str(tmp_path / "counted"), "--json", "--top-k", "1"]
    assert main([*again, "--at", EVENING]) == 0
    assert json.loads(capsys.readouterr().out) == asked_now
    assert main(again) != 0
    assert "say which time is asked about" in capsys.readouterr().err
    assert main([*command, *columns, "--at", EVENING, "--location-now", "place 1"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 20
