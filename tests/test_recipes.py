"""The commands of docs/recipes.md, run as they stand over logs in the layouts that the page
shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from behavegpt.cli import main
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.sources import find_logs
from tests.conftest import ROOT
from tests.recipe_logs import FOLDERS, TABLES, write_log

TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r"(user|time|event|location|behavior) `([^`]+)`")
TINY = ["train.steps=2"]


def commands(section: str) -> list[list[str]]:
    blocks = [text for kind, text in FENCED.findall(SECTIONS[section]) if kind == "sh"]
    return [shlex.split(line)[1:] for line in "".join(blocks).splitlines()]


def log_of(section: str) -> str:
    """The file that the first command of a section reads."""
    return commands(section)[0][2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands run, which is also the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def written(section: str, folder: Path) -> None:
    name = log_of(section)
    FOLDERS[name](folder) if name in FOLDERS else write_log(name, folder)


def test_each_log_has_a_recipe_and_each_recipe_a_log() -> None:
    assert {log_of(section) for section in SECTIONS} == {*TABLES, *FOLDERS}
    assert len(SECTIONS) >= 11


@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_run_and_guess_what_the_page_says(section: str, folder: Path, capsys) -> None:
    written(section, folder)
    asked, prepared = [], []
    for command in commands(section):
        if command[0] == "train":
            continue
        assert main(command) == 0, (command, capsys.readouterr().err)
        asked += [command] if command[:2] == ["predict", "universal"] else []
        prepared += [command] if command[0] == "prepare" else []
    assert asked and len(prepared) == 1
    told = capsys.readouterr().err
    assert "0 rejected" in told and "rows left out" not in told
    expected = dict(ROLE.findall(re.search(r"[Gg]uessed: (.*)", SECTIONS[section])[1]))  # type: ignore[index]
    encoding = "latin-1" if "latin-1" in asked[0] else None
    schema, _ = guess_schema(find_logs(asked[0][2], encoding), {})
    guessed = {role: getattr(schema, role) for role in ("user", "time", "event", "location")}
    assert {role: column for role, column in guessed.items() if column} == expected


TRAINED = ["Google Analytics 4, BigQuery export", "Bank statements, CSV-CAMT"]


@pytest.mark.parametrize(
    "section",
    [s if s in TRAINED else pytest.param(s, marks=pytest.mark.slow) for s in SECTIONS],
)
def test_the_prepared_logs_train(section: str, folder: Path, capsys) -> None:
    written(section, folder)
    for command in commands(section):
        if command[0] in ("convert", "prepare"):
            assert main(command) == 0
        if command[0] == "train":
            assert main([*command, *TINY]) == 0, capsys.readouterr().err
            run = Path(next(c for c in command if c.startswith("out="))[4:])
            assert (run / "model" / "config.json").is_file()


@pytest.mark.parametrize("section", [s for s in SECTIONS if log_of(s) in TABLES])
def test_the_shown_lines_have_the_columns_of_the_log(section: str, folder: Path) -> None:
    name = log_of(section)
    kind, shown = FENCED.findall(SECTIONS[section])[0]
    Path(f"shown{Path(name).suffix}").write_text(shown, encoding="utf-8")
    logs = [
        find_logs(f"shown{Path(name).suffix}"),
        find_logs(str(write_log(name, folder)), "latin-1"),
    ]
    assert set(logs[0].columns) == set(logs[1].columns)
    assert kind == {"jsonl": "json"}.get(Path(name).suffix[1:], Path(name).suffix[1:])
    if kind == "json":
        assert set(logs[0].nested) == set(logs[1].nested)
        assert json.loads(shown if shown.startswith("[") else shown.splitlines()[0])


def test_the_shown_requests_are_converted(folder: Path) -> None:
    _, shown = FENCED.findall(SECTIONS["Web server log"])[0]
    Path("access.log").write_text(shown, encoding="utf-8")
    assert main(["convert", "web_log", "access.log", "--out", "visits.parquet"]) == 0
