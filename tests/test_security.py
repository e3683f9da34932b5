"""Rules for all code of the package: nothing that executes what it reads."""

from __future__ import annotations

import re

from tests.conftest import ROOT

FORBIDDEN = re.compile(
    r"\b(import pickle|from "
    r"pickle|torch\.load\(|torch\.save\(|allow_pickle=True|trust_remote_code=True|shell=True"
    r"|yaml\.load\((?!.*Loader=_Loader)|os\.system\(|(?<![.\w])eval\(|(?<![.\w])exec\()"
)


def test_no_code_is_executed_from_files():
    files = [
        *(ROOT / "behavegpt").rglob("*.py"),
        ROOT / "train.py",
        ROOT / "finetune.py",
        *(ROOT / "eval").glob("*.py"),
    ]
    hits = [
        f"{path.name}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not hits, hits


def test_numpy_files_are_read_without_pickle():
    for path in (ROOT / "behavegpt").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in re.findall(r"np\.load\(.*", text):
            assert "allow_pickle=False" in call, (path.name, call)
