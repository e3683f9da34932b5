"""Figures are drawn from result files; a damaged file is named."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from behavegpt import plots
from behavegpt.baselines import counts
from behavegpt.errors import BehaveGPTError, DataError
from behavegpt.plots_evaluation import _binned
from behavegpt.result_files import best_baseline

HOSTILE = "<script>alert('x')</script> $\\frac{ & |pipe|"
BASELINES = counts.NAMES
FIGURES = (
    "rec_w",
    "rec_m",
    "prec_w",
    "prec_m",
    "f1_w",
    "f1_m",
    "ndcg@3",
    "ndcg@5",
    "hr@3",
    "hr@5",
    "head",
    "mid",
    "tail",
)


def fake_run(run: Path, classes: int = 40, steps: int = 600) -> Path:
    """A run folder whose files have the shapes of a real one, with a hostile label among its
    behaviors."""
    rng = np.random.default_rng(0)
    (run / "eval").mkdir(parents=True)
    (run / "model").mkdir()
    labels = [HOSTILE, "日本語 ラベル", *(f"Café & Bar no. {k}" for k in range(classes - 2))]
    _write(run / "run.json", _facts(classes, steps))
    with (run / "log.jsonl").open("w") as log:
        for step in range(10, steps + 1, 10):
            entropy = 2 + 1.6 * np.exp(-step / 120) + rng.normal(0, 0.06)
            record: dict[str, Any] = {
                "kind": "train",
                "step": step,
                "loss": entropy * 1.1,
                "cross_entropy": entropy,
            }
            log.write(
                json.dumps(record | {"lr": 1e-3, "grad_norm": 0.8, "events_per_second": 12345.6})
                + "\n"
            )
            if step % 60 == 0:
                share = 1 - np.exp(-step / 150)
                record = {
                    "kind": "valid",
                    "step": step,
                    "cross_entropy": entropy + 0.15,
                    "rec_w": 0.4 * share,
                }
                log.write(
                    json.dumps(record | {"rec_m": 0.25 * share, "ndcg@3": 0.5 * share}) + "\n"
                )
    models = {}
    for rank, name in enumerate(("behavegpt", *BASELINES)):
        level = 0.42 if rank == 0 else 0.2 + 0.01 * rank
        figures: dict[str, Any] = {key: round(level + 0.01 * i, 6) for i, key in enumerate(FIGURES)}
        deciles = (level * np.linspace(1.2, 0.3 if rank else 0.7, 10)).tolist()
        models[name] = figures | {
            "recall_by_decile": [*deciles[:7], None, *deciles[8:]],
            "tail": level / 3,
        }
    models["markov"]["hr@5"] = 0.9
    models["most_frequent"]["tail"] = None
    context = "model: the last 32 to 64 events; baselines: the whole past"
    protocol = {"split": "test", "context": context, "max_length": 64}
    bins = [
        {"predictions": 900 - 80 * k, "probability": (k + 0.5) / 10, "came_true": (k + 0.3) / 10}
        for k in range(10)
    ]
    metrics = {"models": models, "rows": 53_210, "protocol": protocol}
    _write(run / "eval" / "metrics.json", metrics | {"calibration": {"ece": 0.02, "bins": bins}})
    counts = (20_000 / np.arange(1, classes + 1) ** 1.6).astype(int) + 1
    with (run / "eval" / "per_behavior.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "model",
                "behavior",
                "train_count",
                "support",
                "predicted",
                "recall",
                "precision",
                "f1",
            ]
        )
        for name in models:
            recall = np.clip(rng.normal(0.4 if name == "behavegpt" else 0.25, 0.15, classes), 0, 1)
            for label, count, value in zip(labels, counts, recall, strict=True):
                writer.writerow(
                    [name, label, count, count // 5, count // 6, f"{value:.6g}", 0.3, 0.3]
                )
    top = 12
    matrix = rng.integers(0, 60, (top + 1, top + 1)) + np.diag(rng.integers(100, 900, top + 1))
    matrix[3] = 0
    _write(
        run / "eval" / "confusion.json",
        {
            "labels": [*labels[:top], "other"],
            "counts": matrix.tolist(),
            "taken_for": {labels[0]: [[labels[1], 7]]},
        },
    )
    history = [
        [f"Mon {hour:02d}:30", f"Venue {hour}", HOSTILE if hour == 9 else "Food"]
        for hour in range(7, 13)
    ]
    predicted = [["Food", 0.61], [HOSTILE, 0.2], ["Outdoors", 0.07]]
    examples = [
        {"user": "u-17", "history": history, "predicted": predicted, "actual": "Food"},
        {"user": HOSTILE, "history": history[:2], "predicted": predicted, "actual": "Nightlife"},
    ]
    _write(run / "eval" / "examples.json", {"examples": examples})
    return run


def _facts(classes: int, steps: int) -> dict[str, Any]:
    return {
        "command": "behavegpt train configs/small.yaml data.path=shop out=runs/shop",
        "config": {
            "data": {"path": "shop"},
            "model": {
                "embedding_size": 32,
                "num_hidden_layers": 4,
                "max_length": 64,
                "history_head": True,
            },
            "loss": {"name": "dro"},
            "train": {"lr": 0.001, "batch_events": 8192},
        },
        "seed": 3,
        "versions": {"behavegpt": "0.1.0", "torch": "2.13.0"},
        "device": "CPU, 2 threads",
        "parameters": 1_234_567,
        "data": {
            "path": "shop",
            "content_hash": "ab" * 32,
            "events": 406_829,
            "users": 4_372,
            "behaviors": classes,
        },
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:06:17+00:00",
        "seconds": 132.4,
        "steps": steps,
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def test_all_figures_are_drawn_without_a_warning(tmp_path: Path) -> None:
    import matplotlib as mpl

    run, before = fake_run(tmp_path / "run"), mpl.rcParams.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.draw_all(run)
    assert [path.name for path in drawn] == [
        "loss.png",
        "tradeoff.png",
        "recall_by_decile.png",
        "per_behavior.png",
        "calibration.png",
        "confusion.png",
    ]
    assert all(
        path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 400_000 for path in drawn
    )
    assert sorted(path.name for path in (run / "figs").iterdir()) == sorted(
        path.name for path in drawn
    )
    assert {k: mpl.rcParams[k] for k in before if k != "backend"} == {
        k: before[k] for k in before if k != "backend"
    }
    first = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in plots.draw_all(run)] == first


def test_missing_files_leave_their_figures_out(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "eval" / "confusion.json").unlink()
    (run / "log.jsonl").unlink()
    assert [path.name for path in plots.draw_all(run)] == [
        "tradeoff.png",
        "recall_by_decile.png",
        "per_behavior.png",
        "calibration.png",
    ]
    assert plots.draw_all(tmp_path) == []


def test_sparse_results_can_be_drawn(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    # killed before the first validation
    _write(run / "log.jsonl", {"kind": "train", "step": 1, "cross_entropy": 2.0})
    figures = json.loads((run / "eval" / "metrics.json").read_text())
    _write(
        run / "eval" / "metrics.json",
        figures | {"models": {"behavegpt": figures["models"]["behavegpt"]}},
    )
    lines = (run / "eval" / "per_behavior.csv").read_text().splitlines()
    only = [lines[0], *(line for line in lines if line.startswith("behavegpt"))]
    (run / "eval" / "per_behavior.csv").write_text("\n".join(only))
    _write(run / "eval" / "confusion.json", {"labels": ["a", "b"], "counts": [[3, 1], [0, 0]]})
    assert len(plots.draw_all(run)) == 6


@pytest.mark.parametrize(
    "name", ["eval/metrics.json", "eval/confusion.json", "log.jsonl", "eval/per_behavior.csv"]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = fake_run(tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes()[:1000].replace(b"1", b"\xff") + b"\n{\n{\n")
    with pytest.raises(BehaveGPTError, match=Path(name).name):
        plots.draw_all(run)


def test_a_result_without_its_keys_is_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    _write(run / "eval" / "metrics.json", {"rows": 1})
    with pytest.raises(DataError, match=r"metrics.json.*models"):
        plots.draw_all(run)


def test_smoothing_and_binning_against_plain_loops() -> None:
    values = np.random.default_rng(0).normal(size=200)
    expected = [values[max(0, i - 5) : i + 6].mean() for i in range(200)]
    np.testing.assert_allclose(plots._smooth(values), expected)
    count, recall = np.array([1.0, 3.0, 4.0, 15.0, 70.0]), np.array([0.0, 1.0, 0.2, 0.4, 0.9])
    centers, means = _binned(count, recall)
    np.testing.assert_allclose(centers, [3**0.5, 60**0.5, 70])
    np.testing.assert_allclose(means, [0.5, 0.3, 0.9])


def test_the_baseline_shown_is_the_one_with_the_best_macro_recall(tmp_path: Path) -> None:
    rows = [
        {"model": m, "recall": r}
        for m, r in [("behavegpt", 1.0), ("a", 0.1), ("a", 0.5), ("b", 0.4)]
    ]
    assert best_baseline(rows) == "b"
    assert best_baseline(rows[:1]) is None
