"""Figures of a run, drawn from its result files alone: one function per figure, each writes one PNG
and returns it.

RUN/log.jsonl -> loss.png        RUN/eval/metrics.json -> recall_by_decile.png
RUN/eval/confusion.json -> confusion.png        RUN/eval/per_behavior.csv -> per_behavior.png
RUN/eval/metrics.json -> calibration.png
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.errors import DataError
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
    short,
    styled,
    title_of,
)
from behavegpt.training.journal import read_journal

MOST_LINES = 6  # of a plot; more share colors and hide one another


def draw_all(run: Path) -> list[Path]:
    """Draw into RUN/figs every figure whose result file is there; returns their paths in the order
    of a report."""
    figures: list[tuple[str, str, Callable[[Path, Path], Path]]] = [
        ("log.jsonl", "loss.png", loss_curve),
        ("eval/metrics.json", "recall_by_decile.png", recall_by_decile),
        ("eval/per_behavior.csv", "per_behavior.png", per_behavior),
        ("eval/metrics.json", "calibration.png", calibration),
        ("eval/confusion.json", "confusion.png", confusion),
    ]
    return [
        draw(run / source, run / "figs" / name)
        for source, name, draw in figures
        if (run / source).is_file() and (draw is not calibration or _is_calibrated(run / source))
    ]


def loss_curve(log: Path, out: Path) -> Path:
    """Cross-entropy over training (left) and the validation figures (right), by optimizer step,
    from log.jsonl."""
    records = read_journal(log)
    train = [record for record in records if record.get("kind") == "train"]
    valid = [record for record in records if record.get("kind") == "valid"]
    with figure(out, (8.2, 3.5), columns=2) as (_, (left, right)):
        steps, entropy = _series(train, "cross_entropy")
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
        for key, color, marker in zip(
            ("rec_w", "rec_m", "ndcg@3"), (BLUE, VERMILION, GREEN), "os^", strict=True
        ):
            label = METRICS[key]
            right.plot(*_series(valid, key), color=color, marker=marker, markersize=4, label=label)
        right.set(title="Validation", xlabel="optimizer step", ylabel="share (0 to 1)")
        for axes in (left, right):
            legend_below(axes)
    return out


def frontier(
    rows: Sequence[dict[str, Any]], out: Path, group: str = "loss", within: float = 0.8
) -> Path:
    """Macro against weighted recall, a numbered point for each value of `group`: mean of its rows
    and one deviation.

    Points below `within` times the best weighted recall are left out, so that the others can be
    told apart.
    """
    recalls: dict[str, list[list[float]]] = {}
    for row in rows:
        recalls.setdefault(row[group], []).append([row["rec_w"], row["rec_m"]])
    points = {name: np.array(values) for name, values in recalls.items()}
    best = max(values[:, 0].mean() for values in points.values())
    shown = {n: v for n, v in points.items() if v[:, 0].mean() >= within * best}
    ordered = sorted(shown.items(), key=lambda item: -item[1][:, 0].mean())

    with figure(out, (9, 4.8)) as (_, (axes,)):
        for number, (name, values) in enumerate(ordered, 1):
            x, y = values.mean(0)
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
            axes.annotate(
                str(number), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=9
            )
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
        axes.set(
            title="Macro against weighted recall", xlabel="weighted recall", ylabel="macro recall"
        )
    return out


def _color_of_loss(name: str) -> str:
    if name.startswith("dro"):
        return ORANGE
    return BLUE if name.startswith("cross_entropy") else GREEN


def recall_by_decile(metrics: Path, out: Path) -> Path:
    """Macro recall of ten groups of behaviors, most to least frequent in training: ours and the
    best others."""
    models = read_json(metrics, "models")["models"]
    best = sorted(models, key=lambda name: (name != MODEL, -(models[name].get("rec_m") or 0)))[
        :MOST_LINES
    ]
    models = {name: models[name] for name in best}
    with figure(out, (8, 4.2)) as (_, (axes,)):
        for name, color, marker in styled(models):
            values = [np.nan if v is None else v for v in models[name].get("recall_by_decile", [])]
            ours = name == MODEL
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                color=color,
                marker=marker,
                markersize=6 if ours else 4,
                linewidth=2.8 if ours else 1.3,
                zorder=3 if ours else 2,
                label=title_of(name),
            )
        axes.set(
            title="Recall from frequent to rare behaviors",
            xlabel="tenth of the behaviors by training count (1: most frequent, 10: rarest)",
            ylabel="macro recall",
            xticks=range(1, 11),
        )
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return out


def _is_calibrated(metrics: Path) -> bool:
    """Whether an evaluation measured calibration: earlier ones did not."""
    return bool((read_json(metrics).get("calibration") or {}).get("bins"))


def calibration(metrics: Path, out: Path) -> Path:
    """Share of predictions that came true, by their probability; dots grow with their number."""
    figures = read_json(metrics, "calibration")["calibration"]
    said = np.array([part["probability"] for part in figures["bins"]])
    came = np.array([part["came_true"] for part in figures["bins"]])
    number = np.array([part["predictions"] for part in figures["bins"]], dtype=np.float64)
    with figure(out, (8, 4.2)) as (_, (axes,)):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="as it should be")
        axes.plot(said, came, color=BLUE, linewidth=1.4, zorder=2)
        size = 24 + 260 * number / number.max()
        axes.scatter(said, came, s=size, color=BLUE, alpha=0.75, zorder=3, label="predictions")
        axes.set(
            title=f"Calibration (expected error {figures['ece']:.3f})",
            xlabel="probability of the first behavior",
            ylabel="share that came true",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return out


def confusion(counts: Path, out: Path) -> Path:
    """Share of each true behavior (row) that was predicted as each behavior (column), in
    percent."""
    table = read_json(counts, "labels", "counts")
    labels = [short(label) for label in table["labels"]]
    matrix = np.asarray(table["counts"], dtype=np.float64)
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(100 * matrix, total, out=np.zeros_like(matrix), where=total > 0)
    side = 2.6 + 0.42 * len(labels)
    with figure(out, (side + 0.6, side)) as (_, (axes,)):
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        axes.grid(False)
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                color = "white" if value > 45 else INK
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color
                )
        places = range(len(labels))
        axes.set_xticks(
            places, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5
        )
        counted = [f"{label}  ({int(n):,})" for label, n in zip(labels, total[:, 0], strict=True)]
        axes.set_yticks(places, counted, fontsize=8.5)
        axes.set(
            xlabel="predicted",
            ylabel="true (events)",
            title="Where predictions go (% of each true behavior)",
        )
        axes.title.set_horizontalalignment("left")
    return out


def per_behavior(table: Path, out: Path) -> Path:
    """Recall of each behavior by its training count: the model and the baseline with the best macro
    recall."""
    rows = [row for row in read_per_behavior(table) if row["support"] > 0]
    baseline = best_baseline(rows)
    with figure(out, (8, 4.2)) as (_, (axes,)):
        for name, color, marker in ((baseline, ORANGE, "s"), (MODEL, BLUE, "o")):
            ours = [row for row in rows if row["model"] == name]
            if not ours:
                continue
            count = np.maximum([row["train_count"] for row in ours], 1)
            recall = np.array([row["recall"] for row in ours])
            axes.scatter(count, recall, s=16, color=color, marker=marker, alpha=0.45, linewidths=0)
            axes.plot(
                *_binned(count, recall),
                color=color,
                marker=marker,
                markersize=5,
                label=title_of(str(name)),
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set(
            title="Recall of each behavior by its training count (lines: means)",
            xlabel="events of the behavior in training (log scale)",
            ylabel="recall",
        )
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, reverse=True)
    return out


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """A result file with the keys `needed`; raises DataError naming it when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); evaluate the run again to write it anew."
        ) from None
    missing = [key for key in needed if not isinstance(value, dict) or key not in value]
    if missing or not isinstance(value, dict):
        raise DataError(
            f"{path}: is no object with {missing or 'keys'}; evaluate the run again to write it "
            "anew."
        )
    return value


def read_per_behavior(path: Path) -> list[dict[str, Any]]:
    """Rows of per_behavior.csv, figures as floats; raises DataError naming the file when it is
    damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = ("model", "behavior")
        return [{k: v if k in texts else float(v) for k, v in row.items()} for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); evaluate the run again to write it anew."
        ) from None


def best_baseline(rows: Sequence[dict[str, Any]]) -> str | None:
    """The model other than ours with the best mean recall over the rows; None without one."""
    recall: dict[str, list[float]] = {}
    for row in rows:
        recall.setdefault(row["model"], []).append(row["recall"])
    recall.pop(MODEL, None)
    return max(recall, key=lambda name: float(np.mean(recall[name])), default=None)


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have `key`."""
    found = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving mean over a twentieth of the run; the ends average what there is."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _binned(count: np.ndarray, recall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean of the counts and mean recall of each power-of-four bin that holds a
    behavior."""
    group = (np.log2(count) // 2).astype(np.int64)
    bins = np.unique(group)
    return (
        np.array([np.exp(np.log(count[group == b]).mean()) for b in bins]),
        np.array([recall[group == b].mean() for b in bins]),
    )
