"""When users act next: learned on training, calibrated on validation, asked at a moment."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from behavegpt.cli import main
from behavegpt.data.store import SPLITS, TEST, EventStore, open_store
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.ingest.asked import seconds_of
from behavegpt.loading import load_zero_shot
from behavegpt.predictor import Predictor
from behavegpt.timing.answer import LEVELS
from behavegpt.timing.evaluate import evaluate_gaps, evaluate_within
from behavegpt.timing.files import FILE, load_gaps, save_gaps
from behavegpt.timing.fit import fit_gaps, kaplan_meier
from behavegpt.timing.gaps import Gaps
from behavegpt.timing.moments import moments_of, moments_of_store, until
from behavegpt.trained_folder import load
from tests.conftest import ROOT
from tests.helpers import random_store

LOG = ROOT / "behavegpt/demo/online_retail.parquet"
DAY = 86400
NOW = "2011-11-11 12:00"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Online Retail prepared, and the demo model with what `behavegpt when` learned."""
    folder = tmp_path_factory.mktemp("when")
    shutil.copytree(ROOT / "behavegpt/demo/model", folder / "model")
    columns = ["--location", "location", "--behavior", "family", "--order", "line"]
    split = ["--tz", "Europe/London", "--split", "time:0.7,0.15,0.15"]
    out = str(folder / "data")
    assert main(["prepare", str(LOG), "--out", out, *columns, *split]) == 0
    assert main(["when", str(folder / "model"), out]) == 0
    return folder


@pytest.fixture(scope="module")
def model(work: Path) -> Predictor:
    return load(work / "model", "cpu")


@pytest.fixture(scope="module")
def store(work: Path) -> EventStore:
    return open_store(work / "data")


@pytest.fixture(scope="module")
def few() -> pa.Table:
    """The log of 60 users."""
    log = pq.read_table(LOG)
    users = pc.unique(log["user_id"]).sort()[:60]
    return log.filter(pc.is_in(log["user_id"], users))


def test_intervals_hold_what_they_promise_and_beat_counts(
    model: Predictor, store: EventStore
) -> None:
    assert model.timing is not None
    figures = evaluate_gaps(model.timing, store)["models"]
    assert figures["timing"]["coverage_50"] == pytest.approx(0.5, abs=0.05)
    assert figures["timing"]["coverage_90"] == pytest.approx(0.9, abs=0.03)
    for name in ("global", "user mean"):
        assert figures["timing"]["pinball"] < 0.95 * figures[name]["pinball"]


def test_behaviors_within_a_week_beat_counts(model: Predictor, store: EventStore) -> None:
    assert model.timing is not None
    figures = evaluate_within(model.timing, store, 7 * DAY, model.shares)
    ours = figures["models"]["timing"]
    assert ours["calibration_error"] < 0.01 and ours["mean"] < 2 * figures["share"]
    for name in ("next event", "base rate", "global rate", "user rate"):
        assert ours["brier"] < figures["models"][name]["brier"]


def test_the_test_split_is_not_learned_from(store: EventStore) -> None:
    """Test events spread over later times, and other labels, change nothing."""
    split = np.asarray(store.columns["split"])
    time = np.asarray(store.columns["time"]).copy()
    label = np.asarray(store.columns["behavior"]).copy()
    time[split == TEST] += 5000
    label[split == TEST] = 3
    columns = store.columns | {"time": time, "behavior": label}
    before, after = fit_gaps(store), fit_gaps(dataclasses.replace(store, columns=columns))
    for field in dataclasses.fields(before):
        if field.name != "facts":
            one, other = getattr(before, field.name), getattr(after, field.name)
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert before.facts == after.facts


def test_later_events_change_nothing(model: Predictor, few: pa.Table) -> None:
    past = few.filter(pc.less_equal(few["timestamp"], pa.scalar(NOW).cast(few["timestamp"].type)))
    assert 0 < past.num_rows < few.num_rows
    found = model.when(few, now=NOW).to_table()
    assert found.equals(model.when(past, now=NOW).to_table())


def test_waiting_moves_the_answer(model: Predictor, few: pa.Table) -> None:
    """With time that passes without an event, a gap is at least as long; levels stay ordered."""
    first, later = model.when(few), model.when(few, now="2012-01-20")
    assert first.users.equals(later.users)
    assert (later.now >= first.now).all()
    for times in (first, later):
        assert (np.diff(np.nan_to_num(times.seconds, posinf=1e12), axis=1) >= 0).all()
        assert (times.seconds >= 0).all()
        assert ((times.within >= 0) & (times.within <= times.any_within[:, None] + 1e-9)).all()
    assert later.any_within.mean() < first.any_within.mean()
    longer = model.when(few, within="4 weeks")
    assert (longer.any_within >= first.any_within).all() and longer.horizon == 28 * DAY


def test_the_command_says_what_python_says(
    work: Path, model: Predictor, few: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    log = work / "few.parquet"
    pq.write_table(few, log)
    capsys.readouterr()
    command = ["predict", str(work / "model"), str(log), "--when", "--within", "3 days"]
    assert main([*command, "--now", NOW, "--top-k", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = model.when(few, "3 days", 2, now=NOW)
    assert len(told) == 2 * len(expected)
    assert told[1]["behavior"] == expected.labels[0, 1]
    assert told[1]["within"] == pytest.approx(expected.within[0, 1])
    medians = [row["median_s"] or np.inf for row in told[::2]]
    np.testing.assert_allclose(medians, expected.seconds[:, 2])
    assert np.isfinite(medians).any()
    assert main([*command, "--top-k", "1"]) == 0
    assert "any in 3 d" in capsys.readouterr().out


def test_events_of_one_moment_are_one() -> None:
    columns = {
        "time": np.array([10, 10, 40, 5, 5, 9]),
        "behavior": np.array([2, 3, 4, 5, 6, 7]),
        "weekday": np.array([0, 0, 1, 2, 2, 3]),
        "slot": np.array([1, 1, 2, 3, 3, 4]),
    }
    moments = moments_of(np.array([0, 3, 6]), columns, 48)
    np.testing.assert_array_equal(moments.gap, [30, np.nan, 4, np.nan])
    np.testing.assert_array_equal(moments.label, [3, 4, 6, 7])
    np.testing.assert_array_equal(moments.seen, [0, 1, 0, 1])
    np.testing.assert_array_equal(moments.events, [2, 3, 2, 3])
    np.testing.assert_array_equal(moments.slot, [1, 50, 99, 148])
    np.testing.assert_array_equal(moments.begin, [10, 10, 5, 5])

    # a user without gaps has the mean of everybody; one with the gap 30, shrunk, half of each
    facts = moments.facts(1.0, 2.0)
    np.testing.assert_allclose(facts[0, :4], [1, 1, 1, 2])
    np.testing.assert_allclose(facts[1, :3], (1 + np.log(30)) / 2)

    kept = until(EncodedHistories(pa.array(["a", "b"]), np.array([0, 3, 6]), columns, {}, {}), 9)
    assert kept.users.to_pylist() == ["b"] and kept.offsets.tolist() == [0, 3]
    assert kept.rejected == {"no event until then": 1}


def test_kaplan_meier_is_that_of_scipy() -> None:
    from scipy.stats import CensoredData, ecdf

    rng = np.random.default_rng(0)
    value, ended = rng.integers(1, 30, 400).astype(float), rng.random(400) < 0.6
    points = np.linspace(0, 31, 63)
    wanted = ecdf(CensoredData(uncensored=value[ended], right=value[~ended])).cdf.evaluate(points)
    np.testing.assert_allclose(kaplan_meier(value, ended, points), wanted, atol=1e-12)


def test_a_file_gives_back_what_was_learned(model: Predictor, tmp_path: Path) -> None:
    assert model.timing is not None
    save_gaps(model.timing, model.tokenizer, tmp_path)
    again = load_gaps(tmp_path, model.tokenizer)
    assert isinstance(again, Gaps)
    for field in dataclasses.fields(again):
        assert np.all(getattr(again, field.name) == getattr(model.timing, field.name)), field.name


DAMAGED: dict[str, dict[str, Any]] = {
    "format": {"format": 9},
    "labels": {"tokenizer_hash": "other"},
    "cdf": {"cdf": [[1, 2], 3]},
    "weight": {"weight": [float("nan")] * 9},
    "grid": {"grid": [0.0] * 240},
    "facts": {"facts": None},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told(name: str, work: Path, model: Predictor, tmp_path: Path) -> None:
    sound = json.loads((work / "model" / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(sound | DAMAGED[name]))
    with pytest.raises(CheckpointError, match=rf"{name}.*behavegpt when MODEL DATA"):
        load_gaps(tmp_path, model.tokenizer)


REFUSED: dict[str, tuple[dict[str, Any], type[BehaveGPTError], str]] = {
    "negative": ({"within": "-7d"}, ConfigError, "within.*time span like"),
    "no duration": ({"within": "soon"}, ConfigError, "within.*time span like"),
    "a number": ({"within": 7}, ConfigError, "within"),
    "too long": ({"within": "900000 d"}, ConfigError, "at most 100 years"),
    "no users": ({"top_k": 0}, ConfigError, "top_k"),
    "no time": ({"now": "yesterday"}, DataError, "now.*is not a time"),
    "too early": ({"now": "1990-01-01"}, DataError, "before all events"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case: str, model: Predictor, few: pa.Table) -> None:
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        model.when(few, **options)


COMMANDS = {
    "no --when": (["predict", "demo", "LOG", "--within", "7d"], "need --when"),
    "not learned": (["predict", "demo", "LOG", "--when"], "behavegpt when MODEL DATA"),
    "both rules": (["predict", "demo", "LOG", "--when", "--thresholds"], "cannot be combined"),
    "no log": (["predict", "demo", "--when"], "add the log files"),
    "before the end": (
        ["predict", "universal", "LOG", "--when", "--now", "2011-11-01"],
        "before the end of the counted log .2011-12-09",
    ),
    "no event head": (["predict", "demo", "LOG", "--next", "3"], "has no event head"),
    "next and rule": (
        ["predict", "demo", "LOG", "--next", "3", "--thresholds"],
        "cannot be combined",
    ),
    "next and when": (["predict", "demo", "LOG", "--next", "3", "--when"], "cannot be combined"),
    "no next": (["predict", "demo", "LOG", "--next", "0"], "steps"),
    "in the package": (["when", "demo", "data"], "is part of the package"),
    "no training": (["when", "universal", "data"], "predict universal LOG --when"),
    "no horizon": (["when", "demo", "data", "--within", "-1d"], "within"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands_name_the_remedy(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, message = COMMANDS[case]
    # one word, so that argparse does not take a negative span for an option
    given = [str(LOG) if word == "LOG" else word for word in command]
    if "--within" in given:
        at = given.index("--within")
        given[at : at + 2] = [f"--within={given[at + 1]}"]
    assert main(given) == 2
    assert re.search(message, capsys.readouterr().err)


def test_too_little_is_refused() -> None:
    store = random_store(0, users=2)
    columns = store.columns | {"split": np.full(store.manifest.events, TEST)}
    with pytest.raises(DataError, match="20 at least"):
        fit_gaps(dataclasses.replace(store, columns=columns))


def test_a_counted_log_tells_times(few: pa.Table, tmp_path: Path) -> None:
    """Learned from the log itself; the folder that keeps it knows the same."""
    model = load_zero_shot().fit_tables(few)
    told = model.when(within="3 days", top_k=2)
    assert len(told) == len(set(few["user_id"].to_pylist()))
    assert (
        np.isfinite(told.seconds[:, 2]).any() and (np.diff(told.seconds[:, :2], axis=1) > 0).all()
    )
    # waiting moves the answer here too
    later = model.when(within="3 days", now="2012-01-20")
    assert later.any_within.mean() < told.any_within.mean()

    again = load_zero_shot(model.save(tmp_path / "counted"))
    found = again.when(few, "3 days", 2)
    np.testing.assert_allclose(found.seconds, told.seconds, rtol=1e-3)
    np.testing.assert_allclose(found.within, told.within, rtol=1e-3)
    with pytest.raises(ConfigError, match="states, no histories"):
        again.when()
    (tmp_path / "counted" / FILE).unlink()
    (tmp_path / "counted" / "MANIFEST.json").unlink()
    with pytest.raises(ConfigError, match="saved without times"):
        load_zero_shot(tmp_path / "counted").when(few)
    with pytest.raises(DataError, match=r"gaps between .* 20 at least"):
        load_zero_shot().fit_tables(few.slice(0, 3)).when()


def test_no_later_event_enters_the_times_of_a_counted_log(few: pa.Table) -> None:
    """The end of the log is a bound: the same users with what they did later are another log."""
    past = few.filter(pc.less_equal(few["timestamp"], pa.scalar(NOW).cast(few["timestamp"].type)))
    model = load_zero_shot().fit_tables(past)
    assert model.log.timing.facts["end"] <= seconds_of(NOW, model.tokenizer.event_schema, "now")
    assert model.when(few, now=NOW).to_table().equals(model.when(past, now=NOW).to_table())


def test_levels_are_calibrated_over_several_windows(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pace that validation alone has moves the levels less than where it alone calibrates."""
    moments = moments_of_store(store)
    split = np.asarray(store.columns["split"])[moments.row]
    fast = np.where(split == SPLITS["valid"], moments.gap / 20, moments.gap)
    changed = dataclasses.replace(moments, gap=fast)
    moved = {}

    for windows in (1, 4):
        monkeypatch.setattr("behavegpt.timing.fit.WINDOWS", windows)
        usual, quick = fit_gaps(store, moments), fit_gaps(store, changed)
        assert usual.facts["windows"] == windows
        moved[windows] = np.abs(usual.cdf - quick.cdf).mean()
    assert 0 < moved[4] < 0.7 * moved[1]


@pytest.mark.parametrize("name", ["trained", "universal"])
def test_the_service_says_what_python_says(name: str, model: Predictor, few: pa.Table) -> None:
    pytest.importorskip("httpx", reason="httpx is not installed; pip install httpx")
    from fastapi.testclient import TestClient

    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings

    served = model if name == "trained" else load_zero_shot().fit_tables(few)
    rows = [
        {column: str(value) for column, value in row.items()}
        for row in few.to_pylist()
        if row["user_id"] == few["user_id"][0].as_py()
    ]
    users = [{"id": rows[0]["user_id"], "events": rows}]
    body = {"users": users, "within": "3 days", "top_k": 2, "now": "2012-01-20"}
    with TestClient(make_app(served, ServeSettings())) as client:
        assert client.get("/v1/model").json()["times"] is True
        answer = client.post("/v1/when", json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()["users"][0]
        expected = served.when(pa.Table.from_pylist(rows), "3 days", 2, now="2012-01-20")
        assert told["now"] == "2012-01-20T00:00:00+00:00"
        assert told["any_within"] == pytest.approx(expected.any_within[0])
        for place, level in enumerate(LEVELS):
            value = expected.seconds[0, place]
            wanted = pytest.approx(value) if np.isfinite(value) else None
            assert told[f"{level}_s"] == wanted
        assert [b["behavior"] for b in told["behaviors"]] == expected.labels[0].tolist()

        for changed, message in (
            ({"within": "soon"}, "within"),
            ({"now": "1990-01-01"}, "before"),
            ({"top_k": 5000}, "top_k"),
            ({"horizon": "7d"}, "horizon"),
        ):
            refused = client.post("/v1/when", json=body | changed)
            assert refused.status_code == 422 and message in refused.text


def test_the_next_events_are_a_sequence_with_times(
    few: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "next.parquet"
    pq.write_table(few.drop_columns("line"), log)
    command = ["predict", "universal", str(log), "--event", "family"]
    said = []
    for options in (["--next", "3"], ["--next", "3"], ["--top-k", "1"]):
        capsys.readouterr()
        assert main([*command, *options, "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))

    rows, again, best = said
    assert rows == again and len(rows) == 3 * len(best)
    # nothing is drawn: the first one is the best prediction
    assert [row["family"] for row in rows[::3]] == [row["behavior"] for row in best]
    # each after the median gap of the user, which is 0 within a basket
    times = [[row["timestamp"] for row in rows[start::3]] for start in range(3)]
    assert all(a <= b <= c for a, b, c in zip(*times, strict=True))
