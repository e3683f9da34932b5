"""The house style of figures: colors, names, and a figure that is written in one rename."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.io import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL = "behavegpt"
# figures of an evaluation -> their names for people, in the order of every table
METRICS = {
    "rec_w": "weighted recall",
    "rec_m": "macro recall",
    "ndcg@3": "NDCG@3",
    "ndcg@5": "NDCG@5",
    "hr@3": "HR@3",
    "hr@5": "HR@5",
    "prec_w": "weighted precision",
    "prec_m": "macro precision",
    "f1_w": "weighted F1",
    "f1_m": "macro F1",
    "head": "recall, head third",
    "mid": "recall, mid third",
    "tail": "recall, tail third",
}
# Okabe and Ito: told apart by people with any color vision; blue is the model's in every figure.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
OTHERS = (ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#6A3D9A", "#9aa5ad")
INK, GRID = "#333333", "#dddddd"
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans")
STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a label may hold a dollar sign
}


def styled(names: Sequence[str] | dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, color, marker), ours first; the same baseline looks the same whenever the same ones
    are shown."""
    others = [name for name in names if name != MODEL]

    if MODEL in names:
        yield MODEL, BLUE, "o"
    for index, name in enumerate(others):
        yield name, OTHERS[index % len(OTHERS)], MARKERS[index % len(MARKERS)]


def title_of(name: str) -> str:
    """A model's name for people."""
    return "BehaveGPT" if name == MODEL else name.replace("_", " ")


def short(label: object, length: int = 22) -> str:
    """A label on one line and cut to `length` characters."""
    text = " ".join(str(label).split())
    return text if len(text) <= length else text[: length - 1] + "…"


@contextmanager
def figure(
    out: Path, size: tuple[float, float], columns: int = 1
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure in the house style with its axes; written to `out` in one rename. The caller's
    settings stay as is."""
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    installed = set(font_manager.get_font_names())
    family = [name for name in FONTS if name in installed]
    # the style of the library, not of the caller's settings; a change of back end would close
    # figures
    style: Any = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    with mpl.rc_context(style | STYLE | {"font.family": family}), warnings.catch_warnings():
        # a box stands for it; the tables show the text
        warnings.filterwarnings("ignore", "Glyph .* missing")

        drawn = Figure(figsize=size, layout="constrained")
        # without pyplot: no global figure list, and safe in threads
        FigureCanvasAgg(drawn)
        yield drawn, drawn.subplots(1, columns, squeeze=False)[0]

        with replacing(out) as temporary:
            drawn.savefig(
                temporary,
                format="png",
                # no version of the library in the file: the same figure gives the same bytes
                metadata={"Software": None},
                bbox_inches="tight",
                pad_inches=0.12,
            )


def legend_below(axes: Axes) -> None:
    """A legend of up to three columns under the axes, where it hides no point."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.2, handlelength=1.6
    )
