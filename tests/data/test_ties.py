"""The order of simultaneous events says nothing: chance data gives chance, for every count and for
the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest

from behavegpt.baselines.counts import fit, scores
from behavegpt.checksums import MANIFEST, is_sealed
from behavegpt.cli import main
from behavegpt.data.pack import target_rows
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TEST, EventStore, open_store
from behavegpt.data.vocabulary import FIRST
from behavegpt.ingest.events import read_events, read_with_duckdb
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.sources import find_logs

ITEMS, TIED = 60, 6
SCHEMA = EventSchema(user="user", time="time", event="item")


@pytest.fixture(scope="module")
def chance(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    """400 users, at 12 moments each six independent items of 60."""
    folder = tmp_path_factory.mktemp("chance")
    rng = np.random.default_rng(0)
    moments = 400 * 12
    log = pd.DataFrame(
        {
            "user": np.repeat([f"u{i}" for i in np.arange(moments) % 400], TIED),
            "time": np.repeat(
                pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 8_000, moments), "h"),
                TIED,
            ),
            "item": [f"item {i}" for i in rng.integers(0, ITEMS, moments * TIED)],
        }
    )
    log.to_parquet(folder / "log.parquet")
    return prepare(folder / "log.parquet", folder / "data", SCHEMA)


def is_chance(hits: np.ndarray) -> bool:
    """Whether a mean of hits (N,) lies within four standard errors of 1 / ITEMS, or below."""
    return bool(hits.mean() < 1 / ITEMS + 4 * np.sqrt((1 - 1 / ITEMS) / ITEMS / len(hits)))


def test_no_count_beats_chance(chance: EventStore) -> None:
    rows = target_rows(chance, TEST)
    target = chance.column("behavior")[rows].astype(np.int64) - FIRST
    for name, model in fit(chance).items():
        choice = np.concatenate([score.argmax(axis=1) for _, score in scores(model, chance, rows)])
        assert is_chance(choice == target), (
            f"{name}: {np.mean(choice == target):.4f} of {len(rows)}"
        )


def test_the_model_does_not_beat_chance(
    chance: EventStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {
        "embedding_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "history_head": True,
    }
    train = {"steps": 60, "batch_events": 2048, "lr": 3e-3, "valid_every": 60}
    main(
        ["train", "configs/tiny.yaml", f"data.path={chance.path}", f"out={tmp_path / 'run'}"]
        + [f"model.{name}={value}" for name, value in shape.items()]
        + [f"train.{name}={value}" for name, value in train.items()]
    )
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run/model"), str(chance.path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    recall, rows = result["models"]["behavegpt"]["rec_w"], result["rows"]
    assert is_chance(np.arange(rows) < recall * rows), recall


def test_ties_stand_in_no_order_of_labels(chance: EventStore) -> None:
    event, time = np.asarray(chance.columns["event"]), np.asarray(chance.columns["time"])
    tied = np.flatnonzero((np.diff(time) == 0) & (np.diff(event.astype(int)) != 0))
    label = np.array([None, None, *chance.behaviors.values.to_pylist()])
    rising = np.mean(label[event[tied]] < label[event[tied + 1]])
    assert abs(rising - 0.5) < 0.02
    assert chance.manifest.ties == chance.manifest.events
    assert "100.0%) share user and time" in (chance.path / "data_card.md").read_text()


@pytest.mark.parametrize("rule", ["text", "integer"])
def test_every_reader_gives_one_order_whatever_the_file(rule: str) -> None:
    """Labels are texts that look like integers: the stored rule settles how they are written."""
    schema = SCHEMA.model_copy(update={"label_rules": {"user": "text", "event": rule}})
    rng = np.random.default_rng(1)
    rows = {
        "user": [f"{u:02}" for u in np.repeat(np.arange(30), 8)],
        "time": ["2024-05-01 10:00:00"] * 240,
        "item": [str(i) for i in rng.integers(0, 9, 240)],
    }
    frame = pd.DataFrame(rows)
    expected = read_events(frame, schema).table
    assert read_events(frame.sample(frac=1, random_state=2), schema).table.equals(expected)
    slow = read_with_duckdb(find_logs(rows), schema)
    assert slow.table.equals(expected)
    alone = frame[frame.user == "07"]
    of_one = expected.filter(pc.equal(expected["user"], "07"))
    assert read_events(alone, schema).table["event"].to_pylist() == of_one["event"].to_pylist()
    assert len({tuple(group["event"]) for _, group in expected.to_pandas().groupby("user")}) == 30


def test_a_folder_of_before_warns_and_is_reordered(
    chance: EventStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(chance.path, folder)
    manifest = json.loads((folder / "dataset.json").read_text())
    del manifest["ties"]
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (folder / MANIFEST).unlink()
    event = np.load(folder / "columns/event.npy")
    owner = np.repeat(np.arange(manifest["users"]), np.diff(chance.offsets))
    # by label inside each moment
    label = np.lexsort([event, np.asarray(chance.columns["time"]), owner])
    np.save(folder / "columns/event.npy", event[label])
    with pytest.warns(UserWarning, match="behavegpt doctor --reorder"):
        open_store(folder)
    assert main(["doctor", "--reorder", str(folder)]) == 0
    assert "28,800 simultaneous events shuffled" in capsys.readouterr().err
    mended = open_store(folder)
    # times to the second: prepare's own order
    assert np.array_equal(mended.columns["event"], chance.columns["event"])
    assert mended.manifest == chance.manifest
    assert is_sealed(folder) and main(["doctor", str(folder)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("seed", [1, 2**63 - 1])
def test_another_seed_is_another_order(seed: int, chance: EventStore, tmp_path: Path) -> None:
    log = chance.path.parent / "log.parquet"
    arguments = ["prepare", str(log), "--out", str(tmp_path / "data"), "--tie-seed", str(seed)]
    assert main([*arguments, "--user", "user", "--time", "time", "--event", "item"]) == 0
    other = open_store(tmp_path / "data")
    assert other.schema.tie_seed == seed
    assert other.manifest.content_hash != chance.manifest.content_hash
    time, event = (np.asarray(other.columns[name]) for name in ("time", "event"))
    assert np.array_equal(time, chance.columns["time"])
    before = np.asarray(chance.columns["event"])
    assert np.mean(event == before) < 0.5  # a sixth of them by chance, and what stands twice
    owner = np.repeat(np.arange(other.manifest.users), np.diff(other.offsets))
    for order in (event, before):  # the same events at each moment
        assert np.array_equal(
            order[np.lexsort([order, time, owner])], before[np.lexsort([before, time, owner])]
        )
    # whoever asks the model later gets the folder's order
    rows = {
        "user": ["u7"] * 30,
        "time": ["2024-05-01 10:00:00"] * 30,
        "item": [*map(str, range(30))],
    }
    schema = SCHEMA.model_copy(update={"label_rules": chance.schema.label_rules, "tie_seed": seed})
    read = read_events(rows, schema).table
    assert read.equals(read_with_duckdb(find_logs(rows), schema).table)
    plain = SCHEMA.model_copy(update={"label_rules": chance.schema.label_rules})
    assert not read.equals(read_events(pd.DataFrame(rows), plain).table)


def test_a_schema_without_a_seed_is_written_as_before_there_was_one() -> None:
    assert "tie_seed" not in SCHEMA.model_dump(mode="json")
    seeded = SCHEMA.model_copy(update={"tie_seed": 3})
    assert EventSchema.model_validate_json(seeded.model_dump_json()) == seeded
