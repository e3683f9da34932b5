"""Figures of an evaluation, drawn from its result files alone: one function per figure, each writes
one PNG and returns it.

RUN/eval/metrics.json -> recall_by_decile.png, calibration.png
RUN/eval/confusion.json -> confusion.png
RUN/eval/per_behavior.csv -> per_behavior.png
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from behavegpt.figures import BLUE, INK, MODEL, ORANGE, figure, short, styled, title_of
from behavegpt.result_files import best_baseline, read_json, read_per_behavior

MOST_LINES = 6  # of a plot; more share colors and hide one another


def recall_by_decile(metrics: Path, out: Path) -> Path:
    """Macro recall of ten groups of behaviors, most to least frequent in training: ours and the
    best others."""
    models = read_json(metrics, "models")["models"]
    # ours first, then the best: the plot has room for a few
    order = sorted(models, key=lambda name: (name != MODEL, -(models[name].get("rec_m") or 0)))
    models = {name: models[name] for name in order[:MOST_LINES]}

    with figure(out, (8, 4.2)) as (_, (axes,)):
        for name, color, marker in styled(models):
            # a tenth without targets in the split has no recall: a gap in the line
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
            xlabel="decile of the behaviors by training count (1: most frequent, 10: rarest)",
            ylabel="macro recall",
            xticks=range(1, 11),
        )
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return out


def is_calibrated(metrics: Path) -> bool:
    """Whether an evaluation measured calibration: earlier ones did not."""
    return bool((read_json(metrics).get("calibration") or {}).get("bins"))


def calibration(metrics: Path, out: Path) -> Path:
    """Share of predictions that came true, by their probability; dots grow with their number."""
    figures = read_json(metrics, "calibration")["calibration"]
    said = np.array([part["probability"] for part in figures["bins"]])
    came = np.array([part["came_true"] for part in figures["bins"]])
    number = np.array([part["predictions"] for part in figures["bins"]], dtype=np.float64)

    with figure(out, (8, 4.2)) as (_, (axes,)):
        axes.plot(
            [0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfect calibration"
        )
        axes.plot(said, came, color=BLUE, linewidth=1.4, zorder=2)
        # area by number: the eye compares areas
        size = 24 + 260 * number / number.max()
        axes.scatter(said, came, s=size, color=BLUE, alpha=0.75, zorder=3, label="predictions")

        axes.set(
            title=f"Calibration (ECE {figures['ece']:.3f})",
            xlabel="probability of the top prediction",
            ylabel="share of correct predictions",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return out


def confusion(counts: Path, out: Path, named: Callable[[str], str] = str) -> Path:
    """Share of each true behavior (row) that was predicted as each behavior (column), in percent;
    `named` gives what is shown for a label."""
    table = read_json(counts, "labels", "counts")
    labels = [short(named(label)) for label in table["labels"]]
    matrix = np.asarray(table["counts"], dtype=np.float64)
    total = matrix.sum(axis=1, keepdims=True)
    # a behavior without targets has no shares
    share = np.divide(100 * matrix, total, out=np.zeros_like(matrix), where=total > 0)

    side = 2.6 + 0.42 * len(labels)
    with figure(out, (side + 0.6, side)) as (_, (axes,)):
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        axes.grid(False)
        for (row, column), value in np.ndenumerate(share):
            # less would be written as 0
            if value >= 0.5:
                # the blue is dark from here on
                color = "white" if value > 45 else INK
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color
                )

        places = range(len(labels))
        axes.set_xticks(
            places, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5
        )
        # the number of targets tells how far a row is to be trusted
        counted = [f"{label}  ({int(n):,})" for label, n in zip(labels, total[:, 0], strict=True)]
        axes.set_yticks(places, counted, fontsize=8.5)

        axes.set(
            xlabel="predicted",
            ylabel="true (events)",
            title="Confusion matrix (% of each true behavior)",
        )
        axes.title.set_horizontalalignment("left")
    return out


def per_behavior(table: Path, out: Path) -> Path:
    """Recall of each behavior by its training count: the model and the baseline with the best macro
    recall."""
    rows = [row for row in read_per_behavior(table) if row["support"] > 0]
    baseline = best_baseline(rows)

    with figure(out, (8, 4.2)) as (_, (axes,)):
        # the model last, so that it lies above the baseline
        for name, color, marker in ((baseline, ORANGE, "s"), (MODEL, BLUE, "o")):
            ours = [row for row in rows if row["model"] == name]
            if not ours:
                continue

            # a log axis has no 0
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
            title="Recall by training count (lines: means)",
            xlabel="events of the behavior in training (log scale)",
            ylabel="recall",
        )
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, reverse=True)
    return out


def _binned(count: np.ndarray, recall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean of the counts and mean recall of each power-of-four bin that holds a
    behavior."""
    group = (np.log2(count) // 2).astype(np.int64)
    bins = np.unique(group)
    counts = [np.exp(np.log(count[group == b]).mean()) for b in bins]
    recalls = [recall[group == b].mean() for b in bins]
    return np.array(counts), np.array(recalls)
