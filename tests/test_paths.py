"""Paths: `~` is expanded and an empty one refused, on the command line, in settings and from
Python."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from behavegpt.cli import COMMANDS, _parser, main
from behavegpt.cli.command import Group
from behavegpt.config import read_settings
from behavegpt.data.store import open_store
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.sources import find_logs
from behavegpt.paths import local_path
from behavegpt.pretrain import PretrainSettings
from tests.conftest import ROOT

ROWS = "user,time,event\n" + "".join(
    f"u{i % 3},2024-03-{i + 1:02} 10:00:00,e{i % 2}\n" for i in range(20)
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a log, which is not the current folder."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "log.csv").write_text(ROWS)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def parsers(verbs: dict[str, Any], names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, verb in verbs.items():
        if isinstance(verb, Group):
            yield from parsers(verb.commands, (*names, name))
        else:
            yield (*names, name)


def parser_of(names: tuple[str, ...]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _parser()
    for name in names:
        action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = action.choices[name]
    return parser


@pytest.mark.parametrize("names", parsers(COMMANDS), ids=" ".join)
def test_every_path_of_every_verb(names: tuple[str, ...], home: Path) -> None:
    parser = parser_of(names)
    for action in parser._actions:
        if action.type is not Path:
            continue
        assert parser._get_value(action, "~/x") == home / "x"
        with pytest.raises(argparse.ArgumentError, match="empty path"):
            parser._get_value(action, "")


@pytest.mark.parametrize(
    "line",
    [["prepare", "", "--out", "x"], ["prepare", "~/log.csv", "--out", ""],
     ["prepare", "~/log.csv", "", "--out", "x"], ["train", "", "data.path=x"],
     ["evaluate", "", "x"], ["export-model", "x", ""], ["synthesize", "--out", ""]],
)  # fmt: skip
def test_empty_paths_are_mistakes(
    line: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(line)
    except SystemExit as stopped:  # argparse
        code = int(stopped.code or 0)
    assert code == 2
    assert "empty path" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_the_home_folder_everywhere(home: Path) -> None:
    assert main(["prepare", "~/log.csv", "--out", "~/data"]) == 0
    assert find_logs("~/*.csv").files == (home / "log.csv",)
    assert open_store("~/data").path == home / "data"
    assert prepare("~/log.csv", "~/again", find_schema()).path == home / "again"
    settings = read_settings(PretrainSettings, None, ["data.path=~/data", "out=~/run"])
    assert (settings.data.path, settings.out) == (str(home / "data"), str(home / "run"))
    (home / "run.yaml").write_text("data: {path: ~/data}\nout: ~/run\n")
    (home / "other.yaml").write_text("base: ~/run.yaml\n")
    assert read_settings(PretrainSettings, "~/other.yaml").out == str(home / "run")
    assert list(Path.cwd().iterdir()) == []


def find_schema() -> Any:
    from behavegpt.data.schema import EventSchema

    return EventSchema(user="user", time="time", event="event")


def test_empty_settings_and_python(home: Path) -> None:
    with pytest.raises(ConfigError, match="out = '': empty path"):
        read_settings(PretrainSettings, None, ["data.path=x", "out=''"])
    for call in (open_store, find_logs, local_path):
        with pytest.raises(BehaveGPTError, match="empty path"):
            call("")
    with pytest.raises(BehaveGPTError, match="empty path"):
        prepare("~/log.csv", "")


def test_prepare_with_an_encoding(home: Path) -> None:
    (home / "latin.csv").write_bytes(ROWS.replace("e1", "é").encode("latin-1"))
    assert main(["prepare", "~/latin.csv", "--out", "a"]) == 2
    assert main(["prepare", "~/latin.csv", "--encoding", "latin-1", "--dry-run"]) == 0
    assert main(["prepare", "~/latin.csv", "--encoding", "latin-1", "--out", "a"]) == 0
    assert "é" in open_store("a").vocabulary["event"].values.to_pylist()


def test_names_that_are_not_utf8_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrow and DuckDB cannot open them."""
    odd = Path(os.fsdecode(b"log\xff.csv"))
    odd.write_text(ROWS)
    for run in (lambda: find_logs(odd), lambda: find_logs("."), lambda: local_path(odd)):
        with pytest.raises(ConfigError, match="the name is not UTF-8; rename it"):
            run()
    with pytest.raises(SystemExit, match="2"):
        main(["synthesize", "--events", "100", "--out", os.fsdecode(b"out\xff.parquet")])
    assert "the name is not UTF-8" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_streams_that_are_closed_or_full(home: Path) -> None:
    """`2>&-` closes standard error; `--json > /dev/full` cannot be written."""
    log = home / "log.csv"
    for command, redirected, code, told in (
        (f"prepare {log} --dry-run", ">&- 2>&-", 0, ""),
        # a command that begins in tenths of a second: the result is printed by the same lines
        ("models demo", "--json > /dev/full", 2, "the disk is full"),
    ):
        line = f"{sys.executable} -m behavegpt {command} {redirected}"
        ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=ROOT)
        assert (
            ended.returncode == code and told in ended.stderr and "Traceback" not in ended.stderr
        ), ended.stderr
