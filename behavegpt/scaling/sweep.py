"""The sweep: sizes x data x seeds (x learning rates), each trained by one pass and scored on
held-out users.

OUT/sweep.yaml        the settings
OUT/rows.jsonl        one row a run, written when it ends; see rows.py
OUT/data/             held-out users and nested training subsets, see subsets.py
OUT/runs/NAME/        the run's folder; its checkpoints go when its row is written

Any number of processes may work on one OUT, on one machine or many: a run is claimed by a file
lock, which the system frees however the process ends. Done runs are skipped, an interrupted one
resumes from its last checkpoint. The last weights are scored: the learning rate has come down by
then and no event was seen twice, so there is nothing to select, and a best-of-many-validations loss
would be biased downwards the more the longer the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from behavegpt.config import dump_settings, read_settings
from behavegpt.console import say
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, TRAIN, EventStore, open_store
from behavegpt.errors import BehaveGPTError, ConfigError
from behavegpt.grid import Grid, Row, Run, attempted, digest, tell_failed
from behavegpt.io import write_text
from behavegpt.model.precision import choose_precision
from behavegpt.outputs import check_output
from behavegpt.pretrain import pretrain
from behavegpt.scaling.ladder import Task
from behavegpt.scaling.rows import COUNTS
from behavegpt.scaling.settings import GROWS, Job, SweepSettings, list_jobs, run_settings
from behavegpt.scaling.subsets import Division, divide, heldout_store, training_store
from behavegpt.training.evaluate import evaluate
from behavegpt.training.model_folder import open_model


def sweep(
    settings: SweepSettings, worker: tuple[int, int] = (0, 1), retry_failed: bool = False
) -> list[Row]:
    """Run what is not done yet, this worker's share first and then what nobody works on; returns
    all rows.

    Raises BehaveGPTError for bad settings or data; a run that fails is recorded and the sweep goes
    on.
    """
    out = Path(settings.out)
    check_output(out, "into")
    store = open_store(_needed_path(settings))
    refuse_baskets(store.schema, "the sweep")

    # by users and before any run: all runs share what is held out
    division = divide(store, settings.data.split, settings.data.heldout_events, settings.data.seed)
    jobs = list_jobs(settings, Task.of(store))
    division.training_users(max(job.events for job in jobs))  # refuse now what the log cannot give
    # last, when all else is right: it writes the settings that later calls are held to
    _claim_folder(settings, out)

    heldout = heldout_store(division, out / "data" / "heldout")

    keys = {job.name: _key(settings, job, division) for job in jobs}

    # this worker's share first, then whatever the others have not claimed
    mine = jobs[worker[0] :: worker[1]]
    grid = Grid(out / "rows.jsonl", out / "locks")

    def rows_of(job: Job) -> Iterator[Row]:
        yield {"key": keys[job.name], **_row(settings, job, division, heldout)}

    mine += [job for job in jobs if job not in mine]
    # claims are by file lock: a run that another worker holds is passed over
    grid.run(
        [
            Run(
                {"key": keys[job.name]},
                partial(rows_of, job),
                job.name,
                tidy=partial(_tidy, out / "runs" / job.name, settings.keep_models),
            )
            for job in mine
        ],
        again=lambda row: retry_failed and row["status"] == "failed",
    )
    rows = [row for row in grid.rows() if row["key"] in keys.values()]
    tell_failed(rows, lambda row: str(row["run"]), grid.path)

    return rows


def _row(settings: SweepSettings, job: Job, division: Division, heldout: EventStore) -> Row:
    """Carry out a run and say how it went."""
    row: Row = {"run": job.name, "name": settings.name, "seed": job.seed, "lr": job.lr}

    row |= {"shape": job.rung.name, "width": job.rung.width, "parameters": job.rung.parameters}
    row |= {column: job.rung.parameters[count] for count, column in COUNTS.items()}
    row |= {"split": settings.data.split, "data": division.store.path.name}
    row |= {"content_hash": division.store.manifest.content_hash}
    say(f"run {job.name}: {job.rung.params:,} parameters, {job.events:,.0f} events")

    state = attempted(lambda: _train(settings, job, division, heldout), f"run {job.name}")
    if state["status"] == "failed":
        # a run that fails has no figures, so the row says what it was to be
        state["events_asked"] = job.events
    return row | state


def _tidy(folder: Path, keep_model: bool) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(folder / "ckpt", ignore_errors=True)
    if not keep_model:
        shutil.rmtree(folder / "model", ignore_errors=True)


def _train(settings: SweepSettings, job: Job, division: Division, heldout: EventStore) -> Row:
    """Train (or go on), score the last weights, and return the figures of the row."""
    folder = Path(settings.out) / "runs" / job.name
    store = training_store(division, job.events, Path(settings.out) / "data" / f"{job.events:.0f}")
    chosen = run_settings(settings, job, str(store.path), str(folder))

    # resume also begins a run that is not there yet: a killed worker's run goes on
    run = pretrain(chosen, resume=True)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    model, _ = open_model(run / "model")

    # scored where it was trained; rows of several machines may differ in the last digits
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)

    def loss(split: str) -> float:
        precision = choose_precision(chosen.train.precision, device)
        _, value = evaluate(model, heldout, SPLITS[split], precision=precision)
        # `not >` refuses NaN as well
        if not value > 0 or value == float("inf"):
            raise BehaveGPTError(f"the loss on the held-out users is {value}; lower lr.values.")
        return value

    events = len(target_rows(store, TRAIN))
    return {
        "events": events,
        "loss": loss(settings.data.split),
        # with one rate there is nothing to choose, and a pass over the validation users to save
        "choice_loss": loss("valid") if len(settings.lr.values) > 1 else None,
        "users": store.manifest.users,
        "batch_events": chosen.train.batch_events,
        "steps": record["steps"],
        "flops": job.rung.flops_per_event * events,
        "seconds": record["seconds"],
        "device": record["device"],
        "versions": record["versions"],
    }


def _key(settings: SweepSettings, job: Job, division: Division) -> str:
    """What decides a run's figures, as a hash."""

    run = run_settings(settings, job, ".", ".").model_dump(mode="json")
    run |= {"out": "", "data": {**run["data"], "path": ""}}  # places decide nothing

    # the same data in another folder are the same run; their content hash tells others
    data = {**settings.data.model_dump(), "path": None}
    return digest([run, data, job.events, division.store.manifest.content_hash])


def _needed_path(settings: SweepSettings) -> str:
    if settings.data.path is None:
        raise ConfigError(
            "data.path is missing: only a dry run can do without; pass data.path=FOLDER."
        )
    return settings.data.path


def _claim_folder(settings: SweepSettings, out: Path) -> None:
    """Keep rows of different settings apart: a folder may get more sizes, events and seeds, but no
    other training."""
    file = out / "sweep.yaml"
    if file.exists():
        before = read_settings(SweepSettings, file)
        fixed = {name for name in SweepSettings.model_fields if name not in GROWS}
        changed = [
            name for name in sorted(fixed) if getattr(before, name) != getattr(settings, name)
        ]
        if changed:
            raise ConfigError(
                f"{out}: its rows were made with other settings of {', '.join(changed)} (see "
                f"{file}); choose another out=FOLDER, so that one law is not fitted to two kinds "
                "of runs."
            )

    write_text(file, dump_settings(settings))
