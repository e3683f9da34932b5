"""A trained model with memory through the verbs: saved, opened, asked, evaluated, drawn from; and
what refuses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from behavegpt.data.memory_files import FILE
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.embeddings.export import ExportSettings, export
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.generation.constraints import learn_links
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load
from behavegpt.training.evaluate import score
from behavegpt.training.model_folder import Trained
from behavegpt.universal.model import load_universal
from behavegpt.user_embeddings import UserEmbeddings
from tests.helpers import random_store
from tests.runs import save_store, tiny_settings

MODELS: dict[str, dict[str, Any]] = {
    "behavegpt": {"next_heads": ["event", "location", "gap"]},
    "no blocks": {"num_hidden_layers": 0},
    "gru": {"architecture": "gru"},
    "hstu": {"architecture": "hstu"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    save_store(random_store(0), folder / "data")
    return folder


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, place: Path) -> Path:
    """A model folder of each kind."""
    settings = tiny_settings(place / "data", place / request.param, steps=4)
    settings["model"] |= {"memory": True} | MODELS[request.param]
    if "architecture" in settings["model"]:
        settings["loss"] = {"name": "cross_entropy"}
    return pretrain(PretrainSettings.model_validate(settings | {"init": "universal"})) / "model"


def histories(store: EventStore) -> EncodedHistories:
    """All events of a store, as its tokenizer would encode them."""
    columns = {name: np.asarray(x).astype(np.int64) for name, x in store.columns.items()}
    columns["behavior"] = np.asarray(store.column("behavior")).astype(np.int64)
    return EncodedHistories(store.users(), store.offsets, columns, {}, {})


def test_evaluation_and_prediction_say_the_same(trained: Path, place: Path) -> None:
    """The whole history, not the window: at a user's last test event, and cut off there."""
    store, predictor = open_store(place / "data"), load(trained)
    parts = list(score(predictor.model, store, 2))
    logits, rows = torch.cat([p.logits for p in parts]), torch.cat([p.row for p in parts])
    user = np.searchsorted(store.offsets, rows.numpy(), side="right") - 1
    known = histories(store)
    checked = 0
    # the windows are the same
    for n in np.flatnonzero(
        rows.numpy() - store.offsets[user] <= predictor.model.config.max_length
    )[:6]:
        begin, end = int(store.offsets[user[n]]), int(rows[n])
        one = EncodedHistories(
            pa.array(["u"]),
            np.array([0, end - begin]),
            {k: x[begin:end] for k, x in known.columns.items()},
            {},
            {},
        )
        answer = predictor.predict(one, top_k=predictor.model.config.num_behaviors)
        expected = logits[n].softmax(0).sort(descending=True)
        assert np.allclose(answer.probabilities[0], expected.values.numpy(), atol=1e-5)
        checked += 1
    assert checked > 2


def test_the_whole_past_counts(trained: Path, place: Path) -> None:
    """Events before the window change the answer, and who else is asked does not."""
    store, predictor = open_store(place / "data"), load(trained)
    known, length = histories(store), np.diff(store.offsets)
    longest = int(length.argmax())
    begin, end = int(store.offsets[longest]), int(store.offsets[longest + 1])
    assert end - begin > predictor.model.config.max_length + 20
    answers = []
    for first in (begin, end - predictor.model.config.max_length):
        cut = {k: x[first:end] for k, x in known.columns.items()}
        one = EncodedHistories(pa.array(["u"]), np.array([0, end - first]), cut, {}, {})
        answers.append(predictor.predict(one).probabilities[0])
    together = predictor.predict(known).probabilities[longest]
    assert np.allclose(together, answers[0], atol=1e-5) and not np.allclose(
        together, answers[1], atol=1e-5
    )


@pytest.mark.parametrize("trained", ["behavegpt", "no blocks"], indirect=True)
def test_drawn_events_are_taken_up(trained: Path, place: Path) -> None:
    """With a cache, without one, and by reading the history with what was drawn."""
    store, predictor = open_store(place / "data"), load(trained)
    known, steps = histories(store), 6
    predictor.links = learn_links(predictor.model, store)
    options = {
        "steps": steps,
        "temperature": 0,
        "probabilities": 3,
        "time": "observed",
        "place": "observed",
    }
    cached, again = (predictor.generate(known, cache=cache, **options) for cache in (True, False))
    for name, values in cached.columns.items():
        assert np.array_equal(values, again.columns[name]), name
    assert np.allclose(cached.probability, again.probability, atol=1e-5)
    length = np.diff(known.offsets)
    # whose window holds all
    short = np.flatnonzero(length + steps <= predictor.model.config.max_length)
    users = np.arange(len(length)) if predictor.model.config.num_hidden_layers == 0 else short
    assert len(users) > 2
    drawn = {name: values.reshape(len(length), steps) for name, values in cached.columns.items()}
    for step in (0, 2, steps - 1):
        answer = predictor.predict(continued(known, drawn, users, step), top_k=3).probabilities
        assert np.allclose(
            answer, cached.probability.reshape(len(length), steps, 3)[users, step], atol=1e-5
        ), step


def continued(
    known: EncodedHistories, drawn: dict[str, np.ndarray], users: np.ndarray, steps: int
) -> EncodedHistories:
    """Histories of some users with their first drawn events behind them."""
    columns = {
        name: np.concatenate(
            [
                part
                for u in users
                for part in (
                    values[known.offsets[u] : known.offsets[u + 1]],
                    drawn[name][u, :steps],
                )
            ]
        )
        for name, values in known.columns.items()
        if name in drawn
    }
    length = np.diff(known.offsets)[users] + steps
    labels = known.users.take(pa.array(users))
    return EncodedHistories(labels, np.concatenate([[0], np.cumsum(length)]), columns, {}, {})


@pytest.mark.parametrize("trained", ["behavegpt"], indirect=True)
def test_a_folder_without_its_counts_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    (folder / FILE).unlink()
    with pytest.raises(CheckpointError, match="memory"):
        load(folder)


@pytest.mark.parametrize("trained", ["behavegpt"], indirect=True)
def test_vectors_of_probabilities_know_the_whole_past(
    trained: Path, place: Path, tmp_path: Path
) -> None:
    predictor, known = load(trained), histories(open_store(place / "data"))
    vectors = predictor.embed(known, pool=("behaviors",)).vectors
    expected = predictor.predict(known, top_k=predictor.model.config.num_behaviors).probabilities
    assert np.allclose(np.sort(np.exp(vectors), axis=1)[:, ::-1], expected, atol=1e-5)
    out, raw = tmp_path / "vectors", {"scale": "none", "dtype": "float32", "block_users": 7}
    settings = ExportSettings.model_validate(raw | {"pool": ("behaviors",)})
    export(Trained(predictor.model, predictor.tokenizer), [place / "data"], out, settings)
    assert np.allclose(UserEmbeddings.load(out).vectors, vectors, atol=1e-5)


def test_training_that_spoils_the_universal_start_gives_it_back(place: Path) -> None:
    settings = tiny_settings(
        place / "data", place / "spoilt", steps=4, lr=3.0, select="cross_entropy"
    )
    settings["model"] |= {"memory": True, "num_hidden_layers": 0}
    settings["loss"] = {"name": "cross_entropy"}
    run = pretrain(PretrainSettings.model_validate(settings | {"init": "universal"}))
    assert json.loads((run / "run.json").read_text())["best_step"] == 0
    universal = load_universal().mixer.state_dict()
    kept = load(run / "model").model.head.memory.mixer.state_dict()
    assert all(torch.equal(values, kept[name]) for name, values in universal.items())


def test_only_a_mixer_can_start_universal(place: Path, tmp_path: Path) -> None:
    settings = tiny_settings(place / "data", tmp_path / "run", steps=1) | {"init": "universal"}
    with pytest.raises(ConfigError, match=r"model\.memory=true"):
        pretrain(PretrainSettings.model_validate(settings))


def test_a_history_head_of_before_is_read_as_it_was(place: Path) -> None:
    """Folders of before name no memory in their config."""
    settings = tiny_settings(place / "data", place / "history", steps=3)
    settings["model"] |= {"history_head": True}
    folder = pretrain(PretrainSettings.model_validate(settings)) / "model"
    known = histories(open_store(place / "data"))
    before = load(folder).predict(known).probabilities
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("memory") is False and config.pop("memory_experts") is None
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "MANIFEST.json").unlink()  # sealed with the config of today
    assert np.array_equal(load(folder).predict(known).probabilities, before)
