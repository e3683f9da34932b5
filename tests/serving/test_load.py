"""The load tests of the service, for a second each: they run, and no answer is wrong."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DEMO = ROOT / "behavegpt" / "demo"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [("serve", ["--clients", "1", "4"]), ("soak", ["--clients", "4"])],
)
def test_every_answer_is_right(
    script: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "benchmarks" / f"{script}.py"
    monkeypatch.syspath_prepend(path.parent)  # they share code
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "RESULT", tmp_path / "rows.json")
    log = str(DEMO / "online_retail.parquet")
    words = [str(path), str(DEMO / "model"), "--log", log, "--seconds", "2", *options]
    monkeypatch.setattr(sys, "argv", words)

    with contextlib.suppress(SystemExit):  # of the soak: on a busy machine latencies tell nothing
        module.main()

    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["right"] > 0 and row["refused"] > 0
        assert row["wrong"] == row["bad_accepted"] == row["failed"] == 0
