"""Rules for all code of the package: nothing that executes what it reads."""

from __future__ import annotations

import ast
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("allow_pickle") == "False", (path.name, node.lineno)
