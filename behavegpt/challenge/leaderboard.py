"""Borda count over tasks: rank k of N entries gives N - k points, summed; ties share the points of
their ranks.

Ties are scores equal to four decimals, as the organizers publish them: two entries that share ranks
1 and 2 of 5 get (4 + 3) / 2 points each, so a task always gives the same number of points. An entry
without a result in a task gets no points there and does not count in its N. Equal sums share a
place, and the next place is skipped (1, 2, 2, 4). Results of networks of different widths or
precisions, or on other clients, are not ranked together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from behavegpt.challenge.network import WIDTH
from behavegpt.challenge.targets import HIDDEN_NAMES, TASKS, task_named
from behavegpt.errors import DataError

# of a score: those that the organizers publish
DECIMALS = 4
PLACEHOLDER = "placeholder"  # a key of the organizers' score files, always -1


class Score(NamedTuple):
    """A task's score: mean and standard deviation over `seeds` runs (one run: None)."""

    mean: float
    std: float | None = None
    seeds: int = 1


class Result(NamedTuple):
    """What one entry reached."""

    name: str
    scores: dict[str, Score]  # task -> score
    # what must be the same in all results of a board; unknown where a file is silent
    protocol: dict[str, Any] = {}


def read_result(path: Path) -> Result:
    """Read a result of `evaluate`, or the organizers' {"task": score}. Raises DataError naming the
    file and the task.

    The name is the one in the file, else the file's (of a file scores.json: its folder's).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: no readable result file ({error}); evaluate the entry again."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("tasks", {}), dict):
        raise DataError(
            f"{path}: expected {{'tasks': ...}} or {{task: score}}; give result files of "
            "`evaluate`."
        )

    # the organizers' file has no name of its own: its folder's tells whose it is
    name = path.absolute().parent.name if path.stem == "scores" else path.stem

    protocol = {}
    if "tasks" in content:
        protocol = _protocol(content)
        name, content = str(content.get("name", name)), content["tasks"]

    scores = {}
    for key, value in content.items():
        if key != PLACEHOLDER:
            # the organizers' files call hidden tasks by number
            task = HIDDEN_NAMES.get(key, key)
            task_named(task)
            scores[task] = _score(path, key, value)

    if not scores:
        raise DataError(f"{path}: holds no task; evaluate the entry again.")

    return Result(name, scores, protocol)


def leaderboard(results: Sequence[Result]) -> dict[str, Any]:
    """The board {"tasks", "entries", "within_noise"}, entries best first.

    `within_noise` lists (task, better, worse) for neighbors whose scores differ by less than two
    standard errors of their difference over seeds, so that their order means little; entries of one
    seed cannot be judged.
    """
    if not results:
        raise DataError("no result files; give JSON files of `evaluate`, or a folder of them.")

    names = [result.name for result in results]
    # points are kept by name
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f'two results are named {twice[0]!r}; give one of them another name ("name" in its '
            "file)."
        )

    # before anything is ranked: points of different networks are no points
    _refuse_other_protocols(results)
    scored = {task for result in results for task in result.scores}
    tasks = [task for task in TASKS if task in scored]

    # name -> task -> points
    points: dict[str, dict[str, float]] = {name: {} for name in names}
    close = []
    for task in tasks:
        ranked = sorted(
            (r for r in results if task in r.scores), key=lambda r: -r.scores[task].mean
        )
        for name, share in borda({r.name: r.scores[task].mean for r in ranked}).items():
            points[name][task] = share
        close += [
            (task, a.name, b.name)
            for a, b in pairwise(ranked)
            if _within_noise(a.scores[task], b.scores[task])
        ]

    # sums of halves and thirds: rounded, so that equal ones are equal
    totals = {name: round(sum(shares.values()), 6) for name, shares in points.items()}

    entries = [_entry(result, points[result.name], totals) for result in results]
    entries.sort(key=lambda entry: (entry["place"], -entry["sum"], entry["name"]))
    return {"tasks": tasks, "entries": entries, "within_noise": close}


def _entry(result: Result, points: dict[str, float], totals: dict[str, float]) -> dict[str, Any]:
    """A line of the board: the points by task of one result among the totals of all."""
    total = totals[result.name]
    return {
        "place": 1 + sum(other > total for other in totals.values()),
        "name": result.name,
        "borda": total,
        "sum": sum(score.mean for score in result.scores.values()),
        "tasks": {
            task: score._asdict() | {"points": points[task]}
            for task, score in result.scores.items()
        },
    }


def _protocol(content: dict[str, Any]) -> dict[str, Any]:
    """Network width, precision and clients of a result of `evaluate`."""
    vectors = content.get("vectors")
    clients = content.get("client_set") or (
        vectors.get("clients") if isinstance(vectors, dict) else None
    )
    protocol = {"network width": content.get("width") or WIDTH, "clients": clients}
    if "tf32" in content:
        protocol["precision"] = "TF32" if content["tf32"] else "fp32"
    return {what: value for what, value in protocol.items() if value is not None}


def _refuse_other_protocols(results: Sequence[Result]) -> None:
    """Raise DataError for results that cannot be compared, naming two of them."""
    first: dict[str, Result] = {}
    for result in results:
        for what, value in result.protocol.items():
            other = first.setdefault(what, result)
            if other.protocol[what] != value:
                verb = "differ" if what == "clients" else "differs"
                raise DataError(
                    f"{other.name!r} and {result.name!r} cannot be ranked together: their {what} "
                    f"{verb} ({other.protocol[what]} and {value}), and scores depend on it; "
                    "evaluate both alike, or rank them apart."
                )


def borda(scores: dict[str, float]) -> dict[str, float]:
    """Points of each name in one task, higher scores first.

    >>> borda({"a": 0.9, "b": 0.8, "c": 0.80001, "d": 0.1})
    {'a': 3.0, 'b': 1.5, 'c': 1.5, 'd': 0.0}
    """
    # as the organizers publish scores, and so rank them
    rounded = {name: round(score, DECIMALS) for name, score in scores.items()}
    values = list(rounded.values())
    points = {}
    for name, score in rounded.items():
        below = sum(other < score for other in values)
        points[name] = below + (values.count(score) - 1) / 2  # ties share their ranks' points
    return points


def _score(path: Path, task: str, value: Any) -> Score:
    """{"mean", "std", "seeds"} or a number, within [0, 1]."""
    fields = value if isinstance(value, dict) else {"mean": value}
    mean, std, seeds = fields.get("mean"), fields.get("std"), fields.get("seeds", 1)
    # results of earlier versions list the seeds, the organizers' have none
    runs = len(seeds) if isinstance(seeds, list) else seeds

    if type(runs) is not int or runs < 1:
        raise DataError(
            f"{path}: the seeds of {task} are {seeds!r}, expected a list of them or how many; "
            "evaluate it again."
        )

    if not _is_share(mean) or not (std is None or _is_share(std)):
        raise DataError(
            f"{path}: the score of {task} is {value!r}, expected a number from 0 to 1; evaluate "
            "it again."
        )

    return Score(mean, std, runs)


def _is_share(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _within_noise(a: Score, b: Score) -> bool:
    if a.std is None or b.std is None or min(a.seeds, b.seeds) < 2:
        return False
    # two standard errors of a difference of means
    return abs(a.mean - b.mean) < 2 * math.sqrt(a.std**2 / a.seeds + b.std**2 / b.seeds)
