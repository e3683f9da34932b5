"""Retired behaviors: never predicted nor drawn, still read, and everything else as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from behavegpt.cli import main
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.predictor import Predictor
from behavegpt.trained_folder import load
from behavegpt.training.model_folder import save_model
from tests.helpers import random_store
from tests.test_user_states import histories, made

STORE = random_store(0)
GONE = ["behavior1", "behavior2"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "memory": {"memory": True},
    "gru with memory": {"memory": True, "architecture": "gru"},
}


def saved(folder: Path, **shape: Any) -> Predictor:
    predictor = made(STORE, next_heads=["event", "location", "gap"], **shape)
    predictor.model.config.tokenizer_hash = predictor.tokenizer.hash
    save_model(predictor.model, predictor.tokenizer, folder)
    return load(folder, "cpu")


def first(encoded: EncodedHistories, users: int) -> EncodedHistories:
    """The histories of the first users."""
    offsets = encoded.offsets[: users + 1]
    columns = {name: values[: offsets[-1]] for name, values in encoded.columns.items()}
    return EncodedHistories(encoded.users[:users], offsets, columns, {}, {})


@pytest.mark.parametrize("shape", KINDS.values(), ids=KINDS)
def test_what_is_retired_is_never_predicted(tmp_path: Path, shape: dict[str, Any]) -> None:
    before, encoded = saved(tmp_path / "model", **shape), histories(STORE)
    for number, label in enumerate(GONE):  # one after the other: the first stays retired
        source = tmp_path / (f"without{number - 1}" if number else "model")
        out = str(tmp_path / f"without{number}")
        assert main(["vocabulary", "retire", str(source), label, "--out", out]) == 0
    after = load(tmp_path / "without1", "cpu")

    everything = before.predict(encoded, 100).to_pandas()
    left = everything[~everything.behavior.isin(GONE)]
    found = after.predict(encoded, 100).to_pandas()
    assert found.behavior.to_list() == left.behavior.to_list()
    # what is left shares their probability
    whole = left.groupby("user").probability.transform("sum")
    assert np.allclose(found.probability, left.probability / whole, atol=1e-5)
    # and they are read: the vectors are those of before
    assert np.allclose(after.embed(encoded).vectors, before.embed(encoded).vectors)
    column = STORE.schema.behavior or STORE.schema.event
    if "architecture" not in shape:  # baselines draw no futures
        few = first(encoded, 10)
        drawn, kept = (set(m.generate(few, 4).to_pandas()[column]) for m in (before, after))
        assert drawn & set(GONE) and kept.isdisjoint(GONE)
    assert set(after.explain(encoded, 2).labels).isdisjoint(GONE)


REFUSED = {
    "near miss": (["behavor1"], "Did you mean 'behavior1'"),
    "all": ([f"behavior{n}" for n in range(STORE.behaviors.classes)], "would be left"),
}


@pytest.mark.parametrize(("labels", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], words: str
) -> None:
    saved(tmp_path / "model")
    out = tmp_path / "out"
    assert main(["vocabulary", "retire", str(tmp_path / "model"), *labels, "--out", str(out)]) == 2
    assert words in capsys.readouterr().err and not out.exists()
    assert main(["vocabulary", "retire", "universal", "a", "--out", str(out)]) == 2
