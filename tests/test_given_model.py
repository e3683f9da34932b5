"""Models that are given the time or the place of the event that they predict, through the verbs:
they know it, and nothing else of that event; who does not tell it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behavegpt.cli import main
from behavegpt.data.given import GIVEN, given_fields
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.embeddings.pooling import NAMES
from behavegpt.errors import ConfigError, DataError
from behavegpt.evaluation import compare
from behavegpt.evaluation_summary import metrics_table
from behavegpt.export_model import export_model
from behavegpt.generation.constraints import learn_links
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction, EventCache
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.report import write_model_card, write_report
from behavegpt.trained_folder import load
from behavegpt.training.evaluate import score
from tests.helpers import random_store
from tests.runs import save_store, tiny_settings

BOTH = ["time", "location"]
HEADS = {"next_heads": ["event", "location", "gap", "slot"]}
MODELS: dict[str, dict[str, Any]] = {
    "time": {"given": ["time"], **HEADS},
    "both": {"given": BOTH, **HEADS},
    "memory, time": {"given": ["time"], "memory": True, **HEADS},
    "memory, both": {"given": BOTH, "memory": True, **HEADS},
    "counts alone": {
        "given": BOTH,
        "memory": True,
        "num_hidden_layers": 0,
        "next_heads": ["event"],
    },
    "gru": {"given": ["time"], "architecture": "gru"},
    "sasrec with memory": {"given": ["time"], "architecture": "sasrec", "memory": True},
}
GENERATE = ("time", "both", "memory, time", "memory, both", "counts alone")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    save_store(random_store(0), folder / "data")
    return folder


def train(place: Path, name: str) -> Path:
    """The run of a kind, trained once."""
    if (place / name / "model").exists():
        return place / name
    settings = tiny_settings(place / "data", place / name, steps=4)
    settings["model"] |= MODELS[name]
    if "architecture" in settings["model"]:
        settings["loss"] = {"name": "cross_entropy"}
    return pretrain(PretrainSettings.model_validate(settings))


@pytest.fixture(params=MODELS)
def run(request: pytest.FixtureRequest, place: Path) -> Path:
    return train(place, request.param)


def histories(store: EventStore) -> EncodedHistories:
    """All events of a store, as its tokenizer would encode them."""
    columns = {name: np.asarray(x).astype(np.int64) for name, x in store.columns.items()}
    return EncodedHistories(store.users(), store.offsets, columns, {}, {})


def scored(predictor: Predictor, store: EventStore) -> tuple[torch.Tensor, np.ndarray]:
    parts = list(score(predictor.model, store, 2))
    return torch.cat([p.logits for p in parts]), torch.cat([p.row for p in parts]).numpy()


def test_what_is_given_and_nothing_else_of_the_target_changes_the_logits(
    run: Path, place: Path
) -> None:
    """The last events of all users: each is a target, and no input of another one."""
    store, predictor = open_store(place / "data"), load(run)
    assert predictor.given
    before, rows = scored(predictor, store)
    last = np.isin(rows, store.offsets[1:] - 1)
    assert last.sum() > 5
    for field in ("behavior", "event", "location", "weekday", "slot"):
        column = np.array(store.columns[field])
        ends = store.offsets[1:] - 1
        sizes = {"weekday": 7, "slot": 48, "behavior": 7, "event": 14, "location": 6}
        low = 0 if field in ("weekday", "slot") else 2
        column[ends] = low + (column[ends] + 2) % (sizes[field] - low)
        changed = store.__class__(
            store.path,
            store.manifest,
            store.vocabulary,
            {**store.columns, field: column},
            store.offsets,
        )
        after, again = scored(predictor, changed)
        assert np.array_equal(rows, again)
        known = field in given_fields(predictor.given)
        assert torch.equal(before[last], after[last]) is not known, field
        assert torch.equal(before[~last], after[~last]), field


def test_prediction_and_evaluation_say_the_same(run: Path, place: Path) -> None:
    """Histories that are cut off before a user's last test event, which is told."""
    store, predictor = open_store(place / "data"), load(run)
    logits, rows = scored(predictor, store)
    known, checked = histories(store), 0
    for user in range(len(store.offsets) - 1):
        begin, end = store.offsets[user], store.offsets[user + 1]
        found = np.flatnonzero(rows == end - 1)
        if not len(found) or end - begin > predictor.model.config.max_length:
            continue
        cut = EncodedHistories(
            known.users.slice(user, 1),
            np.array([0, end - 1 - begin]),
            {name: values[begin : end - 1] for name, values in known.columns.items()},
            {},
            {},
        )
        seconds = int(store.columns["time"][end - 1])
        time = np.datetime64(seconds + 4 * 86400, "s")  # the store's weeks begin with its first day
        place_id = int(store.columns["location"][end - 1])
        label = store.vocabulary["location"].decode(np.array([place_id]))[0] or "elsewhere"
        asked = {"at": time, "location": label}
        told = {k: v for k, v in asked.items() if {"at": "time"}.get(k, k) in predictor.given}
        answer = predictor.predict(cut, top_k=5, **told)
        expected = logits[found[0]].softmax(-1).topk(5)
        np.testing.assert_allclose(answer.probabilities[0], expected.values, rtol=1e-4)
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, 'this model is given the time of the event .* at="2026-11-28 18:30"'),
        (
            {"at": "2026-11-28 18:30", "location": "location1"},
            "given the time alone .* `location` would",
        ),
        ({"at": "soon"}, "'soon' is not a time"),
    ],
)
def test_questions_that_do_not_fit_are_refused(
    place: Path, asked: dict[str, Any], message: str
) -> None:
    predictor = load(train(place, "time"))
    with pytest.raises((ConfigError, DataError), match=message):
        predictor.predict(histories(open_store(place / "data")), **asked)


def test_a_model_that_is_given_nothing_refuses_a_time(place: Path) -> None:
    settings = tiny_settings(place / "data", place / "plain", steps=2)
    predictor = load(pretrain(PretrainSettings.model_validate(settings)))
    assert predictor.given == ()
    with pytest.raises(ConfigError, match=r"given nothing .* `at` would change nothing; remove it"):
        predictor.predict(histories(open_store(place / "data")), at="2026-11-28 18:30")


def test_every_table_states_what_was_given(place: Path) -> None:
    run, store = train(place, "memory, both"), open_store(place / "data")
    result = compare(load(run), store, run / "eval" / "metrics.json")
    assert result["protocol"]["given"] == "time and location"
    assert "time and location, which are given" in result["protocol"]["task"]
    assert metrics_table(result)[2].count("; given: time and location")
    assert {"behavegpt", "user_by_hour", "mixture"} <= result["models"].keys()
    assert (run / "eval" / "examples.json").is_file()
    page = write_report(run).read_text()
    card = write_model_card(run, place / "data").read_text()
    for text in (page, card):
        assert "Given: time and location" in text and 'at="2026-11-28 18:30"' in text
        assert "it does not know when or where" not in text


@pytest.mark.parametrize("name", GENERATE)
@pytest.mark.parametrize("policy", ["auto", "observed", "typical"])
def test_times_and_places_are_drawn_first_then_the_behavior_given_them(
    place: Path, name: str, policy: str
) -> None:
    """Drawn again with another behavior, event by event: what was told of each is its own time and
    place, with the cache and without, one event at a time and all together."""
    predictor, store = load(train(place, name)), open_store(place / "data")
    links = learn_links(predictor.model, store)
    known = histories(store)
    options: dict[str, Any] = {"seed": 3, "links": links, "probabilities": 5}
    if policy != "auto":
        options |= {"time": policy, "place": policy}
    found = predictor.generate(known, steps=4, **options)
    assert len(found) == 4 * len(known.users)
    # the first event again, by prediction of the time and the place that were drawn
    first = found.columns["step"] == 0
    user = found.columns["user"][first]
    fields = {"weekday", "slot", "location"} & found.columns.keys()
    labels = store.vocabulary["location"].decode(found.columns["location"][first])
    names = [known.users[int(u)].as_py() for u in user]
    at = {
        n: np.datetime64(int(t), "s")
        for n, t in zip(names, found.columns["time"][first], strict=True)
    }
    where = {n: label or "elsewhere" for n, label in zip(names, labels, strict=True)}
    told = {"at": at, "location": where}
    told = {k: v for k, v in told.items() if {"at": "time"}.get(k, k) in predictor.given}
    answer = predictor.predict(known, top_k=5, **told)
    assert fields
    np.testing.assert_allclose(
        found.probability[first], answer.probabilities[user], rtol=1e-3, atol=1e-5
    )
    if policy == "auto" and "location" in predictor.given:
        drawn = found.policies["location"]
        assert drawn in ("head, before the behavior, which is given it", "observed")


@pytest.mark.parametrize("name", ["time", "memory, both"])
def test_futures_are_the_same_with_the_cache_and_without(place: Path, name: str) -> None:
    predictor, store = load(train(place, name)), open_store(place / "data")
    known, links = histories(store), learn_links(predictor.model, store)
    one, other = (
        predictor.generate(known, steps=20, seed=1, links=links, cache=cache)
        for cache in (True, False)
    )
    for column in ("behavior", "event", "location", "slot", "time"):
        assert np.array_equal(one.columns[column], other.columns[column]), column


@pytest.mark.parametrize("name", ["time", "memory, both", "counts alone"])
def test_states_answer_as_whole_histories(place: Path, name: str, tmp_path: Path) -> None:
    """Event by event, kept on the disk in between, and asked about two moments."""
    predictor, store = load(train(place, name)), open_store(place / "data")
    known = histories(store)
    states = {}
    for number, user in enumerate(known.users.to_pylist()):
        states[user] = predictor.state(user, new=True)
        for at in range(store.offsets[number], store.offsets[number + 1]):
            event = {field: values[at : at + 1] for field, values in known.columns.items()}
            predictor.users.spec.take_up(states[user], event)
    kept = predictor.with_states(predictor.save_states(tmp_path / "kept", states.values()))
    answers = []
    for at, location in (("2024-06-03 08:10", "location1"), ("2024-06-08 20:10", "location2")):
        asked = {"at": at, "location": location}
        told = {k: v for k, v in asked.items() if {"at": "time"}.get(k, k) in predictor.given}
        whole = predictor.predict(known, top_k=5, **told)
        for found in (
            predictor.predict(list(states.values()), top_k=5, **told),
            kept.predict([kept.state(user) for user in states], top_k=5, **told),
        ):
            np.testing.assert_allclose(found.probabilities, whole.probabilities, atol=1e-5)
        answers.append(whole.probabilities)
    assert not np.allclose(*answers)
    with pytest.raises(ConfigError, match="say which time is asked about"):
        predictor.predict(list(states.values()))


def test_vectors_know_no_target(place: Path) -> None:
    predictor, store = load(train(place, "memory, both")), open_store(place / "data")
    assert predictor.embed(histories(store), pool=["last", "mean"]).vectors.shape[0] == 20
    with pytest.raises(ConfigError, match="the part 'behaviors' is what the model predicts"):
        predictor.embed(histories(store), pool=list(NAMES))


def test_what_cannot_be_is_refused_by_name(place: Path, tmp_path: Path) -> None:
    predictor = load(train(place, "time"))
    with pytest.raises(ConfigError, match=r"given the time of the event .* cannot be exported"):
        export_model(predictor, tmp_path / "graph", "torch")
    with pytest.raises(ValueError, match=r"Predictor\.generate, which draws them first"):
        predictor.model.generate(torch.ones(1, 2, dtype=torch.long))
    ids = torch.ones(1, 3, dtype=torch.long)
    inputs = dict.fromkeys(("input_ids", "weekday_ids", "slot_ids", "location_ids"), ids)
    with pytest.raises(ValueError, match="give their ids at the 3 predicted positions"):
        predictor.model(**inputs)
    cached = predictor.model(**inputs, past_key_values=EventCache(predictor.model.config))
    assert cached.logits is None and "gap" in cached.next_logits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"given": ["hour"]}, "given may name time and location"),
        ({"given": ["time", "time"]}, "given may name time and location"),
        ({"given": "time"}, "given"),
        ({"given": ["time"], "history_head": True}, "given has no effect on history_head"),
        ({"given": ["time"], "inputs": "event_only"}, "needs these fields among the inputs"),
        (
            {"given": ["time"], "inputs": "event_only", "architecture": "gru"},
            "needs these fields among the inputs",
        ),
    ],
)
def test_settings_that_contradict_each_other(
    place: Path, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    settings = tiny_settings(place / "data", tmp_path / "run", steps=1)
    settings["model"] |= model
    with pytest.raises(ConfigError, match=message):
        pretrain(PretrainSettings.model_validate(settings))


def test_a_log_without_places_gives_none(tmp_path: Path) -> None:
    store = random_store(1)
    schema = store.schema.model_copy(update={"location": None})
    columns = {name: x for name, x in store.columns.items() if name != "location"}
    vocabulary = {name: v for name, v in store.vocabulary.items() if name != "location"}
    there = {name: kind for name, kind in store.manifest.columns.items() if name != "location"}
    hashes = {name: v for name, v in store.manifest.vocabulary.items() if name != "location"}
    changed = {"event_schema": schema, "columns": there, "vocabulary": hashes}
    manifest = store.manifest.model_copy(update=changed)
    nowhere = store.__class__(store.path, manifest, vocabulary, columns, store.offsets)
    save_store(nowhere, tmp_path / "data")
    settings = tiny_settings(tmp_path / "data", tmp_path / "run", steps=1)
    settings["model"] |= {"given": BOTH, "memory": True}
    with pytest.raises(ConfigError, match="the log has no location"):
        pretrain(PretrainSettings.model_validate(settings))


def test_before_training_a_network_ignores_what_it_is_given() -> None:
    """So that a model which starts from other weights is no worse than they are."""
    shape: dict[str, Any] = {"embedding_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    plain = BehaveGPTForBehaviorPrediction(BehaveGPTConfig(**shape)).eval()
    torch.manual_seed(0)
    model = BehaveGPTForBehaviorPrediction(BehaveGPTConfig(**shape, given=["time"])).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.ones(1, 3, dtype=torch.long)
    inputs = dict.fromkeys(("input_ids", "weekday_ids", "slot_ids", "location_ids"), ids)
    given = {"weekday": torch.tensor([1, 2, 3]), "slot": torch.tensor([4, 5, 6])}
    assert torch.equal(plain(**inputs).logits, model(**inputs, given=given).logits)
    assert GIVEN == ("time", "location")


def test_the_commands_take_a_time_and_a_place(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(place, "memory, both")
    log = tmp_path / "log.csv"
    log.write_text("u,t,e,l\nann,2024-05-01 08:00,event1,location1\nbob,2024-05-01 09:00,event2,\n")
    command = ["predict", str(run), str(log), "--json", "--top-k", "1"]
    asked = ["--at", "2024-05-02 18:30", "--location-now", "location2"]
    assert main([*command, *asked]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["user"] for row in rows] == ["ann", "bob"]
    assert main([*command, *asked[:2]]) != 0
    assert "--location-now PLACE" in capsys.readouterr().err
    assert main([*command, *asked[:3], "nowhere at all"]) == 0
    assert "unknown labels: location: 3" in capsys.readouterr().err
    data = str(place / "data")
    assert main(["evaluate", str(run), data, "--given", "time"]) != 0
    assert "model.given was fixed" in capsys.readouterr().err
