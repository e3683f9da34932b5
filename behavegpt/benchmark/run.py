"""The benchmark: for each log and model the tuning grid with one seed, then the best point with all
seeds.

OUT/rows.jsonl         one row a run: kind "tune" (validation figures) or "final" (validation and
                       test figures)
OUT/ranks/KEY.npy      of a final run: rank of the truth at each test row, ascending, for the
                       comparison user by user
OUT/runs/KEY/          the run's folder; its checkpoints go when its row is written

Any number of processes may work on one OUT: a run is claimed by a file lock; done ones are skipped,
an interrupted one resumes. The test split is looked at by the chosen points alone.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from behavegpt.arrays import write_array
from behavegpt.baselines import counts
from behavegpt.benchmark.plan import FINAL, Plan, Planned
from behavegpt.benchmark.settings import BenchmarkSettings
from behavegpt.config import dump_settings
from behavegpt.console import say
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, TRAIN, EventStore, open_store
from behavegpt.data.vocabulary import FIRST
from behavegpt.grid import Grid, Row, Run, attempted, read_rows, tell_failed
from behavegpt.io import discard, write_text
from behavegpt.metrics.prediction import PredictionMetrics, predicted_and_rank
from behavegpt.model.precision import choose_precision
from behavegpt.outputs import check_output
from behavegpt.pretrain import pretrain
from behavegpt.training.evaluate import score
from behavegpt.training.journal import read_journal
from behavegpt.training.model_folder import open_model

FIGURES = (
    "rec_w", "rec_m", "f1_w", "f1_m", "ndcg@3", "hr@3", "head", "mid", "tail", "cross_entropy",
)  # fmt: skip
# two bytes a test row and seed: a benchmark keeps hundreds of such files
MOST_RANK = np.iinfo(np.uint16).max


def benchmark(settings: BenchmarkSettings) -> list[Row]:
    """Run what is not done; returns all rows of these settings. A run that fails is recorded, and
    the rest goes on."""
    out = Path(settings.out)
    check_output(out, "into")

    for folder in ("ranks", "runs"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    stores = {name: open_store(entry.path) for name, entry in settings.data.items()}
    # what was asked last: earlier rows may be of other settings, which their keys tell
    write_text(out / "benchmark.yaml", dump_settings(settings))
    # claims by file locks: any number of processes share a folder
    grid = Grid(out / "rows.jsonl", out / "locks")
    while grid.run(runs_of(settings, stores, grid)):
        pass  # chosen points and trained bases have made further runs possible

    plans = plans_of(settings, stores)
    rows = [row for plan in plans for row in plan.known_rows()]

    # weights are kept until nothing waits for them: a base may start further runs
    if not settings.keep_models and not any(True for plan in plans for _ in plan.open()):
        for row in rows:
            model = out / "runs" / row["key"] / "model"
            if model.exists():
                discard(model)

    tell_failed(rows, lambda row: f"{row['data']}/{row['model']}", grid.path)
    return rows


def plans_of(settings: BenchmarkSettings, stores: dict[str, EventStore]) -> list[Plan]:
    """A plan for each log, from the rows there are now. Raises ConfigError for a log of baskets."""
    for store in stores.values():
        refuse_baskets(store.schema, "the benchmark")
    rows = {(row["key"], row["kind"]): row for row in read_rows(Path(settings.out) / "rows.jsonl")}
    return [Plan(settings, name, store, rows) for name, store in stores.items()]


def runs_of(
    settings: BenchmarkSettings, stores: dict[str, EventStore], grid: Grid
) -> Iterator[Run]:
    """All runs that can start, those of the count baselines first."""
    for plan in plans_of(settings, stores):
        for given in plan.givens if settings.counts else ():
            hashed = plan.counts_hash(given)
            # one run for all counts: the last name is written last
            last = {"key": f"{hashed}-{counts.NAMES[-1]}", "kind": FINAL}
            # a partial: what a loop variable holds when the run starts is another
            rows = partial(_count_rows, grid, plan, given)
            yield Run(last, rows, f"{hashed}.lock", wait=True)
        for planned in plan.open():
            rows = partial(_rows, grid, plan, planned)
            checkpoints = grid.path.parent / "runs" / planned.key / "ckpt"
            tidy = partial(shutil.rmtree, checkpoints, ignore_errors=True)
            yield Run({"key": planned.key, "kind": planned.kind}, rows, planned.key, tidy=tidy)
        yield from _left(plan, grid)


def _left(plan: Plan, grid: Grid) -> Iterator[Run]:
    """Runs with a row whose process ended before it had removed the checkpoints."""
    for row in plan.known_rows():
        checkpoints = grid.path.parent / "runs" / row["key"] / "ckpt"
        tidy = partial(shutil.rmtree, checkpoints, ignore_errors=True)
        yield Run({"key": row["key"], "kind": row["kind"]}, tuple, row["key"], tidy=tidy)


def _rows(grid: Grid, plan: Plan, planned: Planned) -> Iterator[Row]:
    """Carry out a run: its one row."""
    run, kind, key, _ = planned
    row: Row = {"key": key, "kind": kind, "data": run.data, "model": run.model, "seed": run.seed}
    row |= {"point": run.point, "base": run.base, "protocol_hash": plan.protocol_hash}
    row["given"] = list(run.given(plan.settings))

    say(f"{kind} {run.data} {run.model} seed {run.seed} {run.point or ''}")
    yield row | attempted(lambda: _figures(grid, plan, planned), f"{run.data}/{run.model}")


def _figures(grid: Grid, plan: Plan, planned: Planned) -> Row:
    """Train (or go on, or take what is there) and score."""
    store = plan.store

    folder = _trained(grid, plan, planned)
    # what the run said of itself, also where an earlier process trained it
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))

    # the median: the first rates hold the warm-up, some a checkpoint
    rates = [
        row["events_per_second"]
        for row in read_journal(folder / "log.jsonl")
        if "events_per_second" in row
    ]
    rate = statistics.median(rates) if rates else None
    model, _ = open_model(folder / "model")

    torch.nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    figures: Row = {"valid": scored(model, store, "valid")[0]}

    # the test split is looked at once, by the chosen point
    if planned.kind == FINAL:
        figures["test"], ranks = scored(model, store, "test")
        write_array(grid.path.parent / "ranks" / f"{planned.key}.npy", ranks)

    taken = (
        "parameters",
        "parameters_by_part",
        "steps",
        "best_step",
        "seconds",
        "device",
        "versions",
    )
    return figures | {
        **{name: record[name] for name in taken},
        "events_per_second": rate and round(rate),
        "epoch_seconds": rate and round(len(target_rows(store, TRAIN)) / rate, 2),
    }


def _trained(grid: Grid, plan: Plan, planned: Planned) -> Path:
    """The run's folder with its model; a base whose weights a finished benchmark removed is trained
    again."""
    run, folder = planned.run, grid.path.parent / "runs" / planned.key
    if (folder / "model").exists():
        return folder

    base, start = plan.base_of(run.model, run.seed), ""
    # the base's own lock: two models that share a base must not train it twice at a time
    if base is not None:
        with grid.claimed(base.key, wait=True):
            start = str(_trained(grid, plan, base) / "model")

    pretrain(run.settings(plan.settings, str(folder), start), resume=True)
    return folder


def scored(model: Any, store: EventStore, split: str) -> tuple[dict[str, float | None], np.ndarray]:
    """Figures of a split, and the rank (rows,) uint16 of the truth at each of its target rows,
    ascending."""
    metrics, total = PredictionMetrics(store.behaviors.classes), 0.0
    rows, ranks = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
    precision = choose_precision("auto", model.device)

    for part in score(model, store, SPLITS[split], precision=precision):
        metrics.update(part.logits, part.target)
        total += float(F.cross_entropy(part.logits, part.target, reduction="sum"))
        rows.append(part.row.cpu())
        ranks.append(predicted_and_rank(part.logits, part.target)[1].cpu())

    # batches are grouped by length: back into the order of the rows
    ordered = torch.cat(ranks)[torch.cat(rows).argsort()]
    return _chosen(metrics, store, total / max(metrics.rows, 1)), _packed(ordered)


def _count_rows(grid: Grid, plan: Plan, given: tuple[str, ...]) -> Iterator[Row]:
    """Rows of the count baselines, tuned on validation by their own rule; `given`: of the
    target."""
    store, hashed = plan.store, plan.counts_hash(given)

    # on validation, as the grids of the others are
    tuned = counts.tune(counts.fit(store, given), store)

    for name in counts.NAMES:
        model = tuned[name]
        row: Row = {
            "key": f"{hashed}-{name}",
            "kind": FINAL,
            "data": plan.data,
            "model": name,
            "given": list(given),
            "seed": None,
        }

        row |= {"point": model.settings(), "base": None, "protocol_hash": hashed}

        for split in ("valid", "test"):
            row[split], ranks = _count_scores(model, store, split)

        write_array(grid.path.parent / "ranks" / f"{row['key']}.npy", ranks)
        # the same end as a trained model's row, with nothing left to do
        yield row | attempted(dict, name)


def _count_scores(
    model: counts.CountModel, store: EventStore, split: str
) -> tuple[dict[str, Any], np.ndarray]:
    metrics, ranks = PredictionMetrics(store.behaviors.classes), [torch.zeros(0, dtype=torch.long)]

    for part, scores in counts.scores(model, store, target_rows(store, SPLITS[split])):
        # (N,) classes
        target = torch.from_numpy(store.column("behavior")[part].astype(np.int64) - FIRST)
        metrics.update(torch.from_numpy(scores), target)
        ranks.append(predicted_and_rank(torch.from_numpy(scores), target)[1])
    return _chosen(metrics, store, None), _packed(torch.cat(ranks))


def _packed(ranks: torch.Tensor) -> np.ndarray:
    # ranks beyond 65,535 are all "not found"
    return ranks.clamp(max=MOST_RANK).numpy().astype(np.uint16)


def _chosen(
    metrics: PredictionMetrics, store: EventStore, cross_entropy: float | None
) -> dict[str, float | None]:
    figures = metrics.compute(store.behaviors.counts) | {"cross_entropy": cross_entropy}
    return {name: figures[name] for name in FIGURES}
