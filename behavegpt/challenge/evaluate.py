"""The evaluator: train the organizers' network on an entry for each task and seed, and score it.

OUT/NAME.json                 the result: mean and deviation over seeds, every epoch, floors
OUT/NAME/TASK.SEED.json       one run, written when it ends; a later call skips it
OUT/NAME/scores.json, epochs.json   the organizers' own files, from their seed

The network sees the clients in the order of the entry, in every epoch the same, and is scored on
the clients it was trained on: only the window differs. One seed is not a result: the spread over
seeds is .015 to .02 at 10,000 clients.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch

from behavegpt.challenge.network import SEED
from behavegpt.challenge.runs import Job, Plan, read_run, run_missing
from behavegpt.challenge.scores import floors
from behavegpt.challenge.targets import OPEN_TASKS, load_targets, task_named
from behavegpt.challenge.validate import validate
from behavegpt.console import say
from behavegpt.datasets.challenge_files import ChallengeDirectory, open_directory
from behavegpt.devices import check_devices
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import write_json
from behavegpt.locks import lock
from behavegpt.paths import local_path
from behavegpt.user_embeddings import UserEmbeddings, pairing


class EvaluationArguments(TypedDict, total=False):
    """The options of `evaluate` by name; their defaults are those of Evaluation."""

    tasks: Sequence[str]
    seeds: Sequence[int]
    devices: Sequence[str]
    name: str | None
    subset: bool
    random_vectors: bool
    tf32: bool
    width: int | None


@dataclass(frozen=True)
class Evaluation:
    """What is trained, and where."""

    tasks: Sequence[str] = OPEN_TASKS
    seeds: Sequence[int] = (SEED,)
    devices: Sequence[str] = ("cpu",)  # each of several has a process of its own
    name: str | None = None  # of the result; the entry's folder by default
    subset: bool = False  # the entry may lack some of the relevant clients
    random_vectors: bool = False  # also train on random vectors, as a floor
    tf32: bool = False  # faster products on a GPU; moves scores in the third digit
    # of the network; one other than the organizers' gives scores that compare entries with each
    # other alone
    width: int | None = None

    @property
    def jobs(self) -> list[Job]:
        """All trainings, those on the entry's vectors first."""
        kinds = (False, True) if self.random_vectors else (False,)
        return [
            Job(task, seed, random)
            for random in kinds
            for task in self.tasks
            for seed in self.seeds
        ]


def evaluate(
    entry: str | Path, data: str | Path, out: str | Path, **options: Unpack[EvaluationArguments]
) -> dict[str, Any]:
    """Evaluate the entry in a folder; finished runs in OUT/NAME are kept. Returns what
    OUT/NAME.json holds.

    The options are those of Evaluation. Raises ConfigError for an unknown task or device, DataError
    for an entry that the organizers would refuse.
    """
    chosen = Evaluation(**options)
    entry, data, out = local_path(entry), local_path(data), local_path(out)
    directory = open_directory(data)
    for task in chosen.tasks:
        task_named(task)
    check_devices(chosen.devices)
    _check_entry(entry, directory, chosen.subset)

    name = chosen.name or entry.resolve().name
    embeddings = UserEmbeddings.load(entry)
    known = _known_facts(embeddings, directory, chosen.tasks)
    identity = known.identity(chosen.tf32, chosen.width)
    plan = Plan(entry, data, out / name, chosen.tf32, chosen.width, identity)

    out.mkdir(parents=True, exist_ok=True)
    with lock(out / name):  # a second call with this name is refused meanwhile
        clients = {task: floor["clients"] for task, floor in known.floors.items()}
        run_missing(plan, chosen.jobs, chosen.devices, clients)

    runs = {job: run for job in chosen.jobs if (run := read_run(plan, job))}
    ids = embeddings.client_ids

    result = {"name": name, "vectors": known.entry, "tf32": chosen.tf32, "width": chosen.width}
    result["client_set"] = f"{len(ids)} clients, {_checksum(np.sort(ids)):08x}"
    result |= _summary(runs, known.floors)

    # their files hold scores of their network alone
    if chosen.width is None:
        _write_as_organizers(plan.folder, result)

    write_json(out / f"{name}.json", result)
    return result


def seeds_from(count: int) -> list[int]:
    """The organizers' seed, then 1, 2, ...; raises ConfigError for less than one."""
    if count < 1:
        raise ConfigError(f"{count} seeds: must be at least 1.")
    return [SEED, *range(1, count)]


def _check_entry(entry: Path, directory: ChallengeDirectory, subset: bool) -> None:
    report = validate(entry, directory, subset)
    for warning in report["warnings"]:
        say(f"{entry}: {warning}")

    problems = report["problems"]
    if problems:
        more = f" (and {len(problems) - 1} more; see `behavegpt challenge validate`)"
        raise DataError(f"{entry}: {problems[0]}{more if len(problems) > 1 else ''}")


class _KnownFacts(NamedTuple):
    """What is known before any training."""

    entry: dict[str, Any]  # shape and checksums of the vectors
    targets: dict[str, list[int]]  # task -> checksums
    floors: dict[str, dict[str, Any]]  # task -> what `floors` gives

    def identity(self, tf32: bool, width: int | None) -> dict[str, dict[str, Any]]:
        """Task -> what its runs depend on: a run of another identity is not this evaluation's."""
        shared: dict[str, Any] = {"entry": self.entry, "tf32": tf32}
        if width is not None:  # runs of the organizers' width were written without one
            shared["width"] = width
        return {task: shared | {"targets": sums} for task, sums in self.targets.items()}


def _known_facts(
    embeddings: UserEmbeddings, directory: ChallengeDirectory, tasks: Sequence[str]
) -> _KnownFacts:
    ids = embeddings.client_ids
    clients, dimensions = embeddings.vectors.shape
    entry = {
        "clients": clients,
        "dimensions": dimensions,
        "pairing": pairing(ids, embeddings.vectors),
        "order": _checksum(ids),  # it decides the batches
    }

    checksums, lowest = {}, {}
    for task in tasks:
        targets = load_targets(directory, ids, task)
        parts = [targets.train, targets.validation, targets.rows, targets.popularity]
        checksums[task] = [_checksum(part) for part in parts if part is not None]
        validation = torch.from_numpy(targets.validation[targets.rows])
        lowest[task] = floors(validation, targets.popularity)

    return _KnownFacts(entry, checksums, lowest)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _summary(runs: dict[Job, dict[str, Any]], limits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"tasks": {task: ...}, "floors": {task: ...}}; a run counts with its best epoch, the first of
    equal ones."""
    tasks, lowest = {}, {task: dict(values) for task, values in limits.items()}
    for task in limits:
        of_task = [job for job in runs if job.task == task]
        tasks[task] = _over_seeds([runs[job] for job in of_task if not job.random])
        random = [runs[job] for job in of_task if job.random]
        if random:
            lowest[task]["random_vectors"] = _over_seeds(random)
    return {"tasks": tasks, "floors": lowest}


def _over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (None for one seed) of the scores of runs, and where they come
    from."""
    best, at_best = [], []  # epochs, and what was measured after them
    for run in runs:
        epoch = int(np.argmax([metrics["score"] for metrics in run["epochs"]]))
        best.append(epoch)
        at_best.append(run["epochs"][epoch])

    scores = [metrics["score"] for metrics in at_best]
    means = {}
    for key in at_best[0]:
        means[key] = float(np.mean([metrics[key] for metrics in at_best]))

    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "seeds": [run["seed"] for run in runs],
        "scores": scores,
        "best_epochs": best,
        "metrics": means,
        "epochs": [run["epochs"] for run in runs],
        "wall_s": sum(run["wall_s"] for run in runs),
        "cpu_s": sum(run["cpu_s"] for run in runs),
    }


def _write_as_organizers(folder: Path, result: dict[str, Any]) -> None:
    """scores.json and epochs.json as their program writes them, if their seed was run."""
    with_seed = {
        task: (summary["scores"][index], summary["best_epochs"][index])
        for task, summary in result["tasks"].items()
        for index, seed in enumerate(summary["seeds"])
        if seed == SEED
    }

    if with_seed:
        scores = {task: round(value, 4) for task, (value, _) in with_seed.items()}
        write_json(folder / "scores.json", scores | {"placeholder": -1})
        write_json(folder / "epochs.json", {task: epoch for task, (_, epoch) in with_seed.items()})
