"""eval/losses.py: losses that begin as cross-entropy may share that part of the run."""

from __future__ import annotations

import importlib.util
import json

import pyarrow.parquet as pq
import pytest

from behavegpt.data.prepare import prepare
from behavegpt.data.synthetic import SYNTHETIC_SCHEMA, small_log
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("losses", ROOT / "eval" / "losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_shared_start_equals_separate_runs(script, tmp_path):
    pq.write_table(small_log(users=40, events=3000, seed=2), tmp_path / "log.parquet")
    prepare([tmp_path / "log.parquet"], tmp_path / "data", SYNTHETIC_SCHEMA)
    line = [str(tmp_path / "data"), "--config", str(ROOT / "configs/tiny.yaml"), "--steps", "10", "--seeds", "0"]
    names = ["cross_entropy", "dro", "balanced_softmax"]
    assert script.main([*line, "--out", str(tmp_path / "together.jsonl"), "--losses", *names]) == 0
    for name in names:
        assert script.main([*line, "--out", str(tmp_path / "apart.jsonl"), "--losses", name]) == 0
    together, apart = (
        {row["loss"]: row for row in map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())}
        for name in ("together", "apart")
    )
    for name in names:
        mine, other = ({k: v for k, v in rows[name].items() if k != "seconds"} for rows in (together, apart))
        assert mine == other
    assert together["dro"]["cross_entropy"] != together["cross_entropy"]["cross_entropy"]
    assert script.main([*line, "--out", str(tmp_path / "together.jsonl"), "--losses", *names]) == 0
    rows = (tmp_path / "together.jsonl").read_text().splitlines()
    assert len(rows) == len(names) + len(script.PRIOR_CORRECTIONS), "finished rows are skipped"
    figure = tmp_path / "frontier.png"
    assert script.main([*line, "--out", str(tmp_path / "together.jsonl"), "--plot", str(figure)]) == 0
    assert figure.stat().st_size > 10_000
