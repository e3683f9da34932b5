"""Figures of a run, drawn from its result files alone: one function per figure, each writes one PNG
and returns it.

RUN/log.jsonl -> loss.png; RUN/eval/metrics.json -> tradeoff.png; other figures of RUN/eval are in
plots_evaluation.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.figures import (
    BLUE,
    GREEN,
    INK,
    METRICS,
    MODEL,
    ORANGE,
    VERMILION,
    figure,
    legend_below,
    title_of,
)
from behavegpt.plots_evaluation import (
    calibration,
    confusion,
    is_calibrated,
    per_behavior,
    recall_by_decile,
)
from behavegpt.result_files import read_json
from behavegpt.training.journal import read_journal


def draw_all(run: Path, named: Callable[[str], str] = str) -> list[Path]:
    """Draw into RUN/figs every figure whose result file is there; returns their paths in the order
    of a report. `named` gives what is shown for a label."""
    # source, figure, what draws it
    figures: list[tuple[str, str, Callable[[Path, Path], Path]]] = [
        ("log.jsonl", "loss.png", loss_curve),
        ("eval/metrics.json", "tradeoff.png", tradeoff),
        ("eval/metrics.json", "recall_by_decile.png", recall_by_decile),
        ("eval/per_behavior.csv", "per_behavior.png", per_behavior),
        ("eval/metrics.json", "calibration.png", calibration),
        ("eval/confusion.json", "confusion.png", partial(confusion, named=named)),
    ]
    paths = []
    for source, name, draw in figures:
        if not (run / source).is_file():
            continue
        # what an evaluation may lack
        needed = NEEDED.get(name)
        if needed and not needed(run / source):
            continue
        paths.append(draw(run / source, run / "figs" / name))
    return paths


def loss_curve(log: Path, out: Path) -> Path:
    """Cross-entropy over training (left) and the validation figures (right), by optimizer step,
    from log.jsonl."""
    records = read_journal(log)
    train = [record for record in records if record.get("kind") == "train"]
    valid = [record for record in records if record.get("kind") == "valid"]

    with figure(out, (8.2, 3.5), columns=2) as (_, (left, right)):
        steps, entropy = _series(train, "cross_entropy")
        # the steps' own losses pale behind their moving mean
        left.plot(steps, entropy, color=BLUE, alpha=0.3, linewidth=1)
        left.plot(steps, _smooth(entropy), color=BLUE, label="training")
        left.plot(
            *_series(valid, "cross_entropy"),
            color=ORANGE,
            marker="s",
            markersize=4,
            label="validation",
        )
        left.set(title="Cross-entropy", xlabel="optimizer step", ylabel="nats per event")

        looks = zip(("rec_w", "rec_m", "ndcg@3"), (BLUE, VERMILION, GREEN), "os^", strict=True)
        for key, color, marker in looks:
            label = METRICS[key]
            right.plot(*_series(valid, key), color=color, marker=marker, markersize=4, label=label)
        right.set(title="Validation", xlabel="optimizer step", ylabel="share (0 to 1)")

        for axes in (left, right):
            legend_below(axes)
    return out


def has_recalls(metrics: Path) -> bool:
    """Whether any model has both recalls of `tradeoff`."""
    return bool(_recalls(metrics))


def tradeoff(metrics: Path, out: Path) -> Path:
    """Macro against weighted recall of the model and the baselines, from metrics.json."""
    return frontier(_recalls(metrics), out, group="model")


def _recalls(metrics: Path) -> list[dict[str, Any]]:
    """A row for each model that has both recalls."""
    models = read_json(metrics, "models")["models"]
    rows = [
        {"model": name, **{k: m.get(k) for k in ("rec_w", "rec_m")}} for name, m in models.items()
    ]
    return [row for row in rows if None not in row.values()]


def frontier(
    rows: Sequence[dict[str, Any]], out: Path, group: str = "loss", within: float = 0.8
) -> Path:
    """Macro against weighted recall, a numbered point for each value of `group`: mean of its rows
    and one deviation.

    Dashed: the frontier of those that no other beats in both. Points below `within` times the best
    weighted recall are left out, so that the others can be told apart.
    """
    ordered = _by_weighted_recall(rows, group, within)
    means = np.array([values.mean(0) for _, values in ordered])
    reach = 0.015 * np.ptp(means, axis=0)  # nearer points would share one place for their numbers
    unbeaten = _unbeaten(means)
    with figure(out, (9, 4.8)) as (_, (axes,)):
        axes.plot(*unbeaten.T, color=INK, linewidth=1, linestyle="--", zorder=1)
        for number, (name, values) in enumerate(ordered, 1):
            x, y = means[number - 1]
            # of the seeds; one alone has none
            spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(2)
            axes.errorbar(
                x,
                y,
                yerr=spread[1],
                xerr=spread[0],
                fmt="o",
                color=_color_of_loss(name),
                elinewidth=1,
                label=f"{number}  {title_of(name)}",
            )

            before = int((np.abs(means[: number - 1] - (x, y)) <= reach).all(axis=1).sum())
            place = (5 + 9 * before, 5)
            axes.annotate(str(number), (x, y), xytext=place, textcoords="offset points", fontsize=9)

        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
        axes.set(
            title="Macro against weighted recall", xlabel="weighted recall", ylabel="macro recall"
        )
    return out


def _by_weighted_recall(
    rows: Sequence[dict[str, Any]], group: str, within: float
) -> list[tuple[str, np.ndarray]]:
    """Each value of `group` that is shown, best first, with the weighted and macro recall (seeds,
    2) of its rows."""
    recalls: dict[str, list[list[float]]] = {}
    for row in rows:
        recalls.setdefault(row[group], []).append([row["rec_w"], row["rec_m"]])

    # rows of one value are its seeds: (seeds, 2) weighted and macro recall
    points = {name: np.array(values) for name, values in recalls.items()}
    best = max(values[:, 0].mean() for values in points.values())
    shown = {
        name: values for name, values in points.items() if values[:, 0].mean() >= within * best
    }
    # from the right: the first one is on the frontier in any case
    return sorted(shown.items(), key=lambda item: -item[1][:, 0].mean())


def _unbeaten(points: np.ndarray) -> np.ndarray:
    """Of points (n, 2) by falling first coordinate those that none before beats in the second."""
    highest_before = np.maximum.accumulate(np.append(-np.inf, points[:-1, 1]))
    return points[points[:, 1] > highest_before]


def _color_of_loss(name: str) -> str:
    """DRO, what it starts from (or our model beside baselines), and the rest."""
    if name.startswith("dro"):
        return ORANGE
    return BLUE if name == MODEL or name.startswith("cross_entropy") else GREEN


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have `key`."""
    known = [record for record in records if record.get(key) is not None]
    steps = np.array([record["step"] for record in known], dtype=np.float64)
    return steps, np.array([record[key] for record in known], dtype=np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving mean over a twentieth of the run; the ends average what there is."""
    half = len(values) // 40  # a run of fewer than 40 records is not smoothed
    # a mean by two sums, however wide it is
    total = np.concatenate([[0.0], np.cumsum(values)])

    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


# figure -> whether its file holds what it shows
NEEDED: dict[str, Callable[[Path], bool]] = {
    "calibration.png": is_calibrated,
    "tradeoff.png": has_recalls,
}
