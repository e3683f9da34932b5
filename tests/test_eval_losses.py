"""eval/losses.py: losses that begin as cross-entropy may share that part of the run."""

from __future__ import annotations

import importlib.util
import json

import pyarrow.parquet as pq
import pytest

from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.ingest.prepare import prepare
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
    line = [
        str(tmp_path / "data"),
        "--config",
        str(ROOT / "configs/tiny.yaml"),
        "--steps",
        "10",
        "--seeds",
        "0",
    ]
    dro = "dro n0 .2 floor .9"
    names = ["cross_entropy", dro, "balanced_softmax"]
    assert script.main([*line, "--out", str(tmp_path / "together.jsonl"), "--losses", *names]) == 0
    for name in names:
        assert script.main([*line, "--out", str(tmp_path / "apart.jsonl"), "--losses", name]) == 0
    together, apart = (
        {
            (row["loss"], row["split"]): row
            for row in map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        }
        for name in ("together", "apart")
    )
    for name in ((name, split) for name in names for split in ("valid", "test")):
        mine, other = (
            {k: v for k, v in rows[name].items() if k != "seconds"} for rows in (together, apart)
        )
        assert mine == other
    assert (
        together[dro, "test"]["cross_entropy"] != together["cross_entropy", "test"]["cross_entropy"]
    )
    assert script.main([*line, "--out", str(tmp_path / "together.jsonl"), "--losses", *names]) == 0
    rows = (tmp_path / "together.jsonl").read_text().splitlines()
    assert len(rows) == 2 * (len(names) + len(script.PRIOR_CORRECTIONS)), (
        "finished rows are skipped"
    )
    figure = tmp_path / "frontier.png"
    assert (
        script.main([*line, "--out", str(tmp_path / "together.jsonl"), "--plot", str(figure)]) == 0
    )
    assert figure.stat().st_size > 10_000
    assert script.main(["--choose", str(tmp_path / "together.jsonl")]) == 0


def test_the_choice_looks_at_validation_rows_and_at_what_is_kept(script, tmp_path):
    def row(loss, split, rec_m, rec_w=0.5):
        return {
            "loss": loss,
            "split": split,
            "layer": "history",
            "rec_w": rec_w,
            "rec_m": rec_m,
            "ndcg@3": 0.6,
        }

    rows = [
        row("cross_entropy", "valid", 0.1),
        row("a", "valid", 0.2, 0.4),
        row("b", "valid", 0.12),
    ]
    rows += [row("cross_entropy", "test", 0.1), row("b", "test", 0.9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = script.choose([tmp_path / "rows.jsonl"], "history").splitlines()[2:]
    assert lines[0].startswith("| a | +100.0% | -20.0%") and lines[0].endswith("no |")
    assert lines[1].startswith("| b | +20.0% | +0.0%") and lines[1].endswith("yes |")
