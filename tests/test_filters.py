"""Filters of predictions: each is the plain answer with rows taken out, from Python, the command
line and the service, of trained models and the universal one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.data.memory_counts import count_store
from behavegpt.data.memory_past import EXPERTS
from behavegpt.demo import DEMO_SCHEMA, online_retail
from behavegpt.errors import BehaveGPTError, ConfigError, DataError
from behavegpt.zero_shot import UniversalPredictor
from tests.helpers import random_store
from tests.test_predictor import made

RANDOM = np.random.default_rng(0)
LOG = pd.DataFrame(
    {
        "u": [f"user{n % 3}" for n in range(36)],
        "t": pd.date_range("2020-01-01", periods=36, freq="7h"),
        "e": [f"event{n % 5}" for n in range(36)],
        "l": "location1",
        # users with one behavior, two and three; None is unknown
        "b": [
            f"behavior{n % 3 + RANDOM.integers(n % 3 + 1)}" if n % 7 else None for n in range(36)
        ],
    }
)
LABELS = [f"behavior{n}" for n in range(5)]


def retail() -> UniversalPredictor:
    rows = pd.read_parquet(online_retail())
    rows = rows[rows.user_id.isin(sorted(rows.user_id.unique())[:25])]
    return behavegpt.load("universal").fit_tables(rows, DEMO_SCHEMA)


@pytest.fixture(scope="module", params=["trained", "trained with memory", "universal", "retail"])
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A predictor, and the events that it is asked about."""
    if request.param == "retail":
        return retail(), None
    if request.param == "universal":
        known = LOG.assign(b=LOG.b.fillna("behavior4"))
        schema = {"user": "u", "time": "t", "event": "e", "behavior": "b"}
        return behavegpt.load("universal").fit_tables(known, **schema), known
    if request.param == "trained":
        return made(), LOG
    predictor = made(memory_experts=list(EXPERTS))
    predictor.model.counts = count_store(random_store(0, behaviors=5, events=12))
    return predictor, LOG


def plain(model: Any, events: Any, **decision: Any) -> pd.DataFrame:
    """All behaviors of all users with their probabilities."""
    return model.predict(events, model.tokenizer.behaviors.classes, **decision).to_pandas()


def had(model: Any, events: Any) -> set[tuple[str, str]]:
    """Users and the behaviors that their histories hold."""
    encoded = model.log.histories if events is None else model.encode(events)
    names = np.repeat(encoded.users.to_pylist(), np.diff(encoded.offsets))
    labels = model.tokenizer.behaviors.decode(encoded.columns["behavior"])
    return set(zip(names, labels, strict=True))


@pytest.mark.parametrize("rule", [{}, {"prior_correction": 0.5}])
@pytest.mark.parametrize(
    "filters", ["among", "exclude", "exclude_seen", "among, exclude and exclude_seen", "per_group"]
)
def test_a_filter_takes_rows_out_and_changes_no_other(
    model: tuple[Any, Any], filters: str, rule: dict[str, float]
) -> None:
    predictor, events = model
    labels = predictor.tokenizer.behaviors.values.to_pylist()
    some, others = labels[1:4], labels[2:3]
    expected = plain(predictor, events, **rule)
    options: dict[str, Any] = dict(rule)

    if "among" in filters:
        options["among"] = some
        expected = expected[expected.behavior.isin(some)]
    if "exclude" in filters.replace("exclude_seen", ""):
        options["exclude"] = others
        expected = expected[~expected.behavior.isin(others)]
    if "exclude_seen" in filters:
        options["exclude_seen"] = True
        seen = had(predictor, events)
        left = [pair not in seen for pair in zip(expected.user, expected.behavior, strict=True)]
        assert not all(left)
        expected = expected[left]
    keys = ["user"]
    if filters == "per_group":
        mapping = {label: ("b", "a")[n % 2] for n, label in enumerate(labels[1:])}
        options["per_group"] = mapping | {"no behavior": "c"}
        expected = expected[expected.behavior.isin(mapping)]
        expected.insert(1, "group", expected.behavior.map(mapping))
        keys = ["user", "group"]
        expected = expected.sort_values(keys, kind="stable")

    expected = expected.groupby(keys, sort=False).head(2)
    expected["rank"] = expected.groupby(keys).cumcount() + 1
    found = predictor.predict(events, 2, **options)
    pd.testing.assert_frame_equal(
        found.to_pandas(), expected.reset_index(drop=True), check_dtype=False
    )
    assert found.empty == len(found) - expected.user.nunique()
    told = [row["behavior"] for user in found.answers() for row in user]
    assert told == expected.behavior.to_list()


def test_states_know_what_their_users_had(model: tuple[Any, Any], tmp_path: Path) -> None:
    predictor, events = model
    if events is not None and isinstance(predictor, UniversalPredictor):
        events = None
    whole = predictor.predict(events, 3, exclude_seen=True).to_pandas()
    known = predictor if events is None else predictor.with_states(events)
    states = list(known.users.values())
    if predictor.__class__ is not UniversalPredictor and predictor.model.counts is None:
        with pytest.raises(DataError, match="keeps the last events alone"):
            known.predict(states, 3, exclude_seen=True)
        return
    found = known.predict(states, 3, exclude_seen=True).to_pandas()
    pd.testing.assert_frame_equal(found, whole, atol=1e-5)
    if isinstance(predictor, UniversalPredictor):
        saved = behavegpt.load(predictor.save(tmp_path / "counted"))
        assert saved.predict(top_k=3, exclude_seen=True).to_pandas().equals(found)


REFUSED: dict[str, tuple[dict[str, Any], type[BehaveGPTError], str]] = {
    "near miss": ({"exclude": ["behaviour1"]}, ConfigError, "exclude: .*'behaviour1'.*mean 'beh"),
    "no near miss": ({"among": ["zzz", "y"]}, ConfigError, "'zzz' .and 1 other.*most frequent"),
    "a null": ({"among": [None]}, ConfigError, "among"),
    "a text": ({"among": "behavior1"}, ConfigError, "among = .*write a list of labels"),
    "nothing asked for": ({"among": []}, ConfigError, "among"),
    "nothing left": ({"among": LABELS[:2], "exclude": LABELS}, ConfigError, "among and exclude le"),
    "no group": ({"per_group": {}}, ConfigError, "per_group = .*mapping of label to group"),
    "groups of others": (
        {"per_group": {"behavor1": "a"}},
        ConfigError,
        "none of its 1 labels.*mean",
    ),
    "not a truth value": ({"exclude_seen": "yes"}, ConfigError, "exclude_seen"),
}


@pytest.mark.parametrize(("options", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(options: dict[str, Any], kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        made().predict(LOG, **options)


def test_a_history_without_behaviors_has_none_to_exclude() -> None:
    with pytest.raises(DataError, match="no event tells a behavior"):
        made().predict(LOG.drop(columns="b"), exclude_seen=True)


@pytest.mark.parametrize(
    "written", [[7, 12], [7.0, "12"], np.array([7, 12]), pd.Series(["7", "12"])]
)
def test_labels_that_are_numbers_have_one_meaning(written: Any) -> None:
    log = LOG.assign(e=[5, 7, 12] * 12)
    counted = behavegpt.load("universal").fit_tables(log, user="u", time="t", event="e")
    assert set(counted.predict(among=written).labels.ravel()) == {"7", "12"}


def test_the_command_line_reads_labels_and_groups_from_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, some, groups = (tmp_path / name for name in ("log.csv", "some.txt", "groups.csv"))
    LOG.assign(e=LOG.e.str.replace("event", "1")).to_csv(log, index=False)
    some.write_text("10\n\n12\n", encoding="utf-8-sig")
    groups.write_text("label,group\n10,a\n11,a\n12,7\n13,\n")
    columns = ["--user", "u", "--time", "t", "--event", "e"]
    command = ["predict", "universal", str(log), "--json", *columns]

    def asked(*options: str, code: int = 0) -> Any:
        assert main([*command, *options]) == code
        out, error = capsys.readouterr()
        return json.loads(out) if code == 0 else error

    rows = asked("--among", f"@{some}", "14", "--exclude", "12")
    assert {row["behavior"] for row in rows} == {"10", "14"}
    rows = asked("--per-group", str(groups), "--top-k", "1")
    assert [row["group"] for row in rows[:2]] == ["7", "a"] and len(rows) == 6
    assert list(rows[0]) == ["user", "group", "rank", "behavior", "probability"]
    assert "not a text file of labels" in asked("--among", f"@{tmp_path / 'none'}", code=2)
    for text, words in {
        "a,b,c\n1,2,3\n": "3 columns (a, b, c)",
        "a,b\n10,x\n10,y\n": "in two groups, 'x' and 'y'",
    }.items():
        groups.write_text(text)
        assert words in asked("--per-group", str(groups), code=2)


def test_users_of_whom_nothing_is_left_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of two users had one of the two behaviors; the third had both."""
    log = pd.DataFrame(
        {"u": list("aaabbbcc"), "e": list("xxxyyyxy"), "t": pd.date_range("2024", periods=8)}
    )
    log.to_csv(tmp_path / "log.csv", index=False)
    command = ["predict", "universal", str(tmp_path / "log.csv"), "--user", "u", "--event", "e"]
    assert main([*command, "--time", "t", "--exclude-seen"]) == 0
    out, error = capsys.readouterr()
    assert "no behavior passes the filters for 1 users" in error
    assert [line.split()[:3] for line in out.splitlines()[-2:]] == [
        ["a", "1", "y"],
        ["b", "1", "x"],
    ]
