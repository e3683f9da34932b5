"""benchmarks/gpu.py with tiny sizes on a CPU: every row is there, and the rows learn the same
events."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behavegpt.batch import IGNORED
from tests.conftest import ROOT


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def module() -> Any:
    return benchmark("gpu")


ARGUMENTS = [
    "--sizes",
    "tiny",
    "--events-per-step",
    "1024",
    "--users",
    "200",
    "--seconds",
    "0.05",
    "--matmul",
    "128",
]


def test_every_row_is_measured(module: Any, tmp_path: Path) -> None:
    found = module.main([*ARGUMENTS, "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == json.loads(json.dumps(found))
    figures = found[0]
    assert set(figures["rows"]) == {"ours, packed, sdpa", "ours, padded, sdpa", "GPT-2, sdpa"}
    for name, row in figures["rows"].items():
        assert row["events_per_s"] > 0 and row["memory_mib"] > 0
        assert row.get("mfu", 0) > 0 or name.startswith("GPT-2")
    assert figures["matmul_tflops"] > 0 and figures["copy_gb_per_s"] > 0
    assert figures["parts_ms"]["whole step"] > figures["parts_ms"]["head and loss"] > 0
    assert figures["precision"] == "fp32" and figures["device"].startswith("CPU")


def gpu_pass(tmp_path: Path, *parts: str) -> list[dict[str, Any]]:
    arguments = [
        "--small",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "rows.jsonl"),
        "--parts",
        *parts,
    ]
    rows: list[dict[str, Any]] = benchmark("gpu_pass").main(arguments)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert {row["part"] for row in rows} == set(parts)
    assert not [row["error"] for row in rows if "error" in row]
    return rows


def test_every_line_of_the_gpu_pass_runs(tmp_path: Path) -> None:
    parts = [
        "attention",
        "training",
        "throughput",
        "head",
        "evaluator",
        "export",
        "generation",
        "windows",
    ]
    rows = gpu_pass(tmp_path, *parts)
    equal = [row for row in rows if row["part"] == "attention"]
    assert all(
        row[name] < 1e-5 for row in equal for name in ("out", "dq", "packed - alone") if name in row
    )
    assert next(row for row in rows if row["part"] == "head")["gradient difference"] < 1e-5
    assert all(
        row["recorded losses equal plain ones"] for row in rows if row["part"] == "evaluator"
    )


@pytest.mark.slow
def test_the_runs_of_the_gpu_pass_agree(tmp_path: Path) -> None:
    rows = gpu_pass(tmp_path, "runs")
    assert {row["run"] for row in rows} == {"whole", "resumed", "evaluated"}
    assert next(row for row in rows if row["run"] == "resumed")["equal"]


def test_padded_rows_hold_the_packed_events(module: Any) -> None:
    args = module.argparse.Namespace(
        users=300, events_per_step=2048, seconds=0.0, matmul=8, compile=False
    )
    bench = module.Bench(module.SIZES["tiny"], torch.device("cpu"), args)
    packed = next(iter(bench.batches.micro_batches(0)))
    padded = next(iter(module.PaddedBatches(bench.batches).micro_batches(0)))
    assert sorted(packed.row[packed.row >= 0].tolist()) == sorted(
        padded.row[padded.row >= 0].tolist()
    )
    assert padded.document.shape[1] == 90 and int((padded.position == 0).sum(1).min()) >= 1
    model = bench.model()
    losses = [
        model(**b.inputs, document=b.document, position=b.position, labels=b.target).loss.item()
        for b in (packed, padded)
    ]
    assert abs(losses[0] - losses[1]) < 1e-5
    assert int((packed.target != IGNORED).sum()) == int((padded.target != IGNORED).sum())


def test_flops_are_those_of_torch(module: Any) -> None:
    """Of the forward of whole rows; torch counts what kernels do, so attention is not halved by the
    mask."""
    from torch.utils.flop_counter import FlopCounterMode

    args = module.argparse.Namespace(
        users=50, events_per_step=2048, seconds=0.0, matmul=8, compile=False
    )
    bench = module.Bench(module.Size(2, 64, 2), torch.device("cpu"), args)
    model = bench.model().eval()
    model.set_attn_implementation("eager")  # the counter knows no attention kernel of a CPU
    ids = {
        n: torch.zeros(3, 64, dtype=torch.long)
        for n in ("input_ids", "location_ids", "weekday_ids", "slot_ids")
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**ids)
    # forward: a third of training
    whole_rows = module.event_flops(model, 64.0) / 3 * ids["input_ids"].numel()
    assert np.isclose(counter.get_total_flops(), whole_rows, rtol=0.01)


@pytest.mark.gpu
def test_a_gpu_runs_all_back_ends(module: Any, tmp_path: Path) -> None:
    found = module.main(
        ["--sizes", "3M", "--seconds", "1", "--users", "2000", "--out", str(tmp_path / "gpu.json")]
    )
    rows = found[0]["rows"]
    assert found[0]["precision"] == "bf16" and "ours, packed, varlen" in rows
    assert max(row.get("mfu", 0) for row in rows.values()) < 1
