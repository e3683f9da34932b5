"""The README's commands exist as written."""

from __future__ import annotations

import re

import pytest

import behavegpt
from behavegpt.cli import _parse
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^behavegpt (.*?)(?:\s+#.*)?$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
    arguments = _parse(command.split())
    assert command.split()[0] == arguments.command.split()[1]


def test_there_are_commands():
    assert len(COMMANDS) >= 6


def test_the_named_files_exist():
    for name in re.findall(r"(?:configs|docs|eval|behavegpt)/[\w/]+\.(?:yaml|md|py)", TEXT):
        assert (ROOT / name).is_file(), name
    for name in ("bootstrap.sh", "train.py", "Makefile", "constraints/cpu.txt", ".ci/run"):
        assert (ROOT / name).exists(), name


def test_the_public_names_import():
    for name in behavegpt.__all__:
        assert getattr(behavegpt, name) is not None
