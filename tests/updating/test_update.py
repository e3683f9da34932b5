"""New events are predicted first, then learned; a kill, an undo or a rollback leaves what was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.memory_counts import count_store
from behavegpt.data.reencode import reencode
from behavegpt.data.store import TRAIN, EventStore, open_store
from behavegpt.data.vocabulary import FIRST, UNKNOWN
from behavegpt.demo import DEMO_SCHEMA, online_retail
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.evaluation import compare
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load
from behavegpt.training.model_folder import open_model
from behavegpt.updating.versions import PUBLISHED, Versions
from tests.conftest import ROOT

WEEKS = ("2011-10-10", "2011-10-17", "2011-10-24")
MEMORY = ("model.memory=true", "model.history_head=false", "train.steps=10")


def between(log: pa.Table, first: str | None, end: str) -> pa.Table:
    """The events from one day on up to another."""
    time = log["timestamp"]
    kept = pc.less(time, pa.scalar(np.datetime64(end, "ms"), time.type))
    if first:
        kept = pc.and_(kept, pc.greater_equal(time, pa.scalar(np.datetime64(first, "ms"))))
    return log.filter(kept)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those that tell times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".lock" not in path.name and path.name != "updates.jsonl"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Online Retail of every ninth customer: until 10 October prepared and trained on, the two
    weeks after it as logs."""
    place = tmp_path_factory.mktemp("update")
    log = pq.read_table(online_retail())
    few = pc.equal(pc.bit_wise_and(log["user_id"].cast(pa.int64()), 7), 3)
    log = log.filter(few)
    pq.write_table(between(log, None, WEEKS[0]), place / "past.parquet")
    pq.write_table(between(log, WEEKS[0], WEEKS[1]), place / "first.parquet")
    pq.write_table(between(log, WEEKS[1], WEEKS[2]), place / "second.parquet")
    pq.write_table(between(log, None, WEEKS[1]), place / "both.parquet")
    behavegpt.prepare(place / "past.parquet", place / "data", DEMO_SCHEMA, split="time:0.9,0.1,0")
    settings = [f"data.path={place / 'data'}", f"out={place / 'made'}", *MEMORY]
    pretrain(read_settings(PretrainSettings, "tiny", settings))
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The logs, and a run of one's own."""
    for path in made.glob("*.parquet"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data").symlink_to(made / "data")
    shutil.copytree(made / "made", tmp_path / "run")
    return tmp_path


@pytest.fixture(scope="module")
def updated(made: Path) -> tuple[Path, dict[str, Any]]:
    """A run after the first week, with states, and what the update told."""
    run = made / "run"
    shutil.copytree(made / "made", run)
    result = behavegpt.update(run, made / "first.parquet", steps=4, states=True)
    return run, result.row


def test_the_past_grows_as_if_it_had_been_prepared_whole(
    made: Path, updated: tuple[Path, dict[str, Any]]
) -> None:
    whole = behavegpt.prepare(
        made / "both.parquet", made / "whole", DEMO_SCHEMA, split=f"date:{WEEKS[0]},{WEEKS[0]}"
    )
    ours = open_store(updated[0] / "updates" / "0001" / "data")

    assert ours.users().equals(whole.users())
    assert (ours.offsets == whole.offsets).all()
    for name in ("time", "weekday", "slot"):
        assert (ours.column(name) == whole.column(name)).all(), name
    for field, vocabulary in whole.vocabulary.items():
        known = vocabulary.decode(whole.column(field))
        labels = ours.vocabulary[field].decode(ours.column(field))
        # `whole` knows no label of the week, ours none of the first validation split
        pairs = [pair for pair in zip(known, labels, strict=True) if None not in pair]
        assert all(a == b for a, b in pairs) and len(pairs) > 0.9 * len(known), field
    assert (ours.column("event")[whole.column("split") > TRAIN] >= FIRST).all()


def test_the_week_is_predicted_before_it_is_learned(
    made: Path, updated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The figures are those of `evaluate` for the model before, on the same events."""
    run, row = updated
    whole = behavegpt.prepare(
        made / "both.parquet", tmp_path / "whole", DEMO_SCHEMA, split=f"date:{WEEKS[0]},{WEEKS[0]}"
    )
    before = load(run / "updates" / "0000" / "model", "cpu")
    store = reencode(whole, before.tokenizer.vocabulary)
    found = compare(before, store, tmp_path / "metrics.json")["models"]
    for name, theirs in (("model", "behavegpt"), ("user_recent", "user_recent")):
        ours = row["prequential"][name]
        figures = found[theirs]["with_unseen"]
        assert ours["recall"] == pytest.approx(figures["rec_w"]), name
        assert ours["ndcg@3"] == pytest.approx(figures["ndcg@3"]), name
    days = row["drift"]["by_day"]
    assert [day["day"] for day in days] == sorted({day["day"] for day in days})
    assert sum(day["targets"] for day in days) == row["prequential"]["model"]["targets"]
    hits = sum(day["targets"] * day["model"] for day in days)
    assert hits / row["prequential"]["model"]["targets"] == pytest.approx(
        row["prequential"]["model"]["recall"], abs=1e-5
    )


def test_labels_and_tables_are_those_of_all_events_but_held_out_ones(
    updated: tuple[Path, dict[str, Any]],
) -> None:
    run, row = updated
    held = row["held_out"]
    assert row["verdict"] == "updated" and held["targets"] > 30
    assert held["interval"][0] <= held["difference"] <= held["interval"][1]
    assert held["difference"] == pytest.approx(held["after"] - held["before"])
    old, new = open_model(run / "updates" / "0000" / "model"), open_model(run / "model")

    store: EventStore = open_store(run / "updates" / "0001" / "data")
    for field, known in old.tokenizer.vocabulary.items():
        ours = new.tokenizer.vocabulary[field]
        assert ours.values[: known.classes].equals(known.values)  # no id is another one
        assert set(store.vocabulary[field].values.to_pylist()) <= set(ours.values.to_pylist())
        assert row["labels"][field] == [known.classes, ours.classes]
    assert row["labels"]["event"][1] > row["labels"]["event"][0]
    assert row["drift"]["unknown"]["event"]["new"] > row["drift"]["unknown"]["event"]["before"]

    encoded = reencode(store, new.tokenizer.vocabulary)
    counted = count_store(encoded)
    assert new.model.counts is not None
    for ours, theirs in zip(new.model.counts.tables, counted.tables, strict=True):
        assert np.array_equal(ours, theirs)
    assert (np.asarray(store.columns["split"]) != TRAIN).any()
    assert new.tokenizer.behaviors.counts.tolist() == encoded.behaviors.counts.tolist()


def test_the_figures_that_judge_are_those_of_evaluate_on_the_users_held_out(
    updated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, row = updated
    store = open_store(run / "updates" / "0001" / "data")
    found = compare(load(run, "cpu"), store, tmp_path / "metrics.json", split="valid")
    figures = found["models"]["behavegpt"]["with_unseen"]
    assert row["held_out"]["after"] == pytest.approx(figures["ndcg@3"])
    assert row["held_out"]["targets"] == found["rows"] + found["unseen"]["targets"]


def test_without_steps_known_rows_stay_and_retired_behaviors_too(place: Path) -> None:
    assert main(["vocabulary", "retire", str(place / "run"), "bag", "--out", str(place / "m")]) == 0
    shutil.rmtree(place / "run" / "model")
    (place / "m").rename(place / "run" / "model")
    old = open_model(place / "run" / "model")
    row = behavegpt.update(place / "run", place / "first.parquet", steps=0, margin=1).row
    new = open_model(place / "run" / "model")
    assert row["loss"] is None and new.model.config.retired == old.model.config.retired
    name = "model.embedding.tables.event.weight"
    before, after = old.model.state_dict()[name], new.model.state_dict()[name]
    assert after.shape[0] > before.shape[0] and (after[: len(before)] == before).all()


def test_states_are_those_of_the_new_model_after_all_events(
    made: Path, updated: tuple[Path, dict[str, Any]]
) -> None:
    model = load(updated[0], "cpu")
    kept = model.with_states(updated[0] / "states")
    users = list(kept.users)[:20]
    fresh = model.with_states(made / "both.parquet")
    ours = kept.predict([kept.users[user] for user in users], top_k=3).to_table()
    theirs = fresh.predict([fresh.users[user] for user in users], top_k=3).to_table()
    assert ours.drop_columns("probability").equals(theirs.drop_columns("probability"))


def test_a_worse_model_is_rolled_back_and_its_events_are_not_lost(place: Path) -> None:
    run, before = place / "run", contents(place / "run" / "model")
    result = behavegpt.update(run, place / "first.parquet", steps=30, rate=10, margin=0)
    held = result.row["held_out"]
    assert held["after"] < held["before"] and result.verdict == "rolled back"
    assert contents(run / "model") == before
    assert open_store(run / "updates" / "0001" / "data").manifest.events == (
        open_store(place / "data").manifest.events + result.row["events"]
    )
    again = behavegpt.update(run, place / "second.parquet", steps=2, margin=1)
    assert again.row["update"] == 2 and again.verdict == "updated"
    assert contents(run / "model") != before


def test_undo_puts_back_model_data_and_rows(place: Path) -> None:
    run = place / "run"
    behavegpt.update(run, place / "first.parquet", steps=2, margin=1)
    first = contents(run)
    rows = (run / "updates.jsonl").read_text()
    told = behavegpt.update(run, place / "second.parquet", steps=2, margin=1).row

    assert main(["update", str(run), "--undo"]) == 0
    # the oldest version went when the second came
    assert contents(run).items() <= first.items()
    assert (run / "updates.jsonl").read_text() == rows
    with pytest.raises(ConfigError, match="update 1 is the oldest one kept"):
        behavegpt.undo_update(run)

    again = behavegpt.update(run, place / "second.parquet", steps=2, margin=1).row
    timed = ("made", "seconds")
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in told.items() if k not in timed
    }


@pytest.mark.parametrize("after", ["put_in_place", "write_text"])
def test_what_a_kill_left_unpublished_is_published_by_the_next_call(
    place: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """A kill between the new version and RUN/model, or between that and the row."""
    run, old = place / "run", contents(place / "run" / "model")
    publish = Versions.publish

    def killed(versions: Versions) -> None:
        if versions.numbers[-1:] == [1]:
            if after == "write_text":
                publish(versions)
                (versions.path(1) / PUBLISHED).unlink()
                (run / "updates.jsonl").unlink()
            raise KeyboardInterrupt
        publish(versions)

    monkeypatch.setattr(Versions, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        behavegpt.update(run, place / "first.parquet", steps=2, margin=1)
    monkeypatch.undo()
    new = contents(run / "updates" / "0001" / "model")
    assert contents(run / "model") == (old if after == "put_in_place" else new)

    # the same log again: it is learned once
    again = behavegpt.update(run, place / "first.parquet", steps=2, margin=1)
    assert again.row["update"] == 1 and contents(run / "model") == new
    assert json.loads((run / "updates.jsonl").read_text()) == again.row


def late_log(place: Path) -> Path:
    """A log that begins two days before the last event that was seen."""
    table = pq.read_table(place / "both.parquet")
    pq.write_table(between(table, "2011-10-07", WEEKS[1]), place / "late.parquet")
    return place / "late.parquet"


def test_late_events_are_refused_or_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, log = str(place / "run"), str(late_log(place))
    assert main(["update", run, log]) == 2
    told = capsys.readouterr().err
    assert "events are not later than 2011-10-09" in told and "for example" in told
    assert "--late drop" in told and not (place / "run" / "updates").exists()

    assert main(["update", run, log, "--late", "drop", "--steps", "1", "--json"]) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)
    later = pq.read_table(place / "first.parquet").num_rows
    assert row["events"] == later and row["late"] == pq.read_table(log).num_rows - later
    assert f"dropped {row['late']:,} events that are not later than those seen" in captured.err


def without(column: str) -> Callable[[Path], list[str]]:
    def make(place: Path) -> list[str]:
        table = pq.read_table(place / "first.parquet").drop_columns(column)
        pq.write_table(table, place / "short.parquet")
        return [str(place / "run"), str(place / "short.parquet")]

    return make


def bad_rows(place: Path) -> list[str]:
    table = pq.read_table(place / "first.parquet")
    times = table["timestamp"].cast(pa.string())
    times = pc.if_else(pc.equal(table["line"], table["line"][0]), "soon", times)
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", times)
    pq.write_table(table.slice(0, 50), place / "bad.parquet")
    return [str(place / "run"), str(place / "bad.parquet")]


def updated_once(place: Path) -> list[str]:
    behavegpt.update(place / "run", place / "first.parquet", steps=0)
    return [str(place / "run"), str(place / "second.parquet"), "--data", str(place / "data")]


def baseline_run(place: Path) -> list[str]:
    settings = [f"data.path={place / 'data'}", f"out={place / 'gru'}", "train.steps=1"]
    pretrain(read_settings(PretrainSettings, ROOT / "configs/baselines/gru.yaml", settings))
    return [str(place / "gru"), str(place / "first.parquet")]


def plain(run: str, log: str, *more: str) -> Callable[[Path], list[str]]:
    return lambda place: [str(place / run), *([str(place / log)] if log else []), *more]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (plain("run", ""), "add the files of later events"),
        (plain("run", "absent.csv"), "absent.csv"),
        (plain("run/model", "first.parquet"), "name the run folder, not its model folder"),
        (plain("data", "first.parquet"), "not a finished run"),
        (plain("run", "past.parquet", "--late", "drop"), "no event is later than 2011-10-09"),
        (plain("run", "first.parquet", "--undo"), "--undo takes only the run"),
        (plain("run", "", "--undo"), "nothing to undo, it has no update"),
        (plain("run", "first.parquet", "--steps", "-1"), "steps"),
        (plain("run", "first.parquet", "--held-out", "0"), "held_out"),
        (plain("run", "first.parquet", "--data", "/nowhere"), "not a prepared folder"),
        (plain("run", "first.parquet", "--tz", "UTC"), "keeps the time zone"),
        (without("family"), "no column 'family' (the behavior)"),
        (without("location"), "no column 'location' (the location)"),
        (bad_rows, "time cannot be read: "),
        (updated_once, "remove --data"),
        (baseline_run, "whose vocabulary cannot grow"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_and_changes_nothing(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path], list[str]],
    told: str,
) -> None:
    argv = arguments(place)
    before = contents(place / "run")
    assert main(["update", *argv]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert contents(place / "run") == before


def test_a_model_of_another_time_zone_is_refused(place: Path) -> None:
    schema = DEMO_SCHEMA.model_copy(update={"tz": "UTC"})
    behavegpt.prepare(place / "past.parquet", place / "other", schema)
    with pytest.raises(BehaveGPTError, match="tz: Europe/London in the model, UTC in the data"):
        behavegpt.update(place / "run", place / "first.parquet", data=place / "other")


def test_the_command_prints_the_drift_report(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = pq.read_table(place / "first.parquet").rename_columns({"user_id": "customer"})
    pq.write_table(log, place / "renamed.parquet")
    (place / "run" / "model" / "thresholds.json").write_text("{}")
    argv = [str(place / "run"), str(place / "renamed.parquet"), "--user", "customer"]
    assert main(["update", *argv, "--steps", "1", "--margin", "1"]) == 0
    captured = capsys.readouterr()
    for text in ("decayed user counts", "unknown now", "2011-10-14", "of them new"):
        assert text in captured.out
    assert "learn again what belonged to the previous weights: thresholds.json" in captured.err


def test_a_fine_tuned_run_is_updated_too(place: Path) -> None:
    settings = {
        "base": str(place / "run" / "model"),
        "mode": "full",
        "data": {"path": str(place / "data")},
        "out": str(place / "tuned"),
        "train": {"steps": 2, "batch_events": 256},
    }
    run = finetune(FinetuneSettings.model_validate(settings))
    result = behavegpt.update(run, place / "first.parquet", steps=1, margin=1)
    assert result.to_pandas()["model"].tolist() == ["model", "user_recent"]
    assert load(result.model, "cpu").predict(place / "first.parquet").to_table().num_rows


def test_features_of_users_stand_at_their_new_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(8)]

    def log(names: list[str], day: str) -> pa.Table:
        times = np.datetime64(day, "s") + np.arange(20 * len(names)) * np.timedelta64(60, "s")
        event = [f"e{i}" for i in rng.integers(0, 3, len(times))]
        return pa.table({"user": names * 20, "time": times, "event": event})

    pq.write_table(log(users, "2024-01-01"), tmp_path / "past.parquet")
    known = pa.table({"user": users, "plan": ["free", "paid"] * 4, "age": list(range(20, 28))})
    schema = behavegpt.EventSchema(
        user="user", time="time", event="event", user_features=("plan",), user_numeric=("age",)
    )
    data = behavegpt.prepare(tmp_path / "past.parquet", tmp_path / "data", schema, users=known)
    settings = [f"data.path={data.path}", f"out={tmp_path / 'run'}", "train.steps=2"]
    pretrain(read_settings(PretrainSettings, "tiny", settings))

    new = log(["u0", "u1", "new", "stranger"], "2024-02-01")
    table = pa.table({"user": ["u1", "new"], "plan": ["gold", "paid"], "age": [40, 22]})
    behavegpt.update(tmp_path / "run", new, users=table, steps=1, margin=1)
    store = open_store(tmp_path / "run" / "updates" / "0001" / "data")
    last = store.offsets[1:] - 1
    names, age = store.users().to_pylist(), store.column("age")[last]
    plans = store.vocabulary["plan"].decode(store.column("plan")[last])
    told = dict(zip(names, plans, strict=True))
    assert (told["u0"], told["u1"], told["new"], told["stranger"]) == ("free", "gold", "paid", None)
    assert store.vocabulary["plan"].decode(store.column("plan")[store.offsets[:1]]) == ["paid"]
    ages = dict(zip(names, age.tolist(), strict=True))
    assert ages["u1"] == ages["u7"] and ages["new"] == ages["u2"] and ages["stranger"] == UNKNOWN
    assert load(tmp_path / "run", "cpu").model.config.user_features["plan"] == 5


def test_folders_of_version_0_1_are_updated(tmp_path: Path) -> None:
    """A prepared folder and a model of an earlier version, put into a run."""
    old = ROOT / "tests" / "formats" / "v0.1"
    run = tmp_path / "run"
    shutil.copytree(old / "model", run / "model")
    (run / "config.yaml").write_text(f"out: {run}\ndata: {{path: {old / 'data'}}}\n")
    lines = (old / "log.csv").read_text().splitlines()
    schema = open_store(old / "data").schema
    time = lines[0].split(",").index(schema.time)
    later = [lines[0]]
    for line in lines[1:]:
        cells = line.split(",")
        cells[time] = str(np.datetime64(cells[time].replace(" ", "T")[:19]) + 10**9)
        later.append(",".join(cells))
    (tmp_path / "later.csv").write_text("\n".join(later) + "\n")
    row = behavegpt.update(run, tmp_path / "later.csv", steps=2, margin=1).row
    assert row["verdict"].startswith("updated") and load(run, "cpu").tokenizer


def test_git_by_quarters(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """New areas of repositories are known a quarter later, to the updated model alone."""
    log = pq.read_table(shared_data("git_activity.parquet"), filters=[("user_id", "<", 60)])
    quarters = ("2018-01-01", "2018-07-01", "2019-01-01")
    columns = {"user": "user_id", "time": "timestamp", "event": "area", "order": "order"}
    schema = behavegpt.EventSchema(**columns, location="repository", behavior="activity")
    pq.write_table(between(log, None, quarters[0]), tmp_path / "past.parquet")
    data = behavegpt.prepare(tmp_path / "past.parquet", tmp_path / "data", schema).path
    settings = [f"data.path={data}", f"out={tmp_path / 'run'}", "train.steps=5"]
    pretrain(read_settings(PretrainSettings, "tiny", settings))
    rows = []
    for first, end in pairwise(quarters):
        part = between(log, first, end)
        rows.append(behavegpt.update(tmp_path / "run", part, steps=2, margin=1).row)

    first, second = (row["labels"]["event"] for row in rows)
    assert first[0] < first[1] == second[0] <= second[1]

    # what the model that never was updated knows of the second half year
    store = open_store(tmp_path / "run" / "updates" / "0002" / "data")
    seconds = np.asarray(store.columns["time"]).astype(np.int64) + store.manifest.time_origin
    is_new = seconds >= np.datetime64(quarters[1], "s").astype(np.int64)
    never = (
        open_store(data)
        .vocabulary["event"]
        .encode(store.vocabulary["event"].decode_array(store.column("event")[is_new]))
    )
    unknown = rows[1]["drift"]["unknown"]["event"]["new"]
    assert unknown < (never <= UNKNOWN).mean()
    assert not list((tmp_path / "run").rglob(".tmp*"))
