"""Explanations: what experts add is what the mixer adds, what an event carries is what its absence
costs, and the words are true."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import behavegpt
from behavegpt.cli import main
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.demo import DEMO_SCHEMA, online_retail
from behavegpt.errors import BehaveGPTError, ConfigError, DataError
from behavegpt.zero_shot import UniversalPredictor
from tests.helpers import random_store
from tests.test_predictor import made as plain_model
from tests.test_user_states import histories
from tests.test_user_states import made as model_of

STORE = random_store(0)


@pytest.fixture(scope="module")
def retail() -> UniversalPredictor:
    rows = pd.read_parquet(online_retail())
    rows = rows[rows.user_id.isin(sorted(rows.user_id.unique())[:40])]
    return behavegpt.load("universal").fit_tables(rows, DEMO_SCHEMA)


@pytest.fixture(
    scope="module", params=["universal", "memory", "memory alone", "gru with memory", "no memory"]
)
def asked(request: pytest.FixtureRequest, retail: UniversalPredictor) -> tuple[Any, Any]:
    """A predictor and histories in its ids."""
    if request.param == "universal":
        return retail, retail.log.histories
    shape = {"memory": True} if "memory" in request.param.replace("no memory", "") else {}
    layers: dict[str, Any] = {"num_hidden_layers": 0} if "alone" in request.param else {}
    layers |= {"architecture": "gru"} if "gru" in request.param else {}
    return model_of(STORE, **shape, **layers), histories(STORE)


def without(encoded: EncodedHistories, user: int, event: int) -> EncodedHistories:
    """One user's history, without an event counted from its end (-1: with all of them)."""
    begin, end = encoded.offsets[user : user + 2]
    kept = np.arange(begin, end)
    kept = kept[kept != end - 1 - event] if event >= 0 else kept
    columns = {name: values[kept] for name, values in encoded.columns.items()}
    names = encoded.users[user : user + 1]
    return EncodedHistories(names, np.array([0, len(kept)]), columns, {}, {})


def chance(predictor: Any, encoded: EncodedHistories, label: str) -> float:
    found = predictor.predict(encoded, predictor.tokenizer.behaviors.classes)
    return float(found.probabilities[0, found.labels[0].tolist().index(label)])


def test_it_explains_what_is_predicted(asked: tuple[Any, Any]) -> None:
    predictor, encoded = asked
    found, plain = predictor.explain(encoded, 3), predictor.predict(encoded, 1)
    assert found.labels.tolist() == plain.labels[:, 0].tolist()
    assert np.allclose(found.probabilities, plain.probabilities[:, 0], atol=1e-6)
    assert found.users.equals(plain.users) and len(found.because) == len(plain)


def test_an_event_carries_what_its_absence_costs(asked: tuple[Any, Any]) -> None:
    predictor, encoded = asked
    found = predictor.explain(encoded, 4)
    for user in (0, 3, len(encoded.users) - 1):
        length = int(np.diff(encoded.offsets)[user])
        label = found.labels[user]
        whole = chance(predictor, without(encoded, user, -1), label)
        for event in range(4):
            if event >= length or length == 1:
                assert np.isnan(found.effects[user, event]) and found.events[user, event] is None
                continue
            left = chance(predictor, without(encoded, user, event), label)
            expected = np.log(whole) - np.log(left)
            assert found.effects[user, event] == pytest.approx(expected, abs=2e-3)


def test_what_experts_add_is_what_the_mixer_adds(retail: UniversalPredictor) -> None:
    """Where the judge of candidates is silent, the experts make the whole contrast."""
    mixer = copy.deepcopy(retail.model.mixer)
    with torch.no_grad():
        mixer.score.weight.zero_()
        mixer.score.bias.zero_()
    silent = UniversalPredictor(replace(retail.model, mixer=mixer), retail.log)
    found = silent.explain(last=1)
    assert np.abs(found.contributions[:, -1]).max() < 1e-3
    assert np.abs(retail.explain(last=1).contributions[:, -1]).max() > 0.1

    # the contrast itself: the best class's logit over the mean of the others
    everything = silent.predict(top_k=retail.tokenizer.behaviors.classes)
    log_p = np.log(everything.probabilities.astype(float))
    weight = everything.probabilities[:, 1:] / everything.probabilities[:, 1:].sum(1, keepdims=True)
    contrast = log_p[:, 0] - (weight * log_p[:, 1:]).sum(1)
    assert np.allclose(found.contributions.sum(1), contrast, atol=2e-3)


def test_the_words_are_true(retail: UniversalPredictor) -> None:
    found, encoded = retail.explain(last=8), retail.log.histories
    assert encoded is not None
    labels = np.array(retail.tokenizer.behaviors.decode(encoded.columns["behavior"]), object)
    seen = set()
    for user, text in enumerate(found.because):
        own = labels[encoded.offsets[user] : encoded.offsets[user + 1]]
        it = own == found.labels[user]
        for pattern, count in {
            r"it followed '.*' (\d+) of": int((it[1:] & (own[:-1] == own[-1])).sum()),
            r"(\d+) of the user's": int(it.sum()),
            r"(\d+) of the last": int(it[-10:].sum()),
        }.items():
            for told in re.findall(pattern, text):
                assert int(told) == count > 0
                seen.add(pattern)
        best = np.nan_to_num(found.effects[user], nan=-np.inf).argmax()
        assert ("above all for" in text) == (found.effects[user, best] > 0.1)
    assert len(seen) >= 2
    assert np.nonzero(found.contributions[:, :-1] > 0)[0].size


def test_filters_and_users_of_whom_nothing_is_left() -> None:
    model = plain_model()
    log = pd.DataFrame({"u": ["a", "a", "b"], "t": pd.date_range("2020", periods=3), "e": "event1"})
    log = log.assign(l="location1", b=["behavior1", "behavior2", "behavior3"])
    found = model.explain(log, among=["behavior3"], exclude_seen=True)
    assert found.labels.tolist() == ["behavior3", None] and found.experts == ()
    assert found.to_table()["user"].to_pylist() == ["a"]


REFUSED: dict[str, tuple[Any, type[BehaveGPTError], str]] = {
    "too many": (lambda m: m.explain(last=65), ConfigError, "last"),
    "thresholds": (lambda m: m.explain(thresholds=True), ConfigError, "thresholds"),
    "states": (lambda m: m.explain([m.state(next(iter(m.users)))]), DataError, "holds no history"),
    "label": (lambda m: m.explain(among=["bagg"]), ConfigError, "Did you mean 'bag'"),
}


@pytest.mark.parametrize(("ask", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(retail: UniversalPredictor, ask: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        ask(retail)


def test_a_saved_log_has_no_histories(retail: UniversalPredictor, tmp_path: Path) -> None:
    saved = behavegpt.load(retail.save(tmp_path / "counted"))
    with pytest.raises(ConfigError, match="no histories"):
        saved.explain()
    rows = [
        {
            "timestamp": "2011-05-01 10:00",
            "event": "22139",
            "family": "bag",
            "location": "1",
            "line": 1,
        }
    ]
    assert len(saved.explain(rows * 3)) == 1


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = pd.date_range("2024-03-01", periods=24, freq="5h")
    log = pd.DataFrame({"who": list("ab" * 12), "what": list("xyyx" * 6), "when": times})
    log.to_csv(tmp_path / "log.csv", index=False)
    command = ["predict", "universal", str(tmp_path / "log.csv"), "--explain"]
    columns = ["--user", "who", "--time", "when", "--event", "what"]
    assert main([*command, *columns, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["user"] for row in rows] == ["a", "b"]
    assert list(rows[0]) == ["user", "behavior", "probability", "because", "experts", "events"]
    assert all(row["because"] for row in rows)
    assert main([*command, "4", *columns, "--out", str(tmp_path / "why.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "why.csv")) == 2
    assert main([*command, "65", *columns]) == 2
