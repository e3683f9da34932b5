"""Figures of the challenge's scores, drawn from its result files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from behavegpt.figures import BLUE, GRID, MARKERS, OTHERS, figure, short
from behavegpt.result_files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def challenge_scores(board: Path, out: Path) -> Path:
    """Scores of each entry in each challenge task, bars of one deviation over seeds, best entry
    first."""
    table = read_json(board, "tasks", "entries")
    tasks, entries = table["tasks"], table["entries"]

    with figure(out, (1.5 + 1.4 * len(tasks), 4.2)) as (_, (axes,)):
        colors = [BLUE, *OTHERS] * len(entries)  # again from the beginning when they run out
        for index, (entry, color) in enumerate(zip(entries, colors, strict=False)):
            places = [k for k, task in enumerate(tasks) if task in entry["tasks"]]
            scores = [entry["tasks"][tasks[k]] for k in places]
            # entries side by side within the width of a task, so that no bar hides another
            shift = 0.6 * ((index + 0.5) / len(entries) - 0.5)
            axes.errorbar(
                np.array(places) + shift,
                [score["mean"] for score in scores],
                yerr=[score["std"] or 0 for score in scores],
                fmt=("o", *MARKERS)[index % (len(MARKERS) + 1)],
                color=color,
                elinewidth=1.2,
                capsize=2,
                label=f"{entry['place']}. {short(entry['name'])} ({entry['borda']:g})",
            )

        _label_tasks(axes, tasks, "Challenge scores by task (Borda points)")
    return out


def challenge_results(results: Sequence[Path], out: Path) -> Path:
    """Scores of evaluated entries by task: a dot for each seed, a mark at the mean; gray: what
    knowing nothing gives.

    The gray line is the constant predictor's score with two deviations of chance around it, the bar
    above the best score that the labels allow.
    """
    tables = [read_json(path, "name", "tasks", "floors") for path in results]
    tasks = list(dict.fromkeys(task for table in tables for task in table["tasks"]))

    with figure(out, (2.5 + 1.4 * len(tasks), 4.2)) as (_, (axes,)):
        for place, task in enumerate(tasks):
            # equal in all tables: the floors are those of the labels
            floor = next(table["floors"][task] for table in tables if task in table["tasks"])
            _draw_floor(axes, place, floor)

        colors = [BLUE, *OTHERS] * len(tables)
        for index, (table, color) in enumerate(zip(tables, colors, strict=False)):
            shift = 0.7 * ((index + 0.5) / len(tables) - 0.5)
            places = [tasks.index(task) + shift for task in table["tasks"]]
            scored = list(table["tasks"].values())
            seeds = [len(values["scores"]) for values in scored]
            scores = np.concatenate([values["scores"] for values in scored])
            axes.scatter(
                np.repeat(places, seeds),
                scores,
                s=12,
                color=color,
                alpha=0.5,
                linewidths=0,
                zorder=3,
            )
            axes.plot(
                places,
                [values["mean"] for values in scored],
                ("o", *MARKERS)[index % (len(MARKERS) + 1)],
                color=color,
                markersize=7,
                label=short(table["name"]),
            )

        _label_tasks(axes, tasks, "Challenge scores by task (dots: seeds)")
    return out


def _label_tasks(axes: Axes, tasks: Sequence[str], title: str) -> None:
    """A task under each place, and the entries beside the axes, where they cover no score."""
    names = [task.replace("_", "\n", 1) for task in tasks]  # two lines: six names stand in a row
    axes.set_xticks(range(len(tasks)), names, fontsize=8.5)
    axes.set(title=title, ylabel="task score")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _draw_floor(axes: Axes, place: int, floor: Mapping[str, float]) -> None:
    """What knowing nothing gives in a task, and the best that its labels allow."""
    edges = [place - 0.4, place + 0.4]
    level, band = floor["constant"], 2 * floor["chance_std"]
    # one entry in the legend is enough
    labels = (None, None) if place else ("knows nothing (band: chance)", "best possible")

    axes.fill_between(edges, level - band, level + band, color=GRID, linewidth=0)
    axes.plot(edges, [level, level], color="gray", linewidth=1, label=labels[0])
    axes.plot(edges, [floor["ceiling"]] * 2, color="gray", linewidth=3, label=labels[1])
