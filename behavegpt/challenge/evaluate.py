"""The evaluator: train the organizers' network on an entry's vectors for each task and seed, and
score it.

OUT/NAME.json                 the result: mean and deviation over seeds, every epoch, floors
OUT/NAME/TASK.SEED.json       one run, written when it ends; a later call skips it
OUT/NAME/scores.json, epochs.json   the organizers' own files, from their seed

The network sees the clients in the order of the entry, in every epoch the same, and is scored on
the clients it was trained on: only the window differs. One seed is not a result: the spread over
seeds is .015 to .02 at 10,000 clients.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.challenge.fit import BATCH, EPOCHS, Tick, train_and_score
from behavegpt.challenge.network import SEED
from behavegpt.challenge.scores import floors
from behavegpt.challenge.targets import OPEN_TASKS, load_targets, task_named
from behavegpt.challenge.validate import validate
from behavegpt.console import progress, say
from behavegpt.datasets.challenge_files import ChallengeDirectory, open_directory
from behavegpt.devices import check_devices
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import write_json
from behavegpt.locks import lock
from behavegpt.paths import local_path
from behavegpt.user_embeddings import UserEmbeddings, pairing

RANDOM_DIMENSIONS = 64


class Job(NamedTuple):
    """One training; `random` takes normally distributed vectors in place of the entry's, as a
    floor."""

    task: str
    seed: int
    random: bool = False

    @property
    def file(self) -> str:
        return f"{self.task}.{self.seed}{'.random' if self.random else ''}.json"


@dataclass(frozen=True)
class Plan:
    """What all runs of an evaluation share; small, since worker processes get a copy."""

    entry: Path
    data: Path
    folder: Path  # of the runs
    tf32: bool
    width: int | None  # of the network; None: the organizers'
    identity: dict[str, dict[str, Any]]  # task -> checksums of what its runs depend on


def evaluate(
    entry: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = OPEN_TASKS,
    seeds: Sequence[int] = (SEED,),
    devices: Sequence[str] = ("cpu",),
    name: str | None = None,
    subset: bool = False,
    random_vectors: bool = False,
    tf32: bool = False,
    width: int | None = None,
) -> dict[str, Any]:
    """Evaluate the entry in a folder; finished runs in OUT/NAME are kept. Returns what
    OUT/NAME.json holds.

    A `width` other than the organizers' makes the network smaller: its scores compare entries with
    each other alone. With several devices each has a process of its own that takes one task and
    seed after the other.
    """
    entry, data, out = local_path(entry), local_path(data), local_path(out)
    directory = open_directory(data)
    for task in tasks:
        task_named(task)
    check_devices(devices)
    _check_entry(entry, directory, subset)
    name = name or entry.resolve().name
    embeddings = UserEmbeddings.load(entry)
    facts = _facts(embeddings, directory, tasks)
    shared = {"entry": facts["entry"], "tf32": tf32} | ({} if width is None else {"width": width})
    identity = {task: shared | {"targets": facts["targets"][task]} for task in tasks}
    plan = Plan(entry, data, out / name, tf32, width, identity)
    kinds = (False, True) if random_vectors else (False,)
    jobs = [Job(task, seed, random) for random in kinds for task in tasks for seed in seeds]
    out.mkdir(parents=True, exist_ok=True)
    with lock(out / name):
        _run_missing(
            plan, jobs, devices, {task: floor["clients"] for task, floor in facts["floors"].items()}
        )
    runs = {job: run for job in jobs if (run := read_run(plan, job))}
    result = {"name": name, "vectors": facts["entry"], "tf32": tf32, "width": width}
    result["client_set"] = (
        f"{len(embeddings.client_ids)} clients, {_checksum(np.sort(embeddings.client_ids)):08x}"
    )
    result |= _summary(runs, facts["floors"])
    if width is None:
        _write_as_organizers(plan.folder, result)
    write_json(out / f"{name}.json", result)
    return result


def seeds_from(count: int) -> list[int]:
    """The organizers' seed, then 1, 2, ...; raises ConfigError for less than one."""
    if count < 1:
        raise ConfigError(f"{count} seeds: at least one is needed.")
    return [SEED, *range(1, count)]


def read_run(plan: Plan, job: Job) -> dict[str, Any] | None:
    """A finished run, None if there is none. Raises DataError if it belongs to another entry or
    other data."""
    path = plan.folder / job.file
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        known, metrics = run["identity"], [epoch["score"] for epoch in run["epochs"]]
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f"{path} is damaged; delete it, and it is computed again.") from None
    if known != plan.identity[job.task] or len(metrics) != EPOCHS:
        raise DataError(
            f"{path} is the result of other vectors, another order of clients, other data or "
            "settings; "
            f"choose another --out or --name, or delete {plan.folder}."
        )
    return run


def _check_entry(entry: Path, directory: ChallengeDirectory, subset: bool) -> None:
    found = validate(entry, directory, subset)
    for warning in found["warnings"]:
        say(f"{entry}: {warning}")
    if found["problems"]:
        more = f" (and {len(found['problems']) - 1} more; see `behavegpt challenge validate`)"
        raise DataError(
            f"{entry}: {found['problems'][0]}{more if len(found['problems']) > 1 else ''}"
        )


def _facts(
    embeddings: UserEmbeddings, directory: ChallengeDirectory, tasks: Sequence[str]
) -> dict[str, Any]:
    """Shape and checksums of the vectors, checksums of the targets, and the floors of each task."""
    ids = embeddings.client_ids
    clients, dimensions = embeddings.vectors.shape
    found: dict[str, Any] = {"targets": {}, "floors": {}}
    found["entry"] = {
        "clients": clients,
        "dimensions": dimensions,
        "pairing": pairing(ids, embeddings.vectors),
        "order": _checksum(ids),  # it decides the batches
    }
    for task in tasks:
        targets = load_targets(directory, ids, task)
        parts = [targets.train, targets.validation, targets.rows, targets.popularity]
        found["targets"][task] = [_checksum(part) for part in parts if part is not None]
        validation = torch.from_numpy(targets.validation[targets.rows])
        found["floors"][task] = floors(validation, targets.popularity)
    return found


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _run_missing(
    plan: Plan, jobs: Sequence[Job], devices: Sequence[str], clients: dict[str, int]
) -> None:
    """Run what has no result yet: here on one device, else in a process for each."""
    missing = [job for job in jobs if read_run(plan, job) is None]
    if len(missing) < len(jobs):
        say(f"{len(jobs) - len(missing)} of {len(jobs)} runs were finished before")
    batches = {job: EPOCHS * -(-clients[job.task] // BATCH) for job in missing}
    done = 0
    with progress("training batches", sum(batches.values())) as update:
        if len(devices) == 1:
            for job in missing:

                def tick(job: Job = job) -> None:
                    nonlocal done
                    done += 1
                    update(done, f"{job.task}, seed {job.seed}")

                _run(plan, job, devices[0], tick)
            return
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
        free = context.Queue()
        for device in devices:
            free.put(device)
        threads = max(1, torch.get_num_threads() // len(devices))
        with ProcessPoolExecutor(len(devices), context, _take_device, (free, threads)) as pool:
            futures = {pool.submit(_run_on_own_device, plan, job): job for job in missing}
            try:
                for future in as_completed(futures):
                    future.result()
                    done += batches[futures[future]]
                    update(done, f"{futures[future].task}, seed {futures[future].seed}, done")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


_own_device = "cpu"  # of a worker process


def _take_device(free: Any, threads: int) -> None:
    global _own_device
    _own_device = free.get()
    torch.set_num_threads(threads)


def _run_on_own_device(plan: Plan, job: Job) -> None:
    _run(plan, job, _own_device)


def _run(plan: Plan, job: Job, device: str, tick: Tick = lambda: None) -> None:
    """One training; its result goes to a file."""
    embeddings = UserEmbeddings.load(plan.entry)
    targets = load_targets(open_directory(plan.data), embeddings.client_ids, job.task)
    vectors = embeddings.vectors
    if job.random:
        drawn = np.random.default_rng(job.seed).standard_normal(
            (len(vectors), RANDOM_DIMENSIONS), np.float32
        )
        vectors = drawn.astype(np.float16)
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high" if plan.tf32 else "highest")
    wall, cpu = time.perf_counter(), time.process_time()
    epochs = train_and_score(vectors, targets, job.seed, device, tick, plan.width)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    about = {
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **seconds,
    }
    run = {**job._asdict(), "epochs": epochs, **about, "identity": plan.identity[job.task]}
    write_json(plan.folder / job.file, run)


def _summary(runs: dict[Job, dict[str, Any]], limits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"tasks": {task: ...}, "floors": {task: ...}}; a run counts with its best epoch, the first of
    equal ones."""
    tasks, lowest = {}, {task: dict(values) for task, values in limits.items()}
    for task in limits:
        ours, random = (
            [j for j in runs if j.task == task and j.random == kind] for kind in (False, True)
        )
        tasks[task] = _over_seeds([runs[job] for job in ours])
        if random:
            lowest[task]["random_vectors"] = _over_seeds([runs[job] for job in random])
    return {"tasks": tasks, "floors": lowest}


def _over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (None for one seed) of the scores of runs, and where they come
    from."""
    epochs = [run["epochs"] for run in runs]
    best = [int(np.argmax([epoch["score"] for epoch in of_run])) for of_run in epochs]
    at_best = [of_run[epoch] for of_run, epoch in zip(epochs, best, strict=True)]
    scores = [metrics["score"] for metrics in at_best]
    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "seeds": [run["seed"] for run in runs],
        "scores": scores,
        "best_epochs": best,
        "metrics": {
            key: float(np.mean([metrics[key] for metrics in at_best])) for key in at_best[0]
        },
        "epochs": epochs,
        "wall_s": sum(run["wall_s"] for run in runs),
        "cpu_s": sum(run["cpu_s"] for run in runs),
    }


def _write_as_organizers(folder: Path, result: dict[str, Any]) -> None:
    """scores.json and epochs.json as their program writes them, if their seed was run."""
    with_seed = {
        task: (found["scores"][index], found["best_epochs"][index])
        for task, found in result["tasks"].items()
        for index, seed in enumerate(found["seeds"])
        if seed == SEED
    }
    if with_seed:
        scores = {task: round(value, 4) for task, (value, _) in with_seed.items()}
        write_json(folder / "scores.json", scores | {"placeholder": -1})
        write_json(folder / "epochs.json", {task: epoch for task, (_, epoch) in with_seed.items()})
