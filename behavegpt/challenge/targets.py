"""What the tasks ask for: for each client and label, does the client buy it in the window?

All at once where the organizers' code filters a table for every client in every epoch; the same
matrices bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.arrays import open_array, write_array
from behavegpt.config import closest
from behavegpt.datasets.challenge_files import (
    TARGET_COLUMNS,
    WINDOWS,
    ChallengeDirectory,
    check_table,
    read_whole_numbers,
)
from behavegpt.errors import ConfigError, DataError
from behavegpt.locks import lock
from behavegpt.ragged import owners, ranges


class Task(NamedTuple):
    """kind "absence": 1 if the client buys nothing; "propensity": which labels of `column` the
    client buys."""

    kind: str
    column: str | None = None
    hidden: int | None = None  # number of a task that was kept secret during the challenge
    active_only: bool = False  # only clients of active_clients.npy take part


TASKS = {
    "churn": Task("absence", active_only=True),
    "propensity_category": Task("propensity", "category"),
    "propensity_sku": Task("propensity", "sku"),
    "conversion": Task("absence", hidden=1),  # 1 = does NOT buy, as in the organizers' code
    "propensity_new_sku": Task("propensity", "sku", hidden=2),
    "propensity_price": Task("propensity", "price", hidden=3),
}
# of the organizers
HIDDEN_NAMES = {f"hidden{task.hidden}": name for name, task in TASKS.items() if task.hidden}
OPEN_TASKS = tuple(name for name, task in TASKS.items() if task.hidden is None)


@dataclass(frozen=True)
class Targets:
    """The targets of N clients, in their order; O = 1 for absence, else the number of labels."""

    task: str
    train: np.ndarray  # (N, O) uint8
    validation: np.ndarray  # (N, O) uint8
    popularity: np.ndarray | None  # (O,) float64, propensity only
    rows: np.ndarray  # (N,) bool: clients that take part
    labels: np.ndarray  # (O,) int64; empty for absence


def task_named(name: str) -> Task:
    """A task by name; raises ConfigError with the known names."""
    if name in HIDDEN_NAMES:
        meant = HIDDEN_NAMES[name]
        raise ConfigError(f"{name!r} is the organizers' name of the task {meant!r}; use {meant!r}.")

    if name not in TASKS:
        raise ConfigError(f"{name!r} is not a task of the challenge. {closest(name, list(TASKS))}")
    return TASKS[name]


def available_tasks(directory: ChallengeDirectory) -> tuple[str, ...]:
    """All tasks but the hidden ones whose labels are not in the directory."""
    hidden = (name for name, task in TASKS.items() if task.hidden and task.column)
    absent = {name for name in hidden if not directory.array(name).exists()}
    return tuple(name for name in TASKS if name not in absent)


def load_targets(directory: ChallengeDirectory, client_ids: np.ndarray, task: str) -> Targets:
    """The targets of a task for the clients (N,) int64, in their order; a client may occur more
    than once."""
    kind = task_named(task)
    labels, popularity = np.empty(0, np.int64), None
    if kind.kind == "propensity":
        labels, popularity = read_labels(directory, task)

    lookup = _Rows(client_ids)
    train = _window(directory, "train", kind.column, labels, lookup)  # (N, O)
    validation = _window(directory, "validation", kind.column, labels, lookup)  # (N, O)

    rows = np.ones(len(client_ids), bool)  # (N,)
    if kind.active_only:
        rows = np.isin(client_ids, directory.active_clients)

    return Targets(task, train, validation, popularity, rows, labels)


def read_labels(directory: ChallengeDirectory, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (O,) int64 and their popularity (O,) float64; raises DataError for repeated labels or
    other lengths."""
    path, beside = directory.array(task), directory.array(f"popularity_{task}")
    labels = read_whole_numbers(path)
    if not len(labels) or len(np.unique(labels)) != len(labels):
        raise DataError(f"{path}: must hold labels, each once; remove repetitions.")

    popularity = np.array(open_array(beside))
    if popularity.shape != labels.shape or popularity.dtype.kind not in "iuf":
        raise DataError(
            f"{beside}: holds {popularity.dtype} of shape {popularity.shape}, expected one number "
            f"for each of the {len(labels)} labels of {path.name}; take both from the same release."
        )

    popularity = popularity.astype(np.float64)
    if not (np.isfinite(popularity).all() and (popularity >= 0).all() and popularity.any()):
        raise DataError(
            f"{beside}: popularity must be finite, not negative and not all 0; compute it again."
        )

    return labels, popularity


def write_targets(
    directory: ChallengeDirectory,
    out: Path,
    tasks: Sequence[str],
    progress: Callable[[int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Write OUT/TASK_WINDOW.npy (N, O) uint8 for the relevant clients, in their order, and
    OUT/active.npy (N,) bool.

    `active` tells which rows take part in churn. Returns one line of facts for each task.
    """
    for task in tasks:
        task_named(task)

    clients = directory.relevant_clients
    lines = []

    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        write_array(out / "client_ids.npy", clients)
        for done, task in enumerate(tasks):
            if progress:
                progress(done, task)
            lines.append(_write_task(load_targets(directory, clients, task), out))
    return lines


def _write_task(targets: Targets, out: Path) -> dict[str, Any]:
    """Write the matrices of one task; returns what they hold."""
    taking_part: slice | np.ndarray = slice(None)
    if TASKS[targets.task].active_only:
        write_array(out / "active.npy", targets.rows)
        taking_part = targets.rows

    for window, matrix in zip(WINDOWS, (targets.train, targets.validation), strict=True):
        write_array(out / f"{targets.task}_{window}.npy", matrix)

    train, validation = targets.train[taking_part], targets.validation[taking_part]
    return {
        "task": targets.task,
        "clients": len(train),
        "labels": train.shape[1],
        "train_positives": int(np.count_nonzero(train)),
        "validation_positives": int(np.count_nonzero(validation)),
        "labels_absent_in_validation": int((~validation.any(axis=0)).sum()),
    }


class _Rows:
    """Finds the rows of a client, also of one that occurs more than once."""

    def __init__(self, client_ids: np.ndarray) -> None:
        self.order = np.argsort(client_ids, kind="stable")
        self.sorted = client_ids[self.order]

    def __len__(self) -> int:
        return len(self.order)

    def find(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For events of `clients` (E,): rows (M,) and the event (M,) each belongs to."""
        # events of a client go to all rows of it
        first = np.searchsorted(self.sorted, clients, "left")  # (E,)
        # (E,) rows of each event's client
        times = np.searchsorted(self.sorted, clients, "right") - first
        return self.order[ranges(first, times)], owners(times)


def _window(
    directory: ChallengeDirectory,
    window: str,
    column: str | None,
    labels: np.ndarray,
    lookup: _Rows,
) -> np.ndarray:
    """(N, O) uint8 of one window; `column` None: (N, 1), 1 where the client buys nothing."""
    path = directory.target(window)
    check_table(path, TARGET_COLUMNS)
    names = ["client_id"] if column is None else ["client_id", column]

    try:
        # an event without a client, or without the label, is no purchase of it
        bought = pq.read_table(path, columns=names).drop_null()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); run `behavegpt challenge split` again."
        ) from None

    clients = bought["client_id"].to_numpy()  # (E,)

    if column is None:
        # absence: 1 until a purchase is found
        matrix = np.ones((len(lookup), 1), np.uint8)
        matrix[lookup.find(clients)[0]] = 0
        return matrix

    # labels are in the organizers' order, by popularity: a sorted view of them to search in
    order = np.argsort(labels)  # (O,)
    values = bought[column].to_numpy()  # (E,)
    place = np.minimum(np.searchsorted(labels, values, sorter=order), len(labels) - 1)

    # purchases of other labels are nothing that is asked for
    known = labels[order[place]] == values  # (E,)

    rows, event = lookup.find(clients[known])  # (M,) each

    matrix = np.zeros((len(lookup), len(labels)), np.uint8)
    matrix[rows, order[place[known]][event]] = 1

    return matrix
