"""Borda count with its ties, from our result files and the organizers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from behavegpt.challenge.leaderboard import Result, Score, borda, leaderboard, read_result
from behavegpt.challenge.targets import task_named
from behavegpt.cli import main
from behavegpt.errors import BehaveGPTError, ConfigError, DataError

OURS = {
    "name": "ours",
    "tasks": {
        "churn": {"mean": 0.75, "std": 0.015, "seeds": [1, 2, 3]},
        "propensity_sku": {"mean": 0.70, "std": 0.001, "seeds": [1, 2, 3]},
        "propensity_new_sku": {"mean": 0.4, "std": None, "seeds": [1278]},
    },
}
COUNTS = {
    "name": "counts",
    "tasks": {
        "churn": {"mean": 0.74, "std": 0.015, "seeds": [1, 2, 3]},
        "propensity_sku": {"mean": 0.60, "std": 0.001, "seeds": [1, 2, 3]},
    },
}
THEIRS = {"churn": 0.70, "propensity_sku": 0.60004, "hidden2": 0.5, "placeholder": -1}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_points_are_those_of_average_ranks() -> None:
    """rank k of N gives N - k, k the mean of the tied ranks (scipy's)."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        scores = {f"e{k}": round(float(s), 4) for k, s in enumerate(rng.integers(0, 8, size) / 8)}
        ranks = rankdata([-score for score in scores.values()], method="average")
        assert list(borda(scores).values()) == pytest.approx((size - ranks).tolist())
        assert sum(borda(scores).values()) == size * (size - 1) / 2


def test_the_board(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.json", OURS),
        write(tmp_path / "b.json", COUNTS),
        write(tmp_path / "theirs" / "scores.json", THEIRS),
    ]
    board = leaderboard([read_result(file) for file in files])
    assert board["tasks"] == ["churn", "propensity_sku", "propensity_new_sku"]
    points = {
        entry["name"]: {t: s["points"] for t, s in entry["tasks"].items()}
        for entry in board["entries"]
    }
    assert points == {
        "ours": {"churn": 2, "propensity_sku": 2, "propensity_new_sku": 0},
        # .60004 is .6000: a tie
        "theirs": {"churn": 0, "propensity_sku": 0.5, "propensity_new_sku": 1},
        "counts": {"churn": 1, "propensity_sku": 0.5},
    }
    places = [(entry["place"], entry["name"], entry["borda"]) for entry in board["entries"]]
    assert places == [(1, "ours", 4), (2, "theirs", 1.5), (2, "counts", 1.5)]
    assert board["within_noise"] == [("churn", "ours", "counts")]


def test_places_after_a_tie_are_skipped() -> None:
    results = [
        Result(name, {"churn": Score(s)})
        for name, s in (("a", 0.5), ("b", 0.7), ("c", 0.7), ("d", 0.9))
    ]
    assert [(e["place"], e["name"]) for e in leaderboard(results)["entries"]] == [
        (1, "d"),
        (2, "b"),
        (2, "c"),
        (4, "a"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no readable result file"),
        ("[]", "expected"),
        ("{}", "holds no task"),
        ('{"placeholder": -1}', "holds no task"),
        ('{"churn": NaN}', "score of churn is nan"),
        ('{"churn": "0.5"}', "score of churn"),
        ('{"churn": 57}', "score of churn is 57"),
        ('{"tasks": {"churn": {"std": 0.1}}}', "score of churn"),
        ('{"chrun": 0.5}', "Did you mean 'churn'"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(content)
    with pytest.raises((DataError, ConfigError), match=says):
        read_result(file)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(BehaveGPTError, match="two results are named 'a'"):
        leaderboard([Result("a", {"churn": Score(0.5)})] * 2)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "results" / "a.json", OURS)
    write(tmp_path / "results" / "b.json", COUNTS)
    theirs = write(tmp_path / "theirs" / "scores.json", THEIRS)
    command = ["challenge", "leaderboard", str(tmp_path / "results"), str(theirs)]
    assert main([*command, "--out", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr()
    assert "1. ours" in shown.out
    assert "0.7500 ± 0.0150" in shown.out
    assert "churn: ours and counts differ by less than the noise" in shown.err
    assert (tmp_path / "results" / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--json"]) == 0  # the board among the results is not taken for one
    board = json.loads(capsys.readouterr().out)
    assert board == json.loads((tmp_path / "results" / "leaderboard.json").read_text())


def with_protocol(name: str, **protocol: Any) -> dict[str, Any]:
    return {
        **OURS,
        "name": name,
        "width": None,
        "tf32": False,
        "vectors": {"clients": 500},
    } | protocol


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"width": 192}, "network width differs (2048 and 192)"),
        ({"tf32": True}, "precision differs (fp32 and TF32)"),
        ({"vectors": {"clients": 400}}, "clients differ (500 and 400)"),
    ],
)
def test_what_cannot_be_compared_is_not_ranked(
    other: dict[str, Any], told: str, tmp_path: Path
) -> None:
    files = [
        write(tmp_path / "a.json", with_protocol("a")),
        write(tmp_path / "b.json", with_protocol("b", **other)),
    ]
    # tells nothing, so goes with all
    files.append(write(tmp_path / "theirs" / "scores.json", THEIRS))
    with pytest.raises(DataError, match="'a' and 'b' cannot be ranked together") as error:
        leaderboard([read_result(file) for file in files])
    assert told in str(error.value)
    leaderboard([read_result(files[0]), read_result(files[2])])


@pytest.mark.parametrize("seeds", [None, 0, -1, "three", [], {}, True])
def test_seeds_that_are_none_are_refused(seeds: Any, tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.json", {"tasks": {"churn": {"mean": 0.7, "std": None, "seeds": seeds}}}
    )
    with pytest.raises(DataError, match="the seeds of churn are"):
        read_result(file)


def test_the_organizers_names_of_hidden_tasks(tmp_path: Path) -> None:
    result = read_result(
        write(tmp_path / "a.json", {"hidden1": 0.5, "hidden2": 0.6, "hidden3": 0.7})
    )
    assert list(result.scores) == ["conversion", "propensity_new_sku", "propensity_price"]
    with pytest.raises(ConfigError, match="the organizers' name of the task 'conversion'"):
        task_named("hidden1")
