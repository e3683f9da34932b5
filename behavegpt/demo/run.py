"""The demo: seven stages from shop logs to a report, the same calls that a user's own logs need."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import transformers

from behavegpt.config import read_settings
from behavegpt.console import say, stage, table
from behavegpt.demo import DEMO_SCHEMA, online_retail, product_names
from behavegpt.errors import BehaveGPTError
from behavegpt.evaluate_universal import evaluate_universal
from behavegpt.evaluation import compare
from behavegpt.evaluation_summary import metrics_table
from behavegpt.ingest.prepare import prepare
from behavegpt.io import write_json
from behavegpt.locks import lock
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.report import write_model_card, write_report
from behavegpt.trained_folder import load
from behavegpt.universal.model import load_universal

STAGES = 7  # that the console counts
# said wherever the row stands: a model that knows the shop is no baseline
NOT_HELD_OUT = (
    "The row “universal” is the model that ships with the package, from which this one starts. "
    "Its training logs included this shop, without the test events; trained without this shop, it "
    "reaches .2472 weighted and .2017 macro recall (docs/universal.md)."
)
SPLIT = "time:0.7,0.15,0.15"
SHOWN_USERS = 3
# a file without content: the folder is a demo's, and may be emptied by the next one
MARK = ".behavegpt-demo"
# what a demo leaves: nothing else of a folder is ever removed
WRITTEN = (
    "data",
    "ckpt",
    "model",
    "eval",
    "figs",
    "report.html",
    "run.json",
    "config.yaml",
    "log.jsonl",
)


def run_demo(out: Path, steps: int | None = None) -> dict[str, Any]:
    """Run all stages into `out`, replacing an earlier demo there. Raises BehaveGPTError if `out` is
    something else."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(out):
        return _run_demo(out, steps)


def _run_demo(out: Path, steps: int | None) -> dict[str, Any]:
    began = time.perf_counter()
    # under the lock: two demos would clear each other's files away
    _clear(out)
    stage(1, STAGES, "environment", _environment())

    stage(2, STAGES, "data", "Online Retail (UCI, CC BY 4.0): purchases at a British gift shop")
    store = prepare([online_retail()], out / "data", DEMO_SCHEMA, split=SPLIT)
    say(
        f"      {store.manifest.events:,} events · {store.manifest.users:,} customers · "
        f"{store.vocabulary['event'].classes:,} products in {store.behaviors.classes} families"
    )

    stage(3, STAGES, "universal", "no training: counts of this log, weighed by the universal model")
    # without the count baselines: stage 5 has them in its table
    universal = evaluate_universal(
        load_universal(), store, out / "eval" / "universal.json", baselines=False
    )
    table(*metrics_table(universal))

    settings = _settings(out, steps)
    about = f"the same network tuned to this log: {settings.loss.name} loss, "
    about += f"{settings.train.steps} steps (no transformer blocks: docs/universal.md)"
    stage(4, STAGES, "pretrain", about)
    pretrain(settings)

    about = "the last 15 % of the purchases: which family comes next? (thresholds from validation)"
    stage(5, STAGES, "evaluate", about)
    predictor = load(out / "model")
    result = compare(predictor, store, out / "eval" / "metrics.json", thresholds=True)

    # in one table, so that the report shows what training added
    result["models"] |= universal["models"]
    result["uncertainty"]["intervals"] |= universal["uncertainty"]["intervals"]
    result["remarks"].append(NOT_HELD_OUT)
    write_json(out / "eval" / "metrics.json", result)
    table(*metrics_table(result))
    say(f"note: {NOT_HELD_OUT}")

    stage(6, STAGES, "predict", "next family of some customers, from raw rows")
    table(("customer", "1st", "2nd", "3rd"), _predictions(predictor))

    report = write_report(out, product_names())
    write_model_card(out, out / "data")
    seconds = round(time.perf_counter() - began, 1)
    stage(7, STAGES, "report", f"{report} · {seconds:.0f} s in all")
    say(_next_steps(out))
    model = str(out / "model")

    return {"report": str(report), "model": model, "seconds": seconds, "metrics": result}


def _settings(out: Path, steps: int | None) -> PretrainSettings:
    overrides = [f"data.path={out / 'data'}", f"out={out}"]
    if steps is not None:
        overrides.append(f"train.steps={steps}")
    return read_settings(PretrainSettings, Path(__file__).parent / "demo.yaml", overrides)


def _predictions(predictor: Predictor) -> list[list[Any]]:
    """A row for each of some customers: its label and the three likeliest families."""
    # raw rows, as a user's own program would have them
    log = pq.read_table(online_retail())
    users = log["user_id"].unique().slice(0, SHOWN_USERS)
    rows = log.filter(pc.is_in(log["user_id"], value_set=users))
    predictions = predictor.predict(rows, top_k=3, thresholds=True)

    lines = []
    for user, labels, shares in zip(
        predictions.users.to_pylist(),
        predictions.labels,
        predictions.probabilities,
        strict=True,
    ):
        likely = zip(labels, shares, strict=True)
        lines.append([user, *(f"{label} {share:.0%}" for label, share in likely)])

    return lines


def _next_steps(out: Path) -> str:
    return f"""
With your own logs (CSV, JSONL or parquet; columns are guessed, name them if the guess is wrong):
  behavegpt prepare my_logs.parquet --out data/mine \\
    --user user_id --time timestamp --event app --tz Europe/London
  behavegpt train memory data.path=data/mine out=runs/mine
  behavegpt evaluate runs/mine/model data/mine --baselines
  behavegpt predict runs/mine/model my_logs.parquet --out predictions.parquet
With the demo's model:
  behavegpt info {out / "model"}"""


def _clear(out: Path) -> None:
    """Make `out` empty; only what a demo wrote is removed, and only where a demo left its mark."""
    if out.exists() and any(out.iterdir()):
        # a folder of somebody else's files is never emptied
        if not (out / MARK).exists():
            raise BehaveGPTError(
                f"{out} is not empty and not an earlier demo; choose another folder with --out."
            )

        for name in WRITTEN:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _environment() -> str:
    """Versions and device, on one line."""
    versions = (
        f"python {platform.python_version()} · torch {torch.__version__} · "
        f"transformers {transformers.__version__}"
    )
    return f"{versions} · {_device()}"


def _device() -> str:
    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {os.cpu_count()} cores"
    )
