"""What a sweep would take, before anything is trained: parameters by part, operations, memory and
hours."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from behavegpt.data.given import in_order
from behavegpt.data.memory_counts import count_store
from behavegpt.data.store import EventStore, open_store
from behavegpt.errors import ConfigError
from behavegpt.losses import build_loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.pretrain import PretrainSettings, model_config
from behavegpt.scaling.ladder import Task, memory
from behavegpt.scaling.settings import Job, SweepSettings, list_jobs, run_settings
from behavegpt.training.optimizer import build_optimizer
from behavegpt.training.setup import training_batches

TRIAL_EVENTS = 256  # of a measured step on a CPU
# operations of one; the speed of larger models follows from that of the largest measured one
LARGEST_TRIAL = 1e11
# seconds to open the data, write checkpoints and score, beside training; measured on small runs
OVERHEAD = 3.0


@dataclass(frozen=True)
class Device:
    """Another device, by its speed on paper and the share of it that training is assumed to
    reach."""

    tflops: float
    utilization: float

    def hours(self, flops: float) -> float:
        return flops / (self.tflops * 1e12 * self.utilization * 3600)


def estimate(settings: SweepSettings, device: Device | None = None) -> list[dict[str, Any]]:
    """A row for each size, and one for their sum; `device_hours` with a device.

    Without data (`task` instead) nothing can be measured: events_per_second and hours are None.
    """
    store = open_store(settings.data.path) if settings.data.path else None
    if store is None and settings.task is None:
        raise ConfigError(
            "give data.path, or task.fields and task.behaviors for a dry run without data."
        )

    task = Task.of(store) if store is not None else settings.task
    jobs = list_jobs(settings, task)  # type: ignore[arg-type]

    rows: list[dict[str, Any]] = []

    # operations per second of the largest model measured so far; the sizes come in ascending order
    rate = 0.0
    for name in dict.fromkeys(job.rung.name for job in jobs):
        same = [job for job in jobs if job.rung.name == name]
        row = _row(settings, same)

        if store is not None:
            flops = same[0].rung.flops_per_event
            row["measured"] = (
                # a GPU measures every size; on a CPU large ones would take minutes a step
                torch.cuda.is_available() or not rate or flops * TRIAL_EVENTS < LARGEST_TRIAL
            )
            speed = _measure_speed(settings, same[-1], store) if row["measured"] else rate / flops

            # larger models reach at least the operations per second of smaller ones
            rate = flops * speed
            row["events_per_second"] = speed
            row["hours"] = (row["events"] / speed + OVERHEAD * len(same)) / 3600

        if device is not None:
            row["device_hours"] = device.hours(row["flops"])

        rows.append(row)

    return [*rows, _total(rows)]


def _row(settings: SweepSettings, jobs: list[Job]) -> dict[str, Any]:
    rung = jobs[0].rung
    batches = [run_settings(settings, job, ".", ".").train.batch_events or 0 for job in jobs]

    return {
        "size": rung.name,
        "params": rung.params,
        "embeddings": rung.parameters["embeddings"],
        "blocks": rung.parameters["blocks"],
        "head": rung.parameters["head"],
        "without_embeddings": rung.parameters["without_embeddings"],
        "runs": len(jobs),
        "events": sum(job.events for job in jobs),
        "flops": sum(job.flops for job in jobs),
        "gib": memory(rung, max(batches)) / 2**30,
        "lr": sorted({job.lr for job in jobs}),
        "batch_events": sorted(set(batches)),
        "events_per_second": None,
        "hours": None,
    }


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"size": "all"}
    for name in ("runs", "events", "flops", "hours", "device_hours"):
        values = [row[name] for row in rows if row.get(name) is not None]
        total[name] = sum(values) if values else None

    return {**total, "gib": max(row["gib"] for row in rows)}


def _measure_speed(settings: SweepSettings, job: Job, store: EventStore) -> float:
    """Events per second of real optimizer steps on this machine: one to warm up, then as many as
    fit in a second."""
    chosen: PretrainSettings = run_settings(settings, job, str(store.path), ".")
    config = model_config(chosen, store)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = BehaveGPTForBehaviorPrediction(config).train()

    criterion = build_loss(chosen.loss, torch.tensor(store.behaviors.counts))
    criterion.to(device)

    # a small step on a CPU is enough: its speed hardly depends on the rows in it
    positions = TRIAL_EVENTS if device.type == "cpu" else chosen.train.batch_events
    train = chosen.train.model_copy(update={"batch_events": positions})
    optimizer = build_optimizer(model, train, fused=True)

    given = in_order(config.given or ())
    model.counts = count_store(store, given) if config.memory else None
    batches = training_batches(store, config, train, model.counts)

    events, began = 0.0, 0.0
    for step in range(1, 100):
        # the first step allocates memory and compiles kernels
        if step == 2:
            events, began = 0.0, time.perf_counter()

        for batch in batches.micro_batches(step):
            moved = batch.to(device)
            output = model(
                **moved.arguments,
                labels=moved.target,
                criterion=criterion,
                next_fields=moved.next_fields,
            )

            (output.loss + output.side_loss).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            events += float(output.class_count.sum())

        if step > 1 and time.perf_counter() - began > 1:
            break

    return events / (time.perf_counter() - began)
