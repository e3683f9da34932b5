"""Markdown tables and figures of a benchmark, from its rows and ranks alone.

TABLES/tables.md          for each log: every model (mean ± deviation over seeds), and the
                          comparison user by user
TABLES/comparison.json    the comparison
TABLES/rows.jsonl         the rows that the tables are made of
TABLES/DATA_frontier.png  macro against weighted recall
TABLES/DATA_groups.png    recall of head, mid and tail behaviors
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.benchmark.plan import FINAL, Plan
from behavegpt.benchmark.run import plans_of
from behavegpt.benchmark.settings import BenchmarkSettings
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.data.vocabulary import FIRST
from behavegpt.errors import DataError
from behavegpt.figures import BLUE, GRID, METRICS, ORANGE, VERMILION, figure, title_of
from behavegpt.grid import Row, mean_and_deviation
from behavegpt.io import write_json, write_text
from behavegpt.metrics.bootstrap import FIGURES, Difference, compare_ranks
from behavegpt.plots import frontier

SHOWN = ("rec_w", "rec_m", "f1_w", "f1_m", "ndcg@3", "head", "mid", "tail")
# a table of many models is wide: the thirds of the behaviors go by their short names
NAMES = METRICS | {"head": "head", "mid": "mid", "tail": "tail"}


def write_tables(settings: BenchmarkSettings) -> Path:
    """Write the tables, the figures and (beside another `out`) the rows; returns tables.md.
    DataError without rows."""
    out = Path(settings.tables or settings.out)
    # for the test rows' users alone: the figures come from the rows
    stores = {name: open_store(entry.path) for name, entry in settings.data.items()}

    parts, used = [], []
    compared: dict[str, dict[str, Any]] = {}

    for plan in plans_of(settings, stores):
        rows = final_rows(plan)
        if not rows:
            continue

        # the copy of the rows holds those of the tuning too
        used += plan.known_rows()
        parts.append(f"## {plan.data}\n\n{_caption(plan, rows)}\n\n{figures_table(rows)}")

        differences = comparison(settings, plan, rows)
        if differences:
            parts.append(comparison_table(str(_versus(settings, rows)), differences))
            compared[plan.data] = _as_json(differences)

        # a point a seed: the figures draw means and deviations themselves
        flat = [{"model": row["model"], **row["test"]} for row in rows]
        frontier(flat, out / f"{plan.data}_frontier.png", group="model")
        groups(flat, out / f"{plan.data}_groups.png")

    if not parts:
        raise DataError(
            f"{settings.out}: no finished runs with these settings; run `behavegpt "
            "benchmark` without --table first."
        )

    if settings.tables is not None:
        write_text(
            out / "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in used)
        )

    write_json(
        out / "comparison.json",
        {"versus": settings.versus, "draws": settings.draws, "data": compared},
    )
    write_text(out / "tables.md", "\n\n".join(parts) + "\n")
    return out / "tables.md"


def final_rows(plan: Plan) -> list[Row]:
    """The finished final rows of a log, each with the model's name in tables: with what it was
    given."""
    rows = (row for row in plan.known_rows() if row["kind"] == FINAL and row["status"] == "done")
    return [row | {"entry": row["model"], "model": _named(row)} for row in rows]


def _named(row: Row) -> str:
    given = row.get("given")
    return f"{row['model']}, given {' and '.join(given)}" if given else str(row["model"])


def figures_table(rows: Sequence[Row]) -> str:
    """A line for each model, best weighted recall first; ± is one standard deviation over seeds."""
    columns = (
        "model",
        "seeds",
        *(NAMES[name] for name in SHOWN),
        "parameters",
        "s / epoch",
        "chosen",
    )

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    # count baselines have no seed, no parameters and no epochs
    for name, same in sorted(_by_model(rows).items(), key=lambda item: -_mean(item[1], "rec_w")):
        counted = same[0]["seed"] is None
        # rows of earlier versions have no F1
        cells = [_over_seeds(same, figure_name) for figure_name in SHOWN]
        seconds = mean_and_deviation([None if counted else row["epoch_seconds"] for row in same], 1)
        cost = ["-" if counted else f"{same[0]['parameters']:,}", seconds]
        # the last word of a setting is enough: `train.lr` is `lr`
        chosen = ", ".join(
            f"{key.rpartition('.')[2]} {value:g}" for key, value in same[0]["point"].items()
        )
        seeds = "-" if counted else str(len(same))
        lines.append(
            "| " + " | ".join([title_of(name), seeds, *cells, *cost, chosen or "-"]) + " |"
        )

    return "\n".join(lines)


def _over_seeds(rows: Sequence[Row], name: str) -> str:
    """A test figure's mean and deviation over a model's runs."""
    return mean_and_deviation([row["test"].get(name) for row in rows])


def comparison(
    settings: BenchmarkSettings, plan: Plan, rows: Sequence[Row]
) -> dict[str, dict[str, Difference]]:
    """`versus` minus each other model, on the same test rows."""
    ranks: dict[str, list[np.ndarray]] = {}
    for row in rows:
        path = Path(settings.out) / "ranks" / f"{row['key']}.npy"
        ranks.setdefault(row["model"], []).append(np.load(path, allow_pickle=False))

    versus = _versus(settings, rows)
    if versus is None:
        return {}

    target, user = truth(plan.store)

    # (seeds, R): seeds are drawn again with the users
    own = np.stack(ranks.pop(versus))
    return {
        name: compare_ranks(own, np.stack(x), target, user, settings.draws)
        for name, x in ranks.items()
    }


def _as_json(differences: dict[str, dict[str, Difference]]) -> dict[str, Any]:
    """Model -> figure -> the difference's fields by name."""
    told: dict[str, Any] = {}
    for name, by_figure in differences.items():
        told[name] = {figure: difference._asdict() for figure, difference in by_figure.items()}
    return told


def _versus(settings: BenchmarkSettings, rows: Sequence[Row]) -> str | None:
    """The name in tables of the model that the others are compared with; None where it has no
    row."""
    return next((row["model"] for row in rows if row["entry"] == settings.versus), None)


def comparison_table(versus: str, differences: dict[str, dict[str, Difference]]) -> str:
    """Difference [95 % interval] of each figure; bold where the interval leaves out 0."""
    lines = [f"{title_of(versus)} minus the others, drawn again by users and seeds [95 %]:", ""]
    lines += [
        "| against | " + " | ".join(NAMES[f] for f in FIGURES) + " |",
        "|" + "---|" * (1 + len(FIGURES)),
    ]

    for name, by_figure in sorted(differences.items(), key=lambda item: item[1]["rec_w"].mean):
        cells = []
        for figure_name in FIGURES:
            difference = by_figure[figure_name]
            text = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
            is_clear = difference.low > 0 or difference.high < 0
            cells.append(f"**{text}**" if is_clear else text)
        lines.append(f"| {title_of(name)} | " + " | ".join(cells) + " |")

    return "\n".join(lines)


def truth(store: EventStore) -> tuple[np.ndarray, np.ndarray]:
    """Class and user (R,) of each test row, ascending."""
    rows = target_rows(store, SPLITS["test"])
    # the user of each row: the last offset that is not behind it
    user = np.searchsorted(store.offsets, rows, side="right") - 1
    return store.column("behavior")[rows].astype(np.int64) - FIRST, user


def groups(rows: Sequence[Row], out: Path) -> Path:
    """Macro recall of the most frequent, middle and rarest third of the behaviors, a row for each
    model (Fig. 6a)."""
    parts = ("head", "mid", "tail")
    values = {}
    for name, same in _by_model(rows).items():
        # a third none of whose behaviors occurs in the test split has no recall
        by_part = [[row[part] or 0.0 for row in same] for part in parts]
        values[name] = np.array(by_part).T  # (seeds, 3)

    # the best at the top: bars are drawn from below
    order = sorted(values, key=lambda name: values[name].mean(0).sum())
    with figure(out, (9, 1 + 0.34 * len(order)), columns=3) as (_, axes):
        for index, (title, color) in enumerate(zip(parts, (BLUE, ORANGE, VERMILION), strict=True)):
            recalls = [values[name][:, index] for name in order]  # each (seeds,)
            heights = [recall.mean() for recall in recalls]
            # ddof=1: a sample of seeds; of one seed there is no spread
            spread = [recall.std(ddof=1) if len(recall) > 1 else 0.0 for recall in recalls]
            axes[index].barh(
                range(len(order)),
                heights,
                xerr=spread,
                color=color,
                height=0.6,
                error_kw={"elinewidth": 1},
            )

            axes[index].set(title=title, xlabel="macro recall", yticks=range(len(order)))
            axes[index].set_yticklabels([title_of(name) for name in order] if index == 0 else [])
            axes[index].grid(axis="y", color=GRID, linewidth=0)

    return out


def _caption(plan: Plan, rows: Sequence[Row]) -> str:
    tuning = plan.settings.tuning
    budget = {**plan.settings.train, **plan.settings.data[plan.data].train}
    said = ", ".join(f"{name} {value}" for name, value in budget.items()) or "of each file"
    tuned = "; ".join(f"{name} in {values}" for name, values in tuning.grid.items()) or "nothing"
    devices = sorted({row["device"] for row in rows if "device" in row})

    return (
        f"{len(target_rows(plan.store, SPLITS['test'])):,} test rows, "
        f"{plan.store.behaviors.classes} behaviors. {_given(rows)} Budget of every model: {said}. "
        f"Tuned on validation ({NAMES[tuning.select]}, seed {tuning.seed}): {tuned}. "
        f"Protocol {plan.protocol_hash}; "
        f"{', '.join(devices) or 'counts only'}.{_unseen(plan.store)}"
    )


def _given(rows: Sequence[Row]) -> str:
    """What the models were told of the event that they predict."""
    if any(row.get("given") for row in rows):
        return (
            "The target's own time and place are hidden from a model unless its name says that "
            "they were given."
        )
    return "Given of the target: nothing."


def _unseen(store: EventStore) -> str:
    """What the figures would be if the targets that no model can name counted as misses; empty
    without any."""
    unseen = count_unseen(store, SPLITS["test"])
    if not unseen:
        return ""

    # macro recall gains one class of recall 0 from them, whatever their number
    # exact, not estimated: a miss adds to the denominator alone
    rows = target_rows(store, SPLITS["test"])
    present = len(np.unique(store.column("behavior")[rows]))
    return (
        f" {unseen:,} more test targets have labels that training never saw and are left out; with "
        f"them as misses, weighted recall and NDCG@3 are {len(rows) / (len(rows) + unseen):.4f} "
        f"times, and macro recall {present / (present + 1):.4f} times, what stands here."
    )


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each model, in the order in which the models come."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)
    return models


def _mean(rows: Sequence[Row], figure: str) -> float:
    return float(np.mean([row["test"][figure] for row in rows]))
