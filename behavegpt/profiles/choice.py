"""Which steps follow the ensemble's columns, chosen on the challenge's training window.

    all: {after: auto}
    all: {after: auto, choose: {width: 2048, seeds: 5, candidates: {plain: [], center: [center]}}}

The evaluator's network is trained with a fixed rate, so scale, centering and the number of columns
change what it learns, and the more so the wider it is: narrow networks rank the candidates
otherwise, hence the least width of 1,024. It is trained on the labels of the training window for
some of the clients and scored, with the labels of the same window, on the others; the validation
window is not looked at. Figures are plain AUROC, the mean over the labels that occur.

Chosen is the first candidate within one standard error (over seeds, of the paired difference) of
the best: a lead that is smaller than its error is none.

Shape letters: N clients, D columns, O labels.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from behavegpt.challenge.fit import BATCH, EPOCHS
from behavegpt.challenge.network import SEED, UniversalModel
from behavegpt.challenge.step import training_step
from behavegpt.challenge.targets import OPEN_TASKS, Targets, load_targets, task_named
from behavegpt.config import Settings
from behavegpt.console import say, table
from behavegpt.datasets.challenge_files import ChallengeDirectory
from behavegpt.devices import choose_device
from behavegpt.errors import ConfigError, DataError
from behavegpt.grid import Grid, Row, Run
from behavegpt.profiles.cache import digest
from behavegpt.profiles.members import Context, Pca, Step
from behavegpt.profiles.probe import auroc
from behavegpt.profiles.task import divide
from behavegpt.profiles.transforms import Rows, fit_steps, transformed, width_after
from behavegpt.user_embeddings import pairing

WIDEST = 2048  # columns the challenge takes
# simple ones first: that is what a tie decides for
CANDIDATES: dict[str, tuple[Step, ...]] = {
    "plain": (),
    "center": ("center",),
    "zscore": ("zscore",),
    "pca 128": (Pca(pca=128),),
    "pca 256": (Pca(pca=256),),
    "whiten 128": (Pca(pca=128, whiten=True),),
}


class ChoiceSettings(Settings):
    """What is compared, by which network, on how many clients."""

    candidates: dict[str, tuple[Step, ...]] = Field(
        CANDIDATES, min_length=1, description="steps by name; of equally good ones the first"
    )
    width: int = Field(
        1024, ge=1024, le=2048, description="of the network; the organizers' is 2048"
    )
    seeds: int = Field(3, ge=2, description="divisions of the clients, each with a network seed")
    tasks: tuple[str, ...] = Field(OPEN_TASKS, min_length=1, description="of the challenge")
    clients: int = Field(10_000, ge=10, description="as many are drawn where there are more")
    held_out: float = Field(0.3, gt=0, lt=1, description="share of them that is scored")


class Choice(NamedTuple):
    """What was chosen, and from what."""

    steps: tuple[Step, ...]
    facts: dict[str, Any]


def choose(context: Context, settings: ChoiceSettings, columns: Rows, order: np.ndarray) -> Choice:
    """Compare the candidates on `columns` (N, D) of the clients `order` (N,); what an interrupted
    comparison has measured is kept in the cache.

    Raises ConfigError for an unknown task or when every candidate is too wide, DataError where the
    directory has no targets.
    """
    for task in settings.tasks:
        task_named(task)
    width = columns[:1].shape[1]
    fitting = {
        name: steps
        for name, steps in settings.candidates.items()
        if width_after(steps, width) <= WIDEST and not _is_rotation(steps, width)
    }
    if not fitting:
        raise ConfigError(
            f"choose: no candidate makes {width} columns {WIDEST} or less; add a pca."
        )

    started = time.perf_counter()
    rng = np.random.default_rng(context.seed)
    some = np.sort(rng.permutation(len(order))[: settings.clients])
    targets = _targets(context.tables.path, order[some], settings.tasks)
    labels = [zlib.crc32(np.ascontiguousarray(of.train).data) for of in targets.values()]
    what = digest(settings.model_dump(mode="json"), context.seed, labels)
    grid = Grid(context.cache / "choices" / f"{what[:20]}.jsonl")
    device = str(choose_device(context.device))

    runs = []
    for name, steps in fitting.items():
        states = fit_steps(steps, columns)
        parts = [part.astype(np.float16) for part in transformed(steps, states, columns[some])]
        vectors = np.concatenate(parts)  # (N, D') as an entry holds them
        for number in range(settings.seeds):
            key = {"candidate": name, "seed": number, "vectors": pairing(order[some], vectors)}
            measure = partial(_measured, vectors, targets, settings, number, device)
            runs.append(Run(key, partial(_row, key, measure)))
    grid.run(runs)

    rows = [row for run in runs if (row := grid.find(run.key)) is not None]
    seconds = sum(row["seconds"] for row in rows)
    facts = _table(rows, list(fitting), settings.tasks) | {
        "width": settings.width,
        "seeds": settings.seeds,
        "clients": len(some),
        "held_out": settings.held_out,
        "window": "train",
        "seconds": round(seconds, 1),
    }
    _tell(facts, time.perf_counter() - started)
    return Choice(fitting[facts["chosen"]], facts)


def _is_rotation(steps: Sequence[Step], width: int) -> bool:
    """Whether a PCA would keep all columns and so change nothing that the network sees."""
    return any(isinstance(step, Pca) and not step.whiten and step.pca >= width for step in steps)


def _targets(path: Path, clients: np.ndarray, tasks: Sequence[str]) -> dict[str, Targets]:
    directory = ChallengeDirectory(path)
    if not directory.target("train").is_file():
        raise DataError(
            f"{directory.target('train')}: missing, and `after: auto` compares by its labels; run "
            "`behavegpt challenge split`, or name the steps."
        )
    return {task: load_targets(directory, clients, task) for task in tasks}


def _row(key: Row, measure: Callable[[], dict[str, float]]) -> list[Row]:
    started = time.perf_counter()
    figures = measure()
    return [key | figures | {"seconds": round(time.perf_counter() - started, 2)}]


def _measured(
    vectors: np.ndarray,
    targets: Mapping[str, Targets],
    settings: ChoiceSettings,
    number: int,
    device: str,
) -> dict[str, float]:
    """Task -> AUROC on the held-out clients, in the best of the evaluator's epochs."""
    fitted, held_out = divide(len(vectors), settings.held_out, number)
    # the order of the rows is the entry's: the evaluator does not shuffle either
    seed = SEED if number == 0 else number
    scores = {}
    for task, labels in targets.items():
        parts = [rows[labels.rows[rows]] for rows in (fitted, held_out)]
        scores[task] = held_out_score(vectors, labels.train, parts, seed, settings.width, device)
    return scores


def held_out_score(
    vectors: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    seed: int,
    width: int,
    device: str = "cpu",
) -> float:
    """AUROC of the evaluator's network on rows `parts[1]` of vectors (N, D) and labels (N, O) after
    training on rows `parts[0]`, in its best epoch; the mean over the labels that occur."""
    fitted, held_out = parts
    answers = labels[held_out] > 0  # (M, O)
    used = answers.any(axis=0) & ~answers.all(axis=0)  # (O,)
    if not len(fitted) or not used.any():
        raise DataError(
            "choose: the clients that are scored have no label of a task; draw more by `clients`."
        )

    model = UniversalModel(vectors.shape[1], labels.shape[1], seed, width).to(device)
    step = training_step(model)
    x = torch.from_numpy(vectors).to(device)  # (N, D) float16
    y = torch.from_numpy(labels).to(device)  # (N, O) uint8

    best = 0.0
    for _ in range(EPOCHS):
        for start in range(0, len(fitted), BATCH):
            some = torch.from_numpy(fitted[start : start + BATCH]).to(device)
            step(x[some].float(), y[some].float())
        with torch.inference_mode():
            logits = torch.cat([model(x[rows].float()) for rows in _blocks(held_out, device)])
        found = auroc(logits.cpu().numpy()[:, used], answers[:, used])
        best = max(best, float(found.mean()))
    return best


def _blocks(rows: np.ndarray, device: str, size: int = 512) -> Sequence[torch.Tensor]:
    return [
        torch.from_numpy(rows[start : start + size]).to(device)
        for start in range(0, len(rows), size)
    ]


def _table(rows: Sequence[Row], names: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """{"chosen": name, "table": one line for each candidate}."""
    scores = {  # candidate -> (seeds, tasks)
        name: np.array([[row[task] for task in tasks] for row in rows if row["candidate"] == name])
        for name in names
    }
    sums = {name: of.sum(axis=1) for name, of in scores.items()}  # (seeds,) each
    best = max(names, key=lambda name: sums[name].mean())

    lines, chosen = [], None
    for name in names:
        behind = sums[best] - sums[name]  # paired: one division and network seed each
        figures = dict(zip(tasks, scores[name].mean(axis=0).tolist(), strict=True))
        figures |= {"sum": float(sums[name].mean()), "error": _error(sums[name])}
        figures |= {"behind": float(behind.mean()), "error_behind": _error(behind)}
        if chosen is None and figures["behind"] <= figures["error_behind"]:
            chosen = name
        rounded = {figure: round(value, 5) for figure, value in figures.items()}
        lines.append({"candidate": name, **rounded})

    return {"chosen": chosen, "table": lines}


def _error(values: np.ndarray) -> float:
    """The standard error of the mean of values (seeds,)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _tell(facts: Mapping[str, Any], seconds: float) -> None:
    beside = ("candidate", "error", "behind", "error_behind")
    tasks = [name for name in facts["table"][0] if name not in beside]
    rows = []
    for line in facts["table"]:
        cells = [f"{line[name]:.4f}" for name in tasks]
        behind = f"{line['behind']:.4f} ± {line['error_behind']:.4f}"
        rows.append([line["candidate"], *cells, f"{line['error']:.4f}", behind])
    table(("after", *tasks, "error", "behind the best"), rows)
    say(
        f"after: {facts['chosen']} (network {facts['width']:,} wide, {facts['seeds']} seeds, "
        f"{facts['clients']:,} clients of the training window, {seconds:.0f} s)"
    )
