"""States: as good as reading whole histories again, kept in a folder, refused where they do not
belong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import behavegpt
from behavegpt.checksums import seal
from behavegpt.data.schema import EventSchema
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.predictions import Predictions
from behavegpt.zero_shot import UniversalPredictor

SCHEMA = EventSchema(user="who", time="when", event="what", location="where", behavior="kind")


def table(seed: int, people: int = 30, each: int = 25) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = people * each
    # some simultaneous
    seconds = np.sort(rng.choice(50 * 86400, (people, each), replace=True), axis=1) // 60 * 60
    return pd.DataFrame(
        {
            "who": np.repeat([f"p{i:02}" for i in range(people)], each),
            "when": (
                pd.Timestamp("2024-03-01") + pd.to_timedelta(seconds.ravel(), unit="s")
            ).strftime("%F %T"),
            "what": rng.choice([f"thing {i}" for i in range(20)], rows),
            "where": rng.choice(["home", "work", "shop"], rows),
            "kind": rng.choice([f"kind {i}" for i in range(7)], rows),
        }
    )


@pytest.fixture(scope="module")
def model() -> UniversalPredictor:
    fitted = behavegpt.load("universal").fit_tables(table(0), SCHEMA)
    assert isinstance(fitted, UniversalPredictor)
    return fitted


def same(one: Predictions, other: Predictions) -> bool:
    equal = (
        np.array_equal(one.labels, other.labels)
        and one.users.to_pylist() == other.users.to_pylist()
    )
    return equal and one.probabilities.tobytes() == other.probabilities.tobytes()


def test_updates_equal_reading_the_whole_history(model: UniversalPredictor) -> None:
    """Of known and new users, event by event and several at a time, simultaneous ones together."""
    tomorrow = table(1, people=3)
    for _, history in tomorrow.groupby("who"):
        state = model.state(history.who.iloc[0], new=True)
        groups = [group for _, group in history.groupby("when")]
        for number, group in enumerate(groups):
            rows: Any = group.drop(columns="who").to_dict("records")
            model.update(state, rows if len(rows) > 1 or number % 2 else rows[0])
        assert state.events == len(history)
        assert same(model.predict(state, top_k=7), model.predict(history, top_k=7))
    everyone = model.predict(top_k=4)
    states = [model.state(user) for user in everyone.users.to_pylist()]
    assert same(model.predict(states, top_k=4), everyone)


def test_a_saved_model_goes_on_without_the_log(model: UniversalPredictor, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "counted")
    again = behavegpt.load(folder)
    assert isinstance(again, UniversalPredictor)
    assert same(again.predict(top_k=3), model.predict(top_k=3))
    later = {"when": "2024-06-01 08:10:00", "what": "thing 3", "where": "home", "kind": "kind 2"}
    one, other = (m.update(m.state("p07"), later) for m in (model, again))
    assert same(model.predict(one), again.predict(other))
    assert not same(model.predict(one), model.predict(model.state("p07"))), (
        "the log's own state is not changed"
    )
    first = (folder / "users.safetensors").read_bytes()
    model.save(folder)  # replaces its own kind
    assert (folder / "users.safetensors").read_bytes() == first
    assert np.array_equal(again.embed().vectors, model.embed().vectors)
    grown = again.save(tmp_path / "grown", [other])
    assert same(behavegpt.load(grown).predict(), model.predict(one))  # type: ignore[union-attr]


EVENT = {"when": "2024-06-01 08:10:00", "what": "thing 3", "where": "home", "kind": "kind 2"}
MISTAKES: list[tuple[Any, str]] = [
    ([], "no event to take up"),
    ([3], "a int to take up"),
    ({**EVENT, "when": "2023-01-01 00:00:00"}, "comes after one at 2024-0"),
    ({**EVENT, "when": "yesterday"}, "cannot be used|read"),
    ({**EVENT, "who": "p01"}, "events of 'p01' for the state of user 'p00'"),
    ({k: v for k, v in EVENT.items() if k != "where"}, "'where'"),
]


@pytest.mark.parametrize(("events", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_events_that_cannot_be_taken_up_change_nothing(
    model: UniversalPredictor, events: Any, message: str
) -> None:
    state = model.state("p00")
    before = model.predict(state)
    with pytest.raises(DataError, match=message):
        model.update(state, events)
    assert state.events == 25 and same(model.predict(state), before)


def test_what_is_unknown_is_said(model: UniversalPredictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no user 'nobody' among the 30"):
        model.state("nobody")
    with pytest.raises(ConfigError, match="no log has been counted yet"):
        behavegpt.load("universal").predict()
    with pytest.raises(ConfigError, match="no part 'mean'; it has last and behaviors"):
        model.embed(pool=["mean"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not a universal model"):
        model.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize(
    "name", ["users.safetensors", "users.json", "tables.safetensors", "universal.safetensors"]
)
def test_a_damaged_folder_is_refused(model: UniversalPredictor, tmp_path: Path, name: str) -> None:
    folder = model.save(tmp_path / "counted")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BehaveGPTError, match=name):
        behavegpt.load(folder)


def test_states_of_other_tables_are_refused(model: UniversalPredictor, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "counted")
    other = behavegpt.load("universal").fit_tables(table(5), SCHEMA).save(tmp_path / "other")  # type: ignore[union-attr]
    for name in ("users.safetensors", "users.json"):
        shutil.copy(other / name, folder / name)
    (folder / "MANIFEST.json").unlink()
    seal(folder)
    with pytest.raises(CheckpointError, match="states of other tables"):
        behavegpt.load(folder)


def test_vectors_of_users(model: UniversalPredictor) -> None:
    found = model.embed(pool=["last", "behaviors"])
    assert found.vectors.shape == (30, 32 + 7) and np.isfinite(found.vectors).all()
    alone = model.embed(table(0)[lambda rows: rows.who == "p03"])
    assert np.allclose(alone.vectors[0], found.vectors[3, :32], atol=1e-6)


@pytest.mark.parametrize("zone", ["", "T00:00:00.5Z"], ids=["plain", "by the database"])
def test_users_keep_their_names_however_the_log_writes_its_users(zone: str) -> None:
    """A log of whole numbers as users; a state's user may be called otherwise."""
    log = table(0).assign(who=lambda rows: rows.who.str[1:].astype(int))
    fitted = behavegpt.load("universal").fit_tables(log, SCHEMA)
    assert isinstance(fitted, UniversalPredictor) and fitted.state("7").events == 25
    for name in ("1.0", "-0", "someone"):
        state = fitted.state(name, new=True)
        fitted.update(state, EVENT | ({"when": f"2024-06-01{zone}"} if zone else {}))
        assert fitted.predict(state).users.to_pylist() == [name]
