"""States of a trained model's users: as good as their whole histories, however they grew and
wherever they were kept; refused where they do not belong.

Counts are equal to the bit, logits to 1e-5: a window stands in another place of another batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import behavegpt
from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.network import BaselineForBehaviorPrediction
from behavegpt.checksums import seal
from behavegpt.data.memory_counts import count_store
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.memory_state import pack
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import UserState
from behavegpt.demo import DEMO_SCHEMA, online_retail
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.history_logits import history_logits
from behavegpt.ingest.prepare import prepare
from behavegpt.io import read_json, write_json
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.predictor import Predictor
from behavegpt.training.model_folder import save_model
from tests.helpers import random_store

WINDOW = 16
MODELS: dict[str, dict[str, Any]] = {
    "memory": {"memory": True},
    "memory, no blocks": {"memory": True, "num_hidden_layers": 0},
    "memory, learned positions": {"memory": True, "position_encoding": "learned"},
    "plain": {},
    "history head": {"history_head": True},
    "gru with memory": {"memory": True, "architecture": "gru"},
    "sasrec": {"architecture": "sasrec"},
}


def made(store: EventStore, seed: int = 0, **shape: Any) -> Predictor:
    """A predictor whose weights are all random, so that every part matters."""
    baseline = "architecture" in shape
    torch.manual_seed(seed)
    config = (BaselineConfig if baseline else BehaveGPTConfig)(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        memory_experts=list(EXPERTS) if shape.get("memory") else None,
        **{"embedding_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"max_length": WINDOW}
        | shape,
    )
    model = (BaselineForBehaviorPrediction if baseline else BehaveGPTForBehaviorPrediction)(config)
    counts = torch.tensor(store.behaviors.counts)
    model.set_prior(counts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.counts = count_store(store) if config.memory else None
    return Predictor(model, EventTokenizer.from_store(store, WINDOW))


def histories(store: EventStore) -> EncodedHistories:
    columns = {name: np.asarray(x).astype(np.int64) for name, x in store.columns.items()}
    columns["behavior"] = np.asarray(store.column("behavior")).astype(np.int64)
    users = pa.array([f"u{i:03}" for i in range(len(store.offsets) - 1)], pa.string())
    return EncodedHistories(users, store.offsets, columns, {}, {})


def cut(known: EncodedHistories, users: np.ndarray, low: np.ndarray, high: np.ndarray) -> Any:
    """Events low .. high - 1 (n,) of some users (n,)."""
    index = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
    columns = {name: values[index] for name, values in known.columns.items()}
    offsets = np.cumsum([0, *(high - low)])
    return EncodedHistories(known.users.take(users), offsets, columns, {}, {})


def logits_of(predictor: Predictor, asked: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (n, K), and what the counts say."""
    encoded, memory, _ = predictor._asked(asked)
    logits = np.empty((len(encoded.users), predictor.model.config.num_behaviors), np.float32)
    for users, values in history_logits(predictor.model, encoded, memory, lambda: None):
        logits[users] = values
    told = {} if memory is None else memory.at(encoded.offsets[1:] - 1)
    return logits, {name: values.numpy() for name, values in told.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("turns", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_interleavings_equal_whole_histories(name: str, turns: int, tmp_path: Path) -> None:
    """In each turn one of many users goes on by one to five events; after each, the state answers
    as the history does. Now and then all states are kept on the disk, or a user begins anew."""
    store = random_store(5, users=60, longest=70, behaviors=9)
    predictor, known = made(store, **MODELS[name]), histories(store)
    rng, length = np.random.default_rng(1), np.diff(store.offsets)
    labels = known.users.to_pylist()
    done, states = np.zeros(len(length), np.int64), dict[str, UserState]()
    beyond = 0
    for number in range(turns // 40):
        if number % 7 == 6:
            kept = predictor.save_states(tmp_path / "kept", states.values())
            states = dict(predictor.with_states(kept).users)
        users = np.sort(rng.choice(len(length), 40, replace=False))
        for user in users[done[users] == length[users]]:
            done[user] = 0
        begin = store.offsets[users]
        low, high = done[users], np.minimum(done[users] + rng.integers(1, 6, 40), length[users])
        for user, first, last in zip(users, begin + low, begin + high, strict=True):
            label = labels[user]
            if not done[user]:
                states[label] = predictor.state(label, new=True)
            new = {column: values[first:last] for column, values in known.columns.items()}
            predictor.users.spec.take_up(states[label], new)
        done[users] = high
        beyond += int((high > WINDOW).sum())
        found, told = logits_of(predictor, [states[labels[user]] for user in users])
        expected, read = logits_of(predictor, cut(known, users, begin, begin + high))
        assert np.abs(found - expected).max() <= 1e-5
        for part, values in read.items():
            assert told[part].tobytes() == values.tobytes(), part
    assert beyond > turns / 20, "windows moved"


def table(people: int = 12, each: int = 40, seed: int = 0) -> pd.DataFrame:
    """A log in the labels of `random_store`; some events of a user are simultaneous."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.choice(30 * 86400, (people, each)), axis=1) // 1800 * 1800
    return pd.DataFrame(
        {
            "u": np.repeat([f"p{i:02}" for i in range(people)], each),
            "t": (pd.Timestamp("2024-03-01") + pd.to_timedelta(seconds.ravel(), unit="s")).strftime(
                "%F %T"
            ),
            "e": rng.choice([f"event{i}" for i in range(13)], people * each),  # one is unknown
            "l": rng.choice([f"location{i}" for i in range(4)], people * each),
            "b": rng.choice([f"behavior{i}" for i in range(5)], people * each),
        }
    )


@pytest.fixture(scope="module", params=["memory", "plain"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return made(random_store(0), **MODELS[request.param])


def same(one: Any, other: Any) -> bool:
    return bool(
        one.users.to_pylist() == other.users.to_pylist()
        and np.allclose(one.probabilities, other.probabilities, atol=1e-6)
        and (one.labels == other.labels).all()
    )


def test_updates_of_raw_events(predictor: Predictor) -> None:
    """Event by event, several at a time, and a whole history at once; in labels, not in ids."""
    log = table(people=6, each=2 * WINDOW)
    for user, history in log.groupby("u"):
        rows: list[dict[str, Any]] = history.drop(columns="u").to_dict("records")
        state = predictor.state(str(user), rows[0])
        groups = [list(group.index - history.index[0]) for _, group in history[1:].groupby("t")]
        for number, group in enumerate(groups):
            events = [rows[i] for i in group]
            predictor.update(state, events if len(events) > 1 or number % 2 else events[0])
        assert state.events == len(rows) and state.recent.shape[1] == WINDOW
        if len(rows) - 1 == sum(map(len, groups)) and rows[0]["t"] != rows[1]["t"]:
            assert same(predictor.predict(state, 5), predictor.predict(history, 5))
            assert same(
                predictor.predict(predictor.state(str(user), rows)), predictor.predict(history)
            )


def test_states_are_kept_in_a_folder(predictor: Predictor, tmp_path: Path) -> None:
    log = table()
    known = predictor.with_states(log)
    assert len(known.users) == 12 and not predictor.users
    states = [known.state(user) for user in known.users]
    assert same(known.predict(states), predictor.predict(log))

    folder = known.save_states(tmp_path / "kept")
    again = predictor.with_states(folder)
    assert list(again.users) == list(known.users)
    for user in known.users:
        one, other = known.state(user), again.state(user)
        assert one.events == other.events and np.array_equal(one.recent, other.recent)
        if one.past is not None and other.past is not None:
            of_one, of_other = pack(one.past), pack(other.past)
            assert all(of_one[name].tobytes() == of_other[name].tobytes() for name in of_one)
    first = (folder / "users.safetensors").read_bytes()
    again.save_states(folder)  # replaces its own kind
    assert (folder / "users.safetensors").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json",
        "users.json",
        "users.safetensors",
    ]
    again.update(again.state("p03"), EVENT)
    assert again.state("p03").events == 40, "what is known does not change"
    assert len(predictor.with_states(again.save_states(tmp_path / "none", [])).users) == 0


EVENT = {"t": "2024-06-01 08:10:00", "e": "event3", "l": "location1", "b": "behavior2"}
MISTAKES: dict[str, Any] = {
    "no event to take up": [],
    "comes after one at 2024-0": EVENT | {"t": "2023-01-01 00:00:00"},
    "cannot be used|read": EVENT | {"t": "yesterday"},
    "events of 'p01' for the state of user 'p00'": EVENT | {"u": "p01"},
    "'l'": {name: value for name, value in EVENT.items() if name != "l"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_events_that_cannot_be_taken_up_change_nothing(predictor: Predictor, message: str) -> None:
    state = predictor.state("p00", table()[:40].drop(columns="u").to_dict("records"))
    before = predictor.predict(state)
    with pytest.raises(DataError, match=message):
        predictor.update(state, MISTAKES[message])
    assert state.events == 40 and same(predictor.predict(state), before)


def test_states_of_another_model_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    folder = predictor.with_states(table()).save_states(tmp_path / "kept")
    others = {
        "vocabulary": made(random_store(1), memory=True),
        "window": made(random_store(0), memory=True, max_length=12),
        "counts": made(random_store(0, split=(0.5, 0.8)), memory=True),
        "memory": made(random_store(0), memory=predictor.model.counts is None),
    }
    for other in others.values():
        with pytest.raises(CheckpointError, match="of another model"):
            other.with_states(folder)
        with pytest.raises(DataError, match="another model's"):
            other.predict(predictor.state("p00", EVENT))
    # with other weights alone they are as good
    shape = {"memory": predictor.model.counts is not None}
    trained_on = made(random_store(0), seed=1, **shape).with_states(folder)
    assert same(trained_on.predict(list(trained_on.users.values())), trained_on.predict(table()))
    universal = behavegpt.load("universal").fit_tables(table(), user="u", time="t", event="e")
    with pytest.raises(DataError, match="another model's"):
        predictor.predict(universal.state("p00"))


@pytest.mark.parametrize("name", ["users.safetensors", "users.json"])
def test_a_damaged_folder_is_refused(predictor: Predictor, tmp_path: Path, name: str) -> None:
    folder = predictor.with_states(table()).save_states(tmp_path / "kept")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BehaveGPTError, match=name):
        predictor.with_states(folder)


def test_a_format_of_later_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    folder = predictor.with_states(table()).save_states(tmp_path / "kept")
    described = read_json(folder / "users.json", CheckpointError, "")
    write_json(folder / "users.json", described | {"format": 2})
    (folder / "MANIFEST.json").unlink()
    seal(folder)
    with pytest.raises(CheckpointError, match="another model"):
        predictor.with_states(folder)


def test_what_is_unknown_is_said(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no user 'nobody' among the 0"):
        predictor.state("nobody")
    with pytest.raises(DataError, match="'somebody' has no event yet"):
        predictor.predict(predictor.state("somebody", new=True))
    mine = tmp_path / "mine"
    save_model(predictor.model, predictor.tokenizer, mine)
    with pytest.raises(ConfigError, match="holds no states"):
        predictor.save_states(mine)
    assert isinstance(behavegpt.load(mine), Predictor), "nothing was replaced"


@pytest.mark.parametrize("name", ["memory", "plain"])
def test_customers_of_a_shop(name: str, tmp_path: Path) -> None:
    """Real histories, longer than the window, with baskets of simultaneous events."""
    log = pq.read_table(online_retail()).to_pandas()
    log = log.assign(timestamp=log.timestamp.dt.strftime("%F %T"))
    count = log.user_id.value_counts()
    log = log[log.user_id.isin(count[(count > 40) & (count < 400)].index[::30])]
    log.to_csv(tmp_path / "log.csv", index=False)
    predictor = made(prepare(tmp_path / "log.csv", tmp_path / "data", DEMO_SCHEMA), **MODELS[name])
    states = []
    for user, history in log.groupby("user_id"):
        moments = np.sort(history.timestamp.unique())
        middle = str(moments[len(moments) // 2])
        rows = history.drop(columns="user_id")
        state = predictor.state(str(user), new=True)
        for part in (rows[rows.timestamp < middle], rows[rows.timestamp >= middle]):
            if len(part):
                predictor.update(state, part.to_dict("records"))
        states.append(state)
    assert len(states) > 20
    found, expected = predictor.predict(states), predictor.predict(log)
    assert found.users.to_pylist() == [str(user) for user in expected.users.to_pylist()]
    assert np.allclose(found.probabilities, expected.probabilities, atol=1e-6)
