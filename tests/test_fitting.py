"""fit: one call from a table of events to an evaluated model; results as tables of any library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import behavegpt
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.fitting import FittedPredictor
from behavegpt.timing.gaps import Gaps

QUICK = {"config": "tiny", "train": {"steps": 2, "valid_every": 2, "log_every": 1}}
KINDS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "parquet": lambda frame, folder: _written(frame, folder),
    "pandas": lambda frame, folder: frame,
    "polars": lambda frame, folder: pl.from_pandas(frame),
    "arrow": lambda frame, folder: pa.Table.from_pandas(frame, preserve_index=False),
    "datasets": lambda frame, folder: datasets.Dataset.from_pandas(frame),
    "mapping": lambda frame, folder: frame.to_dict("list"),
}


def _written(frame: pd.DataFrame, folder: Path) -> str:
    pq.write_table(pa.Table.from_pandas(frame), folder / "log.parquet")
    return str(folder / "log.parquet")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """300 events of ten users, with columns that are guessed."""
    rng = np.random.default_rng(0)
    times = pd.Timestamp("2024-05-01") + pd.to_timedelta(rng.integers(0, 40 * 86400, 300), unit="s")
    columns = {
        "user_id": rng.integers(0, 10, 300).astype(str),
        "timestamp": times,
        "app": rng.choice(list("abcd"), 300),
    }
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> FittedPredictor:
    return behavegpt.fit(frame, **QUICK)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_run(kind, frame, fitted, tmp_path):
    """The same events are the same prepared folder and, with the same settings, the same run:
    nothing is trained."""
    again = behavegpt.fit(KINDS[kind](frame, tmp_path), **QUICK)
    assert (again.run, again.data) == (fitted.run, fitted.data)


def test_another_reading_still_knows_the_run(fitted: FittedPredictor, frame: pd.DataFrame) -> None:
    renamed = fitted.reading(user="uid")
    assert renamed.run == fitted.run and renamed.tokenizer.event_schema.user == "uid"
    known = fitted.with_states(frame)
    assert known.data == fitted.data and len(known.users) == 10 and not len(fitted.users)
    # the copy has its own: a state is read with the columns of its predictor
    assert renamed.users.tokenizer is renamed.tokenizer


def test_times_that_a_run_has_learned_are_there(fitted: FittedPredictor) -> None:
    predictor = behavegpt.load(fitted.run)
    predictor.timing = Gaps.__new__(Gaps)
    assert FittedPredictor(predictor, fitted.run, fitted.data).tells_times


def test_settings_go_to_their_owners(frame, tmp_path):
    model = behavegpt.fit(
        frame.rename(columns={"app": "what"}),
        out=tmp_path / "run",
        event="what",
        tz="Asia/Tokyo",
        split="time:0.6,0.2,0.2",
        loss={"name": "cross_entropy"},
        evaluate=False,
        **QUICK,
    )
    assert model.store.schema.event == "what" and model.store.schema.tz == "Asia/Tokyo"
    assert "cross_entropy" in (model.run / "config.yaml").read_text()
    assert model.data == tmp_path / "run" / "data" and not (model.run / "eval").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"evnt": "app"}, "event"),
        ({"train": {"stepz": 3}}, "steps"),
        ({"steps": 3}, r"belongs to train: train=\{'steps': \.\.\.\}"),
        ({"config": "smal"}, "small"),
        ({"event": "ap"}, "app"),
        ({"model": {"embedding_sizes": 8}}, "embedding_size"),
        ({"out": ""}, "empty path"),
    ],
)
def test_a_mistake_is_named_before_the_work(frame, settings, told):
    with pytest.raises(BehaveGPTError, match=told):
        behavegpt.fit(frame, **settings)


def test_a_used_run_folder_is_refused(frame, fitted):
    with pytest.raises(ConfigError, match="contains a run"):
        behavegpt.fit(frame, out=fitted.run, **QUICK)


def test_evaluation_and_report(fitted):
    evaluation = fitted.evaluate(baselines=False)
    assert evaluation.to_pandas()["model"].tolist() == ["behavegpt"]
    assert evaluation.rows == len(np.flatnonzero(fitted.store.column("split") == 2))
    assert "<table>" in evaluation._repr_html_() and "rec_w" in evaluation._repr_html_()
    report = fitted.report()
    assert report.path.is_file() and "<iframe" in report._repr_html_()


def test_results_are_tables_of_every_library(frame, fitted):
    drawn = fitted.generate(frame, 2)
    for result in (
        fitted.predict(frame, top_k=2),
        fitted.embed(frame),
        drawn,
        fitted.evaluate(baselines=False),
    ):
        table = result.to_arrow()
        assert table.equals(result.to_table())
        assert list(result.to_pandas().columns) == result.to_polars().columns == table.column_names
        assert len(result.to_pandas()) == result.to_polars().height == table.num_rows > 0
        assert table.column_names[0] in result._repr_html_()


def test_what_a_notebook_shows(frame, fitted):
    assert repr(fitted).startswith(
        "FittedPredictor(parameters="
    ) and "user_id/timestamp/app" in repr(fitted)
    assert "10 users" in repr(fitted.store) and "labels of event" in fitted.store._repr_html_()
    assert repr(fitted.predict(frame)) == "Predictions(40 rows: user, rank, behavior, probability)"
    assert repr(fitted.embed(frame)) == "UserEmbeddings(10 users x 24 float32)"
    universal = behavegpt.load("universal")
    assert "no log counted" in repr(universal)
    assert "4 behaviors counted" in universal.fit_tables(frame)._repr_html_()


def test_labels_cannot_become_html(frame, fitted):
    page = fitted.predict(frame.assign(user_id="<script>"))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_dataset_dict_is_refused_by_name(frame):
    both = datasets.DatasetDict({"train": datasets.Dataset.from_pandas(frame)})
    with pytest.raises(BehaveGPTError, match="pass one of them"):
        behavegpt.fit(both)
