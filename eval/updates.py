"""Does a model that is updated each quarter stay better than one that never is?

    python eval/updates.py git_activity.parquet --out DIR [--from 2016-07] [--quarters 40]
        [--months 3] [--share 10] [--config small train.epochs=3] [--steps 100] [--seed 0]
    python eval/updates.py --table DIR/rows.jsonl ... [--plot curve.png]   # means by year

The log until the first quarter is prepared (the last tenth of it is validation) and trained on.
Each quarter is then predicted before it is learned, by the model that was updated until there, by
the one that never was, and by decayed counts of each user's own past; all know the user's whole
past. One JSON row for each quarter; finished quarters are skipped. `--share 10`: every tenth user.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import behavegpt
from behavegpt.config import read_settings
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.figures import BLUE, GREEN, VERMILION, figure
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.training.model_folder import open_model
from behavegpt.updating.append import Appended
from behavegpt.updating.run import predict_first

SCHEMA = EventSchema(
    user="user_id",
    time="timestamp",
    event="area",
    location="repository",
    behavior="activity",
    order="order",
)
# figure -> models of the table; user_recent: decayed counts of each user's own past
SHOWN = {
    "ndcg@3": ("model", "never", "user_recent"),
    "recall": ("model", "never", "user_recent"),
    "macro_recall": ("model", "never", "user_recent"),
    "calibration_error": ("model", "never"),
}


def cut(given: argparse.Namespace) -> list[Path]:
    """The log before the first update, and before each later one, of every `share`-th user;
    parquet."""
    start = np.datetime64(given.first, "M")
    edges = [start + given.months * k for k in range(given.quarters + 1)]
    paths = []
    for k, edge in enumerate(edges):
        path = given.out / f"{edge}.parquet"
        since = f"timestamp >= '{edges[k - 1]}-01' AND" if k else ""
        duckdb.sql(
            f"COPY (SELECT * FROM '{given.log}' WHERE user_id % {given.share} = 3 AND {since} "
            f"timestamp < '{edge}-01') TO '{path}' (FORMAT parquet)"
        )
        paths.append(path)
    return paths


def prepare_and_train(past: Path, out: Path, config: list[str], seed: int, least: int) -> Path:
    """The run before any update."""
    run = out / "run"
    if not (run / "model").is_dir():
        split = {"split": "time:0.9,0.1,0", "min_events": 5, "min_count": least}
        store = behavegpt.prepare(past, out / "data", SCHEMA, overwrite=True, **split)
        overrides = [f"data.path={store.path}", f"out={run}", f"train.seed={seed}", *config[1:]]
        shutil.rmtree(run, ignore_errors=True)
        pretrain(read_settings(PretrainSettings, config[0], overrides))
        shutil.copytree(run / "model", out / "never")
    return run


def quarter_row(run: Path, log: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Update with one quarter, and score the model that never was updated on the same events."""
    result = behavegpt.update(run, log, **options)
    data = run / "updates" / f"{result.row['update']:04d}" / "data"
    store = open_store(data)
    days = result.row["drift"].pop("by_day")
    seconds = np.asarray(store.columns["time"]).astype(np.int64) + store.manifest.time_origin
    first = np.datetime64(result.row["from"].removesuffix(" UTC"), "s").astype(np.int64)
    appended = Appended(store, seconds >= first, 0)
    never = predict_first(open_model(out / "never"), appended)[1]["prequential"]["model"]
    return {**result.row, "quarter": log.stem, "days": len(days), "never": never}


def show_table(paths: list[Path]) -> None:
    """Means over the quarters of each year, and over files, as Markdown."""
    years: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            years[row["from"][:4]].append(row)
    years["all"] = [row for rows in years.values() for row in rows]

    names = [f"{name} {model}" for name, models in SHOWN.items() for model in models]
    columns = ["year", "events a quarter", "unknown areas", *names, "rolled back"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for year, rows in years.items():
        cells = [year, f"{np.mean([row['events'] for row in rows]):,.0f}"]
        cells.append(f"{np.mean([row['drift']['unknown']['event']['new'] for row in rows]):.1%}")
        for name, models in SHOWN.items():
            for model in models:
                values = [row["prequential"].get(model, row["never"])[name] for row in rows]
                cells.append(f"{np.mean(values):.3f}")
        back = sum(row["verdict"] == "rolled back" for row in rows)
        print("| " + " | ".join([*cells, f"{back} of {len(rows)}"]) + " |")


def plot(path: Path, out: Path) -> None:
    """NDCG@3 by quarter of all three, as a PNG."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    quarters = [np.datetime64(row["from"][:7], "M").astype(object) for row in rows]
    names = {"model": "updated each quarter", "never": "never updated", "user_recent": "counts"}
    with figure(out, (7.2, 3.0)) as (_, axes):
        for color, (model, name) in zip((BLUE, VERMILION, GREEN), names.items(), strict=True):
            values = [row["prequential"].get(model, row["never"])["ndcg@3"] for row in rows]
            axes[0].plot(quarters, values, color=color, label=name)
        axes[0].set_ylabel("NDCG@3")
        axes[0].legend(fontsize=8, loc="best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--from", dest="first", default="2016-07")
    parser.add_argument("--quarters", type=int, default=40)
    parser.add_argument("--months", type=int, default=3, help="of a quarter")
    parser.add_argument("--share", type=int, default=10)
    parser.add_argument("--config", nargs="+", default=["small"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.table:
        show_table(given.table)
        if given.plot:
            plot(given.table[0], given.plot)
        return

    given.out.mkdir(parents=True, exist_ok=True)
    past, *logs = cut(given)
    run = prepare_and_train(past, given.out, given.config, given.seed, given.min_count)
    rows = given.out / "rows.jsonl"
    finished = rows.read_text(encoding="utf-8").count("\n") if rows.is_file() else 0
    options = {
        "steps": given.steps,
        "rate": given.rate,
        "min_count": given.min_count,
        "seed": given.seed,
        "late": "drop",
    }
    for log in logs[finished:]:
        row = quarter_row(run, log, given.out, options)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
