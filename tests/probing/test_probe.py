"""What user vectors know, on the purchases that ship with the package: nothing of the future, the
same folds for all, and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.demo import online_retail
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.loading import load_zero_shot
from behavegpt.probing.features import aggregates, label_counts
from behavegpt.probing.past import past_of, read_log
from behavegpt.probing.result import ProbeResult
from behavegpt.probing.scoring import interval, make_folds

AT = pd.Timestamp("2011-10-10")
COLUMNS = {
    "user": "user_id", "time": "timestamp", "event": "event", "location": "location",
    "behavior": "family", "order": "line", "tz": "Europe/London",
}  # fmt: skip
QUICK = {"seeds": 1, "folds": 3, "top_labels": 20, "probes": ("linear",)}
WORDS = ["--seeds", "1", "--folds", "3", "--top-labels", "20", "--probes", "linear"]


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    """The purchases of some 250 customers."""
    log = pd.read_parquet(online_retail())
    return log[log["user_id"] % 17 == 0]


@pytest.fixture(scope="module")
def labels(events: pd.DataFrame) -> pd.DataFrame:
    """Who buys nothing after AT, how much the others buy, and a label of three classes."""
    users = events["user_id"][events["timestamp"] < AT].unique()
    later = events[events["timestamp"] >= AT].groupby("user_id").size()
    later = later.reindex(users, fill_value=0)
    amount = np.log1p(later.to_numpy(float))
    thirds = np.array(["none", "some", "many"])[(amount > 0) + (amount > 3).astype(int)]
    return pd.DataFrame(
        {"user_id": users, "churned": amount == 0, "amount": amount, "segment": thirds}
    )


@pytest.fixture(scope="module")
def universal() -> Any:
    return load_zero_shot()


@pytest.fixture(scope="module")
def demo() -> Any:
    return behavegpt.load("demo")


def columns_for(model: Any) -> dict[str, str]:
    """A trained model and a counted log know their own."""
    return {} if isinstance(model, behavegpt.Predictor) or model.counted else COLUMNS


def asked(model: Any, log: Any, labels: Any, **settings: Any) -> ProbeResult:
    given = {"label": "churned", "at": "2011-10-10", **QUICK, **settings}
    return behavegpt.probe(model, log, labels, columns=columns_for(model), **given)


def with_a_future(events: pd.DataFrame) -> pd.DataFrame:
    """The log with many later events: of known and new users, with known and new labels."""
    known = events.tail(500).assign(timestamp=AT + pd.Timedelta(days=61))
    new = known.assign(user_id=known["user_id"] + 1, event="99999", family="unheard of")
    at_once = known.assign(timestamp=AT, location="Atlantis")
    return pd.concat([new, at_once, events, known, known])


@pytest.mark.parametrize("name", ["demo", "universal"])
def test_later_events_change_no_byte_of_a_vector_and_no_figure(
    name: str, events: pd.DataFrame, labels: pd.DataFrame, request: pytest.FixtureRequest
) -> None:
    model, pool = request.getfixturevalue(name), ("last", "behaviors")
    known = events[events["timestamp"] < AT]
    logs = [known, events, with_a_future(events)]

    vectors, figures = [], []
    for log in logs:
        read = read_log(model, log, columns_for(model))
        at = int(AT.tz_localize("Europe/London").timestamp())
        vectors.append(past_of(model, read, at).vectors(pool))
        result = asked(model, log, labels, pool=pool, stale_weeks=(0, 4))
        figures.append(json.dumps(result.to_dict() | {"model": ""}))

    assert vectors[0].shape[0] == known["user_id"].nunique()
    assert vectors[0].tobytes() == vectors[1].tobytes() == vectors[2].tobytes()
    assert figures[0] == figures[1] == figures[2]

    # what is compared can differ: an event a minute before the date does change vectors
    earlier = known.tail(1).assign(timestamp=AT - pd.Timedelta(minutes=1), family="mug")
    read = read_log(model, pd.concat([known, earlier]), columns_for(model))
    assert past_of(model, read, at).vectors(pool).tobytes() != vectors[0].tobytes()


def test_counts_and_aggregates_are_those_of_pandas(universal: Any, events: pd.DataFrame) -> None:
    log = read_log(universal, events, COLUMNS)
    at = int(AT.tz_localize("Europe/London").timestamp())
    past = past_of(universal, log, at)
    known = events[events["timestamp"] < AT].copy()
    known["user_id"] = known["user_id"].astype(str)
    age = (AT - known["timestamp"]) / pd.Timedelta(days=1)
    groups = known.assign(age=age, day=known["timestamp"].dt.date).groupby("user_id")
    expected = pd.DataFrame(
        {
            "events": groups.size(),
            "days since the last": groups["age"].min(),
            "days since the first": groups["age"].max(),
            "active days": groups["day"].nunique(),
            "distinct behaviors": groups["family"].nunique(),
            "events of 7 days": groups["age"].agg(lambda days: (days <= 7).sum()),
            "events of 30 days": groups["age"].agg(lambda days: (days <= 30).sum()),
        }
    ).loc[past.encoded.users.to_pylist()]
    # clocks went forward within the year: a wall-clock difference may be off by an hour
    found = np.expm1(aggregates(past, log.schema))
    np.testing.assert_allclose(found, expected.to_numpy(float), rtol=1e-4, atol=1 / 24 + 1e-3)

    counts, names = label_counts(past, log.schema, top=10)
    assert counts.shape == (len(expected), len(names)) and len(names) <= 30
    for name in ("behavior: bag", "location: United Kingdom"):
        field, _, label = name.partition(": ")
        column = {"behavior": "family", "location": "location"}[field]
        by_hand = known[known[column] == label].groupby("user_id").size()
        by_hand = by_hand.reindex(expected.index, fill_value=0).to_numpy()
        np.testing.assert_allclose(np.expm1(counts[:, names.index(name)]), by_hand, rtol=1e-4)


TASKS = {
    "two classes": ("churned", {}, "classification", ["ROC-AUC", "PR-AUC", "accuracy"]),
    "three classes": ("segment", {}, "classification", ["ROC-AUC", "PR-AUC", "accuracy"]),
    "values": ("amount", {}, "regression", ["R2", "MAE"]),
    "values by boosting": ("amount", {"probes": ("boosting",)}, "regression", ["R2", "MAE"]),
}


@pytest.mark.parametrize("case", TASKS)
def test_each_task_has_its_metrics(
    case: str, universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    label, settings, task, metrics = TASKS[case]
    result = asked(universal, events, labels, label=label, **settings)
    assert result.facts["task"] == task and list(result.metrics) == metrics
    assert result.facts["users"] == len(labels) and not result.facts["labeled_without_events"]

    frame = result.to_pandas()
    assert set(frame["features"]) == {
        *("vectors", "counts", "aggregates", "counts + aggregates", "all")
    }
    assert (frame["low"] <= frame["mean"]).all() and (frame["mean"] <= frame["high"]).all()
    first = frame[(frame["metric"] == metrics[0]) & (frame["features"] == "aggregates")]
    # who bought much and recently buys again: any probe of recency and frequency finds it
    assert first["mean"].item() > (0.62 if task == "classification" else 0.1)

    # paired: each difference is that of the folds' figures, which all sets share
    difference = result.differences.of(features="all", metric=metrics[0])[0]
    both = [
        result.scores.of(features=name, metric=metrics[0])[0].values
        for name in ("all", "counts + aggregates")
    ]
    np.testing.assert_array_equal(difference.values, both[0] - both[1])


def test_labels_that_nobody_can_know_score_like_chance(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    coin = labels.assign(churned=np.random.default_rng(0).random(len(labels)) < 0.5)
    for score in asked(universal, events, coin, seeds=3).scores.of(metric="ROC-AUC"):
        assert score.interval.low < 0.5 < score.interval.high


def test_an_aggregate_as_label_is_found(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    number = events[events["timestamp"] < AT].groupby("user_id").size()
    many = number.reindex(labels["user_id"]).to_numpy()
    known = labels.assign(churned=many > np.median(many))
    result = asked(universal, events, known)
    assert result.scores.of(features="aggregates", metric="ROC-AUC")[0].interval.mean > 0.97


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_folds_part_the_users_and_keep_their_shares(task: Any) -> None:
    target = np.arange(200) % 10 == 0 if task == "classification" else np.arange(200.0) ** 2
    folds = make_folds(target, task, 5, 2)
    assert len(folds) == 10
    for seed in (0, 1):
        tested = np.concatenate([fold.test for fold in folds if fold.seed == seed])
        assert sorted(tested) == list(range(200))
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert np.median(target[fold.test]) == pytest.approx(np.median(target), rel=0.2)
    assert not np.array_equal(folds[0].test, folds[5].test)


def test_an_interval_is_the_corrected_one() -> None:
    values = np.array([0.7, 0.72, 0.69, 0.75, 0.71])
    found = interval(values, folds=5)
    # by hand: s^2 (1/5 + 1/4), and the 97.5 % quantile of t with 4 degrees of freedom
    half = 2.7764451 * np.sqrt(values.var(ddof=1) * 0.45)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))


def test_staleness_has_the_same_users_at_each_age(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    result = asked(universal, events, labels, stale_weeks=(0, 12))
    before = events["timestamp"] < AT - pd.Timedelta(weeks=12)
    assert result.facts["stale_users"] == events["user_id"][before].nunique() < len(labels)
    ages = [result.staleness.of(metric="ROC-AUC", weeks=weeks) for weeks in (0, 12)]
    assert [score.features for score in ages[0]] == [score.features for score in ages[1]]
    assert any((one.values != other.values).all() for one, other in zip(*ages, strict=True))


@pytest.mark.parametrize(
    ("at", "later"), [("2011-10-10", False), ("2011-07-01", True)], ids=["after", "within"]
)
def test_a_model_that_was_trained_on_later_events_is_told(
    at: str, later: bool, tmp_path: Path, events: pd.DataFrame, labels: pd.DataFrame, capsys: Any
) -> None:
    words = write(tmp_path, events, labels)
    assert main(["probe", "demo", *words, "--label", "churned", "--at", at, *WORDS, "--json"]) == 0
    out, told = capsys.readouterr()
    found = json.loads(out)
    assert found["trained_on_later_events"] is later
    assert found["trained_until"].startswith("2011-10-09")
    assert ("may have seen what they are to predict" in told) is later


def write(folder: Path, events: pd.DataFrame, labels: pd.DataFrame) -> list[str]:
    """The files, as a command line names them."""
    events.to_parquet(folder / "log.parquet", index=False)
    labels.to_csv(folder / "labels.csv", index=False)
    return [str(folder / "log.parquet"), str(folder / "labels.csv")]


def test_the_command_writes_figures_and_a_plot(
    tmp_path: Path, events: pd.DataFrame, labels: pd.DataFrame, capsys: Any
) -> None:
    strangers = pd.DataFrame({"user_id": [1, 2], "churned": [True, False]})
    words = write(tmp_path, events, pd.concat([labels, strangers, labels.head(1)]))
    options = ["--label", "churned", "--at", "2011-10-10", "--stale-weeks", "0", "4", *WORDS]
    assert main(["probe", "demo", *words, *options, "--out", str(tmp_path / "out")]) == 0
    out, told = capsys.readouterr()
    assert "counts + aggregates" in out and "staleness" in out and "ROC-AUC" in out
    assert "2 labeled users have no event before it" in told

    kept = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert kept["users"] == len(labels) and kept["labeled_without_events"] == 2
    assert len(kept["scores"]) == 15 and len(kept["scores"][0]["values"]) == 3
    assert (tmp_path / "out" / "probe.png").read_bytes().startswith(b"\x89PNG")


BAD: dict[str, tuple[Callable[[pd.DataFrame], Any], dict[str, Any], str]] = {
    "no such column": (lambda t: t, {"label": "churn"}, "Did you mean 'churned'"),
    "which column": (lambda t: t, {"label": None}, "'churned', 'amount', 'segment'"),
    "no such user column": (lambda t: t, {"label_user": "userid"}, "Did you mean 'user_id'"),
    "no user at all": (lambda t: t.rename(columns={"user_id": "x"}), {}, "--label-user COLUMN"),
    "nobody of the log": (lambda t: t.assign(user_id=t["user_id"] + 1), {}, "in the log: "),
    "too few": (lambda t: t.head(40), {}, "at least 50 are needed"),
    "one class": (lambda t: t.assign(churned=True), {}, "two classes or more"),
    "a rare class": (lambda t: t.assign(churned=t.index < 5), {}, "'true' has 5 users"),
    "a user twice": (lambda t: pd.concat([t, t.assign(churned=~t["churned"])]), {}, "two labels"),
    "all empty": (lambda t: t.assign(churned=None), {}, "no row has both"),
    "no number": (lambda t: t, {"label": "segment", "task": "regression"}, "no finite number"),
    "infinite amounts": (
        lambda t: t.assign(amount=np.where(t.index % 9, t["amount"], np.inf)),
        *({"label": "amount"}, "'inf', which is no finite number"),
    ),
    "one value": (lambda t: t.assign(amount=2.5), {"label": "amount"}, "nothing to predict"),
    "before the log": (lambda t: t, {"at": "2009-01-01"}, "outside the log"),
    "after the log": (lambda t: t, {"at": "2012-01-01"}, "outside the log"),
    "no date": (lambda t: t, {"at": "soon"}, "is not a time"),
    "older than the log": (lambda t: t, {"stale_weeks": (50,)}, "--stale-weeks 50"),
    "one fold": (lambda t: t, {"folds": 1}, "folds"),
    "an unknown probe": (lambda t: t, {"probes": ("forest",)}, "probes"),
    "an age twice": (lambda t: t, {"stale_weeks": (1, 1)}, "listed twice"),
    "an unknown part": (lambda t: t, {"pool": ("first",)}, "unknown part 'first'"),
    "an unknown setting": (lambda t: t, {"fold": 3}, "Did you mean 'folds'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_refused(
    case: str, universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    change, settings, message = BAD[case]
    with pytest.raises(BehaveGPTError) as error:
        asked(universal, events, change(labels.copy()), **settings)
    assert message in str(error.value) and "\n  " not in str(error.value).strip()


FILES = {
    "a broken line": (b"user_id,churned\n1,true,x,y\n", "does not have the columns"),
    "an empty file": (b"", "labels.csv"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_refused_by_name(
    case: str, tmp_path: Path, events: pd.DataFrame, labels: pd.DataFrame, capsys: Any
) -> None:
    words = write(tmp_path, events.head(3000), labels)
    Path(words[1]).write_bytes(FILES[case][0])
    assert main(["probe", "demo", *words, "--at", "2011-10-10"]) == 2
    assert FILES[case][1] in capsys.readouterr().err


def test_users_are_matched_whatever_their_type(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    floats = pa.table({"user_id": labels["user_id"].astype(float), "churned": labels["churned"]})
    text = pa.table({"user_id": labels["user_id"].astype(str), "churned": labels["churned"]})
    found = [asked(universal, events, one).to_dict() for one in (floats, text)]
    assert found[0]["users"] == len(labels) and found[0]["scores"] == found[1]["scores"]


def test_tables_of_a_saved_folder_which_know_the_future_are_not_used(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame, tmp_path: Path
) -> None:
    folder = universal.fit_tables(with_a_future(events), **COLUMNS).save(tmp_path / "counted")
    found = asked(load_zero_shot(folder), events, labels)
    with pytest.raises(ConfigError, match="tz is part of the model"):
        behavegpt.probe(folder, events, labels, "2011-10-10", columns=COLUMNS)
    assert found.to_dict()["scores"] == asked(universal, events, labels).to_dict()["scores"]


def test_rows_without_a_label_or_a_user_are_left_out_and_counted(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    text = labels[["user_id", "segment"]].astype({"user_id": "object"})
    text.loc[text.index[:3], "segment"] = None
    text.loc[text.index[3:5], "user_id"] = None
    facts = asked(universal, events, text, label="segment").facts
    assert facts["rows_without_user_or_label"] == 5 == facts["unlabeled_users"]
    assert facts["users"] == len(labels) - 5 and list(facts["classes"]) == ["many", "none", "some"]


def test_rows_that_cannot_be_read_are_told(
    universal: Any, events: pd.DataFrame, labels: pd.DataFrame
) -> None:
    broken = events.assign(timestamp=events["timestamp"].astype(str))
    broken.loc[broken.index[:7], "timestamp"] = "soon"
    with pytest.warns(UserWarning, match="7 rows left out: time cannot be read"):
        asked(universal, broken, labels)


def test_a_part_that_the_model_does_not_have_is_refused(universal: Any, events: Any) -> None:
    with pytest.raises(ConfigError, match="no part 'mean'"):
        users = events["user_id"].unique()
        labels = pd.DataFrame({"user_id": users, "churned": users % 2 == 0})
        asked(universal, events, labels, pool=("mean",))
