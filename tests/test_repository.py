"""What stands around the code agrees with it: versions, workflows, templates."""

from __future__ import annotations

import re

import pytest
import yaml

import behavegpt
from tests.conftest import FIRST, ROOT, TOGETHER

YAML = [
    ROOT / "CITATION.cff",
    ROOT / ".pre-commit-config.yaml",
    *sorted((ROOT / ".github").rglob("*.yml")),
]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_a_file_is_yaml(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(
        r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.M,
    )
    assert newest is not None
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
    assert behavegpt.__version__ == citation["version"]


def test_ci_tries_every_python_that_the_package_declares():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"][
        "strategy"
    ]["matrix"]
    declared = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))
    assert matrix["python"] == declared


def test_nothing_is_published_unless_somebody_switches_it_on():
    for name in ("release", "docs"):
        jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
        assert "vars.PUBLISH_" in jobs["publish"]["if"]


def test_what_workers_begin_with_is_there():
    files = [*FIRST[len(TOGETHER) :], *(begin for group in TOGETHER.values() for begin in group)]
    assert [file for file in files if not (ROOT / file).exists()] == []
