"""Forecasts of whole logs: routines are found, chance is known as chance, bad input is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.errors import BehaveGPTError
from behavegpt.horizon.backtest import backtest
from behavegpt.horizon.forecast import CHANCES, Forecast
from tests.conftest import ROOT

LOG = ROOT / "behavegpt/demo/online_retail.parquet"
FIRST = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday
WEEKS, USERS = 10, 40


def routines(zone_hours: int = 0) -> pa.Table:
    """Users who read news at 7:10 on weekdays and train on Tuesdays at 18:40, each a few minutes
    off, and who shop at any time."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for user in range(USERS):
        for day in range(7 * WEEKS):
            planned = [("news", 7.2)] * (day % 7 < 5) + [("gym", 18.7)] * (day % 7 == 1)
            planned += [("shop", rng.uniform(0, 24))] * (rng.random() < 0.15)
            for app, hour in planned:
                when = FIRST + timedelta(days=day, hours=hour - zone_hours)
                when += timedelta(minutes=int(rng.integers(-5, 5)))
                rows.append({"user_id": str(user), "timestamp": when, "app": app})
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def week() -> Forecast:
    now = FIRST + timedelta(days=7 * (WEEKS - 1))
    return behavegpt.forecast(routines(), now=now.isoformat(), top_k=12)


def test_a_routine_is_found_on_its_days_at_its_hour(week):
    rows = week.to_pandas()
    assert set(rows.columns) == {"user", "time", "local_time", "behavior", *CHANCES}
    sure = rows[rows.within_1h > 0.5]
    news, gym = sure[sure.behavior == "news"], sure[sure.behavior == "gym"]
    assert len(news) >= 0.9 * 5 * USERS and len(gym) >= 0.9 * USERS
    assert (news.time.dt.weekday < 5).all() and (gym.time.dt.weekday == 1).all()
    assert (news.time.dt.hour + news.time.dt.minute / 60).between(6.2, 8.2).all()
    assert (gym.time.dt.hour + gym.time.dt.minute / 60).between(17.7, 19.7).all()
    assert not (sure.behavior == "shop").any(), "nobody knows when"


def test_the_rows_are_the_likeliest_of_each_user_in_the_order_of_time(week):
    rows = week.to_pandas()
    assert rows.groupby("user").size().max() <= 12
    assert rows.groupby("user").time.apply(lambda times: times.is_monotonic_increasing).all()
    now = FIRST + timedelta(days=7 * (WEEKS - 1))
    assert (rows.time > now).all() and (rows.time < now + timedelta(days=7)).all()
    # what is within an hour is within six, and within a day
    assert (rows.within_1h <= rows.within_6h).all() and (rows.within_6h <= rows.within_1d).all()
    assert "Forecast(" in repr(week) and week.learned_from >= 50


def test_local_hours_are_those_of_the_log(week):
    """The same lives in another zone: the same local times, other instants."""
    now = (FIRST + timedelta(days=7 * (WEEKS - 1), hours=-9)).isoformat()
    away = behavegpt.forecast(routines(9), now=now, top_k=12, columns={"tz": "Asia/Tokyo"})
    local, other = week.to_pandas(), away.to_pandas()
    assert (other.local_time - other.time.dt.tz_localize(None) == timedelta(hours=9)).all()
    news = other[(other.behavior == "news") & (other.within_1h > 0.5)]
    assert len(news) >= 0.9 * 5 * USERS and news.local_time.dt.hour.isin([6, 7]).all()
    assert set(local.local_time.dt.hour[local.within_1h > 0.5]) >= {7}


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    first, again, other = (
        behavegpt.forecast(routines(), days=3, seed=seed).to_table() for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_later_events_change_nothing():
    log, now = routines(), FIRST + timedelta(days=50)
    early = log.filter(pa.compute.less_equal(log["timestamp"], pa.scalar(now)))
    whole, cut = (
        behavegpt.forecast(part, now=now.isoformat(), days=5).to_table() for part in (log, early)
    )
    assert whole.equals(cut)


def test_the_backtest_knows_routine_from_chance():
    found = backtest(routines(), 7)
    assert found.users == USERS and found.calibration_error < 0.08
    figures = found.figures
    assert figures["forecast"]["t_map_w"] > max(0.8, figures["the same again"]["t_map_w"])
    assert figures["forecast"]["t_map_w"] > 2 * figures["history density"]["t_map_w"]

    rng = np.random.default_rng(1)
    seconds = rng.integers(0, 70 * 86_400, 6000)
    noise = {
        "user_id": rng.integers(0, 60, 6000).astype(str),
        "timestamp": [FIRST + timedelta(seconds=int(second)) for second in seconds],
        "app": rng.choice(["a", "b", "c"], 6000),
    }
    chance = backtest(pa.table(noise), 7)
    assert chance.calibration_error < 0.05, "one event in three days, whenever"


def test_on_a_real_log_it_is_ahead_of_what_needs_no_learning(tmp_path, capsys):
    log, head = tmp_path / "shop.parquet", 60_000
    pq.write_table(pq.read_table(LOG).slice(0, head), log)
    columns = ["--behavior", "family", "--location", "location", "--order", "line"]
    line = ["forecast", str(log), *columns, "--tz", "Europe/London", "--backtest", "--json"]
    assert main(line) == 0
    told = json.loads(capsys.readouterr().out)
    scores = {name: figures["t_map_w"] for name, figures in told["models"].items()}
    assert scores["forecast"] > 1.2 * max(scores["history density"], scores["the same again"])
    assert told["calibration_error"] < 0.02


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    table = routines()
    table = table.filter(pa.compute.is_in(table["user_id"], pa.array(list("123456789"))))
    pc.write_csv(table.append_column("receipt", table["timestamp"]), path)
    return path


def test_the_command_writes_what_python_gives(file, tmp_path, capsys):
    out = tmp_path / "week.parquet"
    line = ["forecast", str(file), "--days", "4", "--top-k", "5", "--least", "0.3"]
    assert main([*line, "--out", str(out)]) == 0
    written = pq.read_table(out)
    assert (
        written.to_pylist()
        == behavegpt.forecast(file, 4, top_k=5, least=0.3).to_table().to_pylist()
    )
    assert min(written["within_1d"].to_pylist()) >= 0.3
    capsys.readouterr()

    assert main([*line, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(written)
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "the next 4 days" in shown and "news" in shown and "within_1d" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--days", "0"], "greater than or equal to 1"),
        (["--days", "29"], "less than or equal to 28"),
        (["--top-k", "0"], "top_k"),
        (["--least", "1.5"], "least"),
        (["--now", "soon"], "now"),
        (["--now", "1999-01-01"], "before all events"),
        (["--now", "2024-01-03"], "Take a longer log, or fewer days"),
        (["--backtest", "--now", "2025-02-01"], "no events after 2025-02-01"),
        (["--backtest", "--now", "1999-02-01"], "no events before 1999-02-01"),
        (["--backtest", "--least", ".1"], "--least cannot be combined with --backtest"),
        (["--event", "app", "--group", "receipt"], "baskets"),
        (["--users", "users.csv"], "--users"),
        (["--event", "nothing"], "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_answered_is_refused(file, options, message, capsys):
    assert main(["forecast", str(file), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_users_of_a_single_event_and_unknown_columns_are_no_fault():
    log = routines()
    alone = pa.table(
        {
            "user_id": ["alone"],
            "timestamp": pa.array([FIRST], log["timestamp"].type),
            "app": ["news"],
        }
    )
    rows = behavegpt.forecast(pa.concat_tables([log, alone])).to_pandas()
    assert set(rows[rows.user == "alone"].behavior) == {"news"}
    with pytest.raises(BehaveGPTError, match="moments to learn from"):
        behavegpt.forecast(alone)


def test_a_log_that_ends_with_a_wrong_date_is_told(file):
    log = routines()
    wrong = log.slice(0, 1).set_column(
        1, "timestamp", pa.array([FIRST + timedelta(days=300)], log["timestamp"].type)
    )
    with pytest.warns(UserWarning, match="only 1 events in the 7 days before 2024-10-27"):
        behavegpt.forecast(pa.concat_tables([log, wrong]))
    now = (FIRST + timedelta(days=7 * (WEEKS - 1))).isoformat()
    found = backtest(pa.concat_tables([log, wrong]), 7, now=now)
    assert found.events > 200 and found.figures["forecast"]["t_map_w"] > 0.8


def test_a_log_whose_behaviors_are_all_missing_is_refused():
    log = routines()
    nothing = log.append_column("what", pa.nulls(len(log), pa.string()))
    with pytest.raises(BehaveGPTError, match="no event has a behavior"):
        behavegpt.forecast(nothing, columns={"behavior": "what", "event": "app"})
