"""What earlier versions wrote opens, and gives the predictions that they recorded
(docs/formats.md).

Each folder here holds, as that version wrote them: log.csv and
`prepare log.csv --event app --location place --tz Europe/London` as data/; model/ of
`train configs/tiny.yaml train.steps=20 train.valid_every=10`; predictions.csv of
`predict --top-k 4` and vectors.parquet of `embed`.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.cli import main
from behavegpt.data.store import FORMAT, open_store
from behavegpt.errors import DataError
from behavegpt.predictor import Predictor
from behavegpt.trained_folder import load

VERSIONS = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())
pytestmark = pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)


@pytest.fixture
def predictor(folder: Path) -> Predictor:
    return load(folder / "model")


def test_predictions_are_those_of_the_version_that_wrote_the_model(
    folder: Path, predictor: Predictor
) -> None:
    recorded = pd.read_csv(folder / "predictions.csv", dtype={"user": str})
    found = predictor.predict(str(folder / "log.csv"), top_k=4).to_pandas()
    assert found[["user", "rank", "behavior"]].equals(recorded[["user", "rank", "behavior"]])
    np.testing.assert_allclose(found["probability"], recorded["probability"], atol=1e-5)


def test_vectors_are_those_of_the_version_that_wrote_the_model(
    folder: Path, predictor: Predictor
) -> None:
    recorded = pd.read_parquet(folder / "vectors.parquet")
    found = predictor.embed(str(folder / "log.csv")).to_pandas()
    assert found["user"].equals(recorded["user"])
    np.testing.assert_allclose(np.stack(found["vector"]), np.stack(recorded["vector"]), atol=1e-5)


def test_prepared_data_open_and_can_be_trained_on(folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # of the order of simultaneous events in 0.1
        store = open_store(folder / "data")
        log = pd.read_csv(folder / "log.csv")
        assert (store.manifest.events, store.manifest.users) == (len(log), log["user_id"].nunique())
        assert store.schema.roles == {
            "user": "user_id",
            "time": "timestamp",
            "event": "app",
            "location": "place",
        }
        run = tmp_path / "run"
        main(["train", "tiny", f"data.path={store.path}", f"out={run}", "train.steps=1"])
    assert (run / "model" / "config.json").is_file()


def test_another_format_is_refused_by_its_number(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "data" / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    with pytest.raises(DataError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        open_store(tmp_path)
