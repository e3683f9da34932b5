"""Figure of generated futures beside real ones, from the rows of eval/generation.py alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.errors import DataError
from behavegpt.figures import BLUE, INK, MODEL, OTHERS, figure, short, title_of

BEHAVIORS = 12  # most frequent in training, shown by name
TICKS = {"1 min": 60, "1 h": 3600, "1 d": 86_400, "1 w": 604_800, "1 mo": 2_592_000}


def futures(rows: Sequence[dict[str, Any]], out: Path) -> Path:
    """Shares of behaviors, hours of the day and time gaps: real, ours and the trivial generators,
    means over seeds."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        # other settings of ours are in the table
        if "hours" in row and not row["generator"].startswith(f"{MODEL} "):
            by_name.setdefault(row["generator"], []).append(row)

    if "real" not in by_name:
        raise DataError(
            f"{out}: the rows hold no real futures; run eval/generation.py without --plot first."
        )

    with figure(out, (15, 4.6), columns=3) as (_, (left, middle, right)):
        labels = list(by_name["real"][0]["behaviors"])
        others = [name for name in by_name if name not in ("real", MODEL)]
        for name, group in by_name.items():
            is_first = name in ("real", MODEL)
            color = INK if name == "real" else BLUE if name == MODEL else OTHERS[others.index(name)]
            style: dict[str, Any] = {
                "color": color,
                "linewidth": 2.4 if is_first else 1.2,
                "label": title_of(name),
            }
            if name == "real":
                style["linestyle"] = "--"

            # means over the seeds, in percent
            shares = 100 * np.mean([list(row["behaviors"].values()) for row in group], axis=0)
            hours = 100 * np.mean([row["hours"] for row in group], axis=0)
            gaps = 100 * np.mean([row["gaps"] for row in group], axis=0)
            left.plot(np.arange(len(labels)), shares, marker="o", markersize=4, **style)
            middle.plot(np.arange(24) + 0.5, hours, **style)  # at the middle of the hour
            right.plot(np.arange(len(gaps)) / 2, gaps, **style)  # two buckets a doubling

        names = [short(label, 16) for label in labels]
        left.set_xticks(range(len(labels)), names, rotation=45, ha="right", fontsize=8)
        left.set(title="Behavior", ylabel="% of events")
        middle.set(title="Hour of the day", xlabel="local hour", xticks=range(0, 25, 4))
        right.set(
            title="Time since the event before", xlabel="half doublings of the time", xlim=(0, 26)
        )

        # ticks at times that people know, where the buckets' scale has them
        right.set_xticks([np.log2(1 + s) for s in TICKS.values()], list(TICKS))
        for axes in (left, middle, right):
            axes.set_ylim(bottom=0)
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=9)
    return out
