"""The recipe of docs/probe.md: its Python, its commands as they stand, and its figures."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import behavegpt.demo
from behavegpt.cli import main
from tests.conftest import ROOT
from tests.probing.test_probe import WORDS

TEXT = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")
RECIPE = TEXT.partition("## Recipe")[2]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE, SHELL = (
    "".join(t for kind, t in FENCED.findall(RECIPE) if kind == k) for k in ("python", "sh")
)
COMMANDS = [shlex.split(line)[1:] for line in SHELL.splitlines()]


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the recipe writes, in the working folder."""
    monkeypatch.chdir(folder)
    exec(compile(CODE, "docs/probe.md", "exec"), {})


def test_the_recipe_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a part of the customers, for the time it takes
    log = pd.read_parquet(behavegpt.demo.online_retail())
    log[log["user_id"] % 17 == 0].to_parquet(tmp_path / "some.parquet", index=False)
    monkeypatch.setattr(behavegpt.demo, "online_retail", lambda: tmp_path / "some.parquet")
    made(tmp_path, monkeypatch)
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        assert main([*command, *WORDS]) == 0
        assert "warning" not in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "churn").iterdir()} == {"probe.json", "probe.png"}


@pytest.mark.slow
def test_the_figures_are_those_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, monkeypatch)
    assert main([*COMMANDS[0], "--probes", "boosting"]) == 0
    found = json.loads((tmp_path / "churn" / "probe.json").read_text())
    means = {row["features"]: row["mean"] for row in found["scores"] if row["metric"] == "ROC-AUC"}
    table = dict(
        re.findall(r"^\| ([\w +]+) \| \**(\.\d+)\**", RECIPE.partition("Staleness")[0], re.M)
    )
    assert f"{found['users']:,} customers" in RECIPE
    for name in ("vectors", "counts", "counts + aggregates", "all"):
        assert means[name] == pytest.approx(float(table[name]), abs=0.004)
