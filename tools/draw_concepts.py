"""The drawings of docs/concepts.md, made by calling the library, so that they show what it does.

    PYTHONPATH=. python tools/draw_concepts.py          # into docs/images

Data: the purchases that ship with the demo. Each function draws one figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import NullLocator

import behavegpt
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.pack import Windows, pack_rows
from behavegpt.figures import BLUE, GREEN, GRID, INK, ORANGE, OTHERS, VERMILION, figure, short
from behavegpt.losses.dro import effective_number_cap, worst_case
from behavegpt.model.mixer import FLOOR, Memory
from behavegpt.ragged import owners

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
LOG = ROOT / "behavegpt" / "demo" / "online_retail.parquet"
CUSTOMER = 12747
CONTEXT = 64  # events of a row in the drawing of packing


def events(rows: Any, out: Path) -> None:
    """One customer's last events as the model reads them, and the question."""
    fields = ("weekday", "time slot", "location", "event", "behavior")
    shown = rows[rows.user_id == CUSTOMER].tail(4)
    stamps = shown.timestamp
    cells = [
        [f"{stamp:%a}", f"{stamp:%H}:{stamp.minute // 30 * 30:02d}", place, event, family]
        for stamp, place, event, family in zip(
            stamps, shown.location, shown.event, shown.family, strict=True
        )
    ]
    with figure(out, (10, 4.2)) as (_, (axes,)):
        axes.axis("off")
        axes.set(xlim=(-1.35, 5.1), ylim=(-1.35, 4.8))
        for row, name in enumerate(fields):
            y = 4.4 - row * (1 if row < 4 else 1.08)
            axes.text(-0.15, y, name, ha="right", va="center", weight="bold")
            for column, cell in enumerate(cells):
                is_behavior = name == "behavior"
                _box(axes, column, y, short(cell[row], 17), ORANGE if is_behavior else BLUE)
        _box(axes, 4.05, 4.4 - 4 * 1.08, "?", VERMILION)
        axes.text(
            4.5, 1.9, "the next behavior:\nits time and place\nare not known", ha="center", size=9
        )
        for column in range(4):
            axes.add_patch(
                FancyArrowPatch(
                    (column + 0.45, -0.28),
                    (column + (1.45 if column < 3 else 1.5), -0.3),
                    connectionstyle="arc3,rad=.35",
                    arrowstyle="->",
                    mutation_scale=11,
                    color=INK,
                )
            )
        axes.text(
            2.4,
            -1.25,
            "each position predicts the behavior that follows, from itself and all before it",
            ha="center",
            size=9.5,
        )


def _box(axes: Any, x: float, y: float, text: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y - 0.3), 0.9, 0.6, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor=color + "22", edgecolor=color,
        )
    )  # fmt: skip
    axes.text(x + 0.45, y, text, ha="center", va="center", size=8)


def packing(rows: Any, out: Path) -> None:
    """The same 14 histories padded to one length, and packed by `pack_rows`."""
    lengths = rows.user_id.value_counts(sort=False).to_numpy()
    lengths = np.random.default_rng(4).choice(lengths[lengths <= CONTEXT], 14, replace=False)
    none = np.zeros(len(lengths), np.int64)
    plan = pack_rows(Windows(none, lengths, none), CONTEXT)
    padded = np.arange(len(lengths)), none, lengths
    packed = owners(np.diff(plan.pointer)), plan.offset, plan.windows.length

    with figure(out, (10, 3.6), columns=2) as (_, axes):
        for panel, (row, offset, length), name in zip(
            axes, (padded, packed), ("padded", "packed"), strict=True
        ):
            count = int(row.max()) + 1
            panel.add_patch(Rectangle((0, -0.5), CONTEXT, count, facecolor=GRID, alpha=0.6))
            for index, (r, x, n) in enumerate(zip(row, offset, length, strict=True)):
                color = OTHERS[index % len(OTHERS)]
                panel.add_patch(
                    Rectangle((x, r - 0.42), n, 0.84, facecolor=color, edgecolor="white")
                )
            used = length.sum() / (count * CONTEXT)
            panel.set(
                xlim=(0, CONTEXT), ylim=(len(lengths) - 0.5, -0.5), yticks=[],
                xlabel="position", title=f"{name}: {count} rows, {used:.0%} full",
            )  # fmt: skip
            panel.grid(False)


def long_tail(rows: Any, out: Path) -> None:
    """How often each family is bought, and what DRO makes of a family's training share."""
    counts = rows.family.value_counts().to_numpy()
    prior = torch.tensor(counts / counts.sum())
    # the class losses of a model that knows the frequencies and nothing else, the default caps
    cap = effective_number_cap(torch.tensor(counts, dtype=torch.float64), n0=0.12)
    weight = (worst_case(-prior.log(), prior, cap, floor=0.8) / prior).numpy()

    with figure(out, (10, 3.6), columns=2) as (_, (left, right)):
        place = np.arange(len(counts))
        third = np.minimum(place * 3 // len(counts), 2)
        colors = np.array([BLUE, GREEN, ORANGE])[third]
        left.bar(place, counts, color=colors)
        left.set(yscale="log", xlabel="families, by frequency", ylabel="purchases (log)",
                 title="the long tail")  # fmt: skip
        left.set_yticks(ticks := [1_500, 5_000, 15_000, 50_000], [f"{tick:,}" for tick in ticks])
        left.yaxis.set_minor_locator(NullLocator())
        for index, name in enumerate(("head", "mid", "tail")):
            share = counts[third == index].sum() / counts.sum()
            center = place[third == index].mean()
            left.text(center, counts[0] * 1.15, f"{name} third: {share:.0%}", ha="center", size=9)
        left.set_ylim(top=counts[0] * 1.8)
        left.grid(axis="x", visible=False)

        right.bar(place, weight, color=colors)
        right.axhline(1, color=INK, linewidth=1, linestyle="--")
        right.set(xlabel="families, by frequency", ylabel="weight in the loss",
                  title="what DRO multiplies the loss by")  # fmt: skip
        right.grid(axis="x", visible=False)


def memory(rows: Any, out: Path) -> None:
    """What the counts of one customer's past say of the next family, and what the mixer makes of
    them."""
    predictor = behavegpt.load("demo", "cpu")
    heard: list[Memory] = []
    mixer = predictor.model.memory_head.mixer
    hook = mixer.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    try:
        predicted = predictor.predict(rows[rows.user_id == CUSTOMER], 7)
    finally:
        hook.remove()
    names = list(predicted.labels[0])
    asked = heard[-1]
    labels = predictor.tokenizer.labels(asked.classes.numpy())
    at = {label: index for index, label in enumerate(labels)}
    shown = [name for name in names if name in at]
    chance = asked.probability[[at[name] for name in shown]].numpy().T + FLOOR  # (J, M)
    final = dict(zip(names, predicted.probabilities[0], strict=True))
    table = np.vstack([chance, [[final[name] for name in shown]]])

    with figure(out, (10, 6.4)) as (_, (axes,)):
        axes.imshow(np.sqrt(table), cmap="Blues", aspect="auto", vmin=0, vmax=1)
        said = [name.replace("_", " ") for name in EXPERTS]
        axes.set_yticks(range(len(table)), [*said, "mixture of these", "the mixer's answer"])
        axes.set_xticks(range(len(shown)), [short(name, 18) for name in shown])
        axes.xaxis.tick_top()
        axes.grid(False)
        axes.axhline(len(table) - 1.5, color=VERMILION)
        axes.axhline(len(table) - 2.5, color=INK, linewidth=0.8)
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                axes.text(x, y, f"{value:.2f}".lstrip("0"), ha="center", va="center", size=8.5,
                          color="white" if value > 0.35 else INK)  # fmt: skip


def main() -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(LOG).to_pandas()
    for draw in (events, packing, long_tail, memory):
        draw(rows, IMAGES / f"concept_{draw.__name__}.png")
        print(IMAGES / f"concept_{draw.__name__}.png")


if __name__ == "__main__":
    main()
