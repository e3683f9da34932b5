"""The runs of an evaluation: a task and a seed each, kept when it ends, on one or more devices.

OUT/NAME/TASK.SEED.json   one run; a later call skips it
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.challenge.fit import BATCH, EPOCHS, Tick, train_and_score
from behavegpt.challenge.targets import load_targets
from behavegpt.console import progress, say
from behavegpt.datasets.challenge_files import open_directory
from behavegpt.errors import DataError
from behavegpt.io import write_json
from behavegpt.user_embeddings import UserEmbeddings

RANDOM_DIMENSIONS = 64  # of the random vectors


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
            f"settings; choose another --out or --name, or delete {plan.folder}."
        )
    return run


def run_missing(
    plan: Plan, jobs: Sequence[Job], devices: Sequence[str], clients: dict[str, int]
) -> None:
    """Run what has no result yet: here on one device, else in a process for each."""
    missing = [job for job in jobs if read_run(plan, job) is None]
    if len(missing) < len(jobs):
        say(f"{len(jobs) - len(missing)} of {len(jobs)} runs were finished before")

    batches = {job: EPOCHS * -(-clients[job.task] // BATCH) for job in missing}
    with progress("training batches", sum(batches.values())) as update:
        if len(devices) == 1:
            _run_here(plan, missing, devices[0], update)
        else:
            _run_in_processes(plan, batches, devices, update)


def _run_here(
    plan: Plan, jobs: Sequence[Job], device: str, update: Callable[[int, str], None]
) -> None:
    done = 0  # batches
    for job in jobs:

        def tick(job: Job = job) -> None:
            nonlocal done
            done += 1
            update(done, f"{job.task}, seed {job.seed}")

        _run(plan, job, device, tick)


def _run_in_processes(
    plan: Plan, batches: dict[Job, int], devices: Sequence[str], update: Callable[[int, str], None]
) -> None:
    """A process for each device, which takes one job after the other; batches count when a job
    ends."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
    free = context.Queue()
    for device in devices:
        free.put(device)
    threads = max(1, torch.get_num_threads() // len(devices))

    done = 0
    with ProcessPoolExecutor(len(devices), context, _take_device, (free, threads)) as pool:
        futures = {pool.submit(_run_on_own_device, plan, job): job for job in batches}
        try:
            for future in as_completed(futures):
                future.result()
                job = futures[future]
                done += batches[job]
                update(done, f"{job.task}, seed {job.seed}, done")
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what runs is waited for, the rest need not start
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
        shape = len(vectors), RANDOM_DIMENSIONS
        normal = np.random.default_rng(job.seed).standard_normal(shape, np.float32)
        vectors = normal.astype(np.float16)  # as the entry's are stored

    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high" if plan.tf32 else "highest")

    wall, cpu = time.perf_counter(), time.process_time()
    epochs = train_and_score(vectors, targets, job.seed, device, tick, plan.width)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    where = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    identity = plan.identity[job.task]
    run = {**job._asdict(), "epochs": epochs, **where, **seconds, "identity": identity}
    write_json(plan.folder / job.file, run)
