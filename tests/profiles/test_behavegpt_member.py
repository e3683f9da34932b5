"""BehaveGPT as a member: its stream is the converter's, and a vector is the same for a fitted and a
new client."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.datasets.converters import convert
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.profiles.behavegpt_member import (
    MODEL,
    MODEL_FILES,
    BehaviorSettings,
    _write_stream,
    embed,
    fit,
)
from behavegpt.profiles.members import Context
from behavegpt.training.settings import TrainSettings
from behavegpt.training.trainer import Trainer
from tests.profiles.makers import read_events, renamed_clients, without_ties

SETTINGS = BehaviorSettings(
    model={"embedding_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 32},
    train=TrainSettings(steps=4, batch_events=256),
    min_count=1,
)


def test_the_stream_is_that_of_the_converter(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """So that a checkpoint trained on a converted log reads it."""
    schema = convert("recsys2025", small / "input", tmp_path / "log.parquet", clock=5)
    theirs = pd.read_parquet(tmp_path / "log.parquet")
    with context(small).connect() as con:
        log, ours_schema = _write_stream(con, tmp_path, "", f"{theirs['timestamp'].max()}", 5)
        ours = con.sql(f"FROM '{log}'").df()
    assert ours_schema == schema
    # a second after the moment that was given, itself a second after the last event
    last = ours["timestamp"].max()
    assert last == theirs["timestamp"].max() + pd.Timedelta(seconds=1)
    columns = ["user_id", "timestamp", "event", "behavior", "kind", "item", "price"]
    plain = [frame[frame["event"] != "tick"][columns].astype(str) for frame in (ours, theirs)]
    sorted_ones = [frame.sort_values(columns).to_numpy().tolist() for frame in plain]
    assert sorted_ones[0] == sorted_ones[1]


def test_a_new_client_has_the_vector_of_a_fitted_one(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    # simultaneous events stand in an order of the client's own
    apart = without_ties(small, tmp_path / "apart")
    (tmp_path / "state").mkdir()
    fit(context(apart), SETTINGS, tmp_path / "state")
    found = embed(context(apart), SETTINGS, tmp_path / "state")
    relevant = np.load(apart / "input" / "relevant_clients.npy")
    assert sorted(found.client_ids) == sorted(set(read_events(apart)["client_id"]) & set(relevant))
    # last and mean; weekday, slot, event, item, price, gap
    assert found.vectors.shape[1] == 2 * 6 * 4
    some = np.sort(found.client_ids)[::5]
    new = embed(
        context(renamed_clients(apart, tmp_path / "new", some)), SETTINGS, tmp_path / "state"
    )
    rows = [found.client_ids.tolist().index(client - 10**6) for client in new.client_ids]
    assert np.abs(new.vectors - found.vectors[rows]).max() < 1e-5
    # its model folder is a checkpoint like any other, and gives the same vectors
    (tmp_path / "again").mkdir()
    settings = SETTINGS.model_copy(update={"checkpoint": str(tmp_path / "state" / MODEL)})
    fit(context(apart), settings, tmp_path / "again")
    assert np.array_equal(
        embed(context(apart), settings, tmp_path / "again").vectors, found.vectors
    )
    assert json.loads((tmp_path / "state" / "run.json").read_text())["best_step"] > 0


def test_the_same_seed_gives_the_same_bytes(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        fit(context(small, seed=seed), SETTINGS, tmp_path / name)
        found.append(embed(context(small, seed=seed), SETTINGS, tmp_path / name).vectors.tobytes())
        shutil.rmtree(context(small, seed=seed).work(SETTINGS))  # else the next one opens it
    assert found[0] == found[1] != found[2]


def test_a_run_that_was_stopped_goes_on(
    small: Path,
    tmp_path: Path,
    context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, steps, step = [], [], Trainer.step
    for name, stop_at in (("whole", None), ("stopped", 2)):

        def counted(self: Trainer, number: int, stop_at: int | None = stop_at) -> dict[str, float]:
            steps.append(number)
            if number == stop_at:
                signal.raise_signal(signal.SIGINT)
            return step(self, number)

        monkeypatch.setattr(Trainer, "step", counted)
        (tmp_path / name).mkdir()
        if stop_at is not None:
            with pytest.raises(SystemExit):
                fit(context(small), SETTINGS, tmp_path / name)
            monkeypatch.setattr(Trainer, "step", lambda self, number: counted(self, number, None))
        fit(context(small), SETTINGS, tmp_path / name)
        found.append(embed(context(small), SETTINGS, tmp_path / name).vectors.tobytes())
        shutil.rmtree(context(small).work(SETTINGS))
    assert found[0] == found[1]
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_checkpoint_counts_by_its_files(tmp_path: Path) -> None:
    for name, changed in (("a", None), ("b", None), *((file, file) for file in MODEL_FILES)):
        (tmp_path / f"of {name}").mkdir()
        for file in MODEL_FILES:
            (tmp_path / f"of {name}" / file).write_bytes(b"2" if file == changed else b"1")
    shaping = [
        BehaviorSettings(checkpoint=str(tmp_path / f"of {name}")).shaping()
        for name in ("a", "b", *MODEL_FILES)
    ]
    digests = [one["checkpoint"] for one in shaping]
    assert digests[0] == digests[1]
    assert len({json.dumps(digest) for digest in digests}) == 1 + len(MODEL_FILES)
    with pytest.raises(ConfigError, match="give the `model` folder"):
        BehaviorSettings(checkpoint=str(tmp_path)).shaping()


def test_a_damaged_checkpoint_is_told_at_once(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"1")
    (tmp_path / "state").mkdir()
    with pytest.raises(CheckpointError, match=r"not a model folder.*\(config\.json is missing\)"):
        fit(
            context(small),
            BehaviorSettings(checkpoint=str(tmp_path / "broken")),
            tmp_path / "state",
        )


def test_wrong_shapes_are_named(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    wrong = SETTINGS.model_copy(update={"model": {"embedding_size": 3, "num_attention_heads": 16}})
    with pytest.raises(ConfigError, match=r"model: .*must be a multiple"):
        fit(context(small), wrong, tmp_path)
    with pytest.raises(
        ValueError, match=r"unknown setting 'embeding_size'. Did you mean 'embedding_size'"
    ):
        BehaviorSettings(model={"embeding_size": 3})
