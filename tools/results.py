"""The tables of results in README.md and docs/, made from the rows in docs/results.

    python tools/results.py           # which tables differ from their rows; exit code 1 if any does
    python tools/results.py --write   # make them anew

A table stands between `<!-- table NAME -->` and `<!-- end -->`, where NAME is one of `TABLES`.
`tests/test_results.py` holds the pages to the rows: a figure and its row cannot drift apart.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.grid import Row, mean_and_deviation, read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

FIGURES = {"rec_w": "weighted recall", "rec_m": "macro recall", "ndcg@3": "NDCG@3"}
LOGS = {  # name of the log in the rows -> in the tables
    "newyork": "New York, 289 venue categories",
    "jakarta": "Jakarta, 312 venue categories",
    "kualalumpur": "Kuala Lumpur, 337 venue categories",
    "retail": "Online Retail, 44 product families",
    "git": "git activity, 601 activities",
    "globo": "Globo, 345 article buckets",
}
BENCHMARKS = ("benchmark_memory", "benchmark_large")
COUNTS = ("user_recent", "mixture")  # of the baselines: those to beat


def cell(rows: Iterable[Row], best: Sequence[str] = ()) -> str:
    """`weighted / macro / NDCG@3`, mean ± deviation over seeds; those of `best` are bold."""
    found = [row.get("test", row) for row in rows]
    texts = [mean_and_deviation(row[name] for row in found) for name in FIGURES]
    texts = [text.replace("0.", ".") for text in texts]
    return " / ".join(
        f"**{text}**" if name in best else text for name, text in zip(FIGURES, texts, strict=True)
    )


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main_table() -> str:
    """Every log: the counts to beat, the universal model, and the mixer trained on the log."""
    trained = [row for folder in BENCHMARKS for row in read_rows(RESULTS / folder / "rows.jsonl")]
    universal = read_rows(RESULTS / "universal.jsonl")

    lines = []
    for log, title in LOGS.items():
        of_log = [row for row in trained if row["data"] == log and row["kind"] == "final"]
        columns = [[row for row in of_log if row["model"] == name] for name in COUNTS]
        columns += [
            [row for row in universal if row["log"] == log and row["model"] == "universal"],
            *([row for row in of_log if row["model"] == name] for name in ("mixer", "mixer_dro")),
        ]
        best = _best_of(columns)
        seeds = "/".join(str(len(rows)) for rows in columns[-2:])
        lines.append([f"{title} ({seeds})", *map(cell, columns, best)])
    names = [name.replace("_", " ") for name in COUNTS]
    head = [
        "log (seeds)",
        *names,
        "universal, not trained on it",
        "memory, cross-entropy",
        "memory, DRO",
    ]
    return markdown(head, lines)


def _best_of(columns: Sequence[Sequence[Row]]) -> list[list[str]]:
    """Names of the figures in which each column has the largest mean."""
    means = []
    for rows in columns:
        found = [row.get("test", row) for row in rows]
        mean = {name: [row[name] for row in found] for name in FIGURES}
        means.append(
            {name: float(np.mean(values)) if values else 0.0 for name, values in mean.items()}
        )
    largest = {name: max(mean[name] for mean in means) for name in FIGURES}
    return [[name for name in FIGURES if mean[name] == largest[name]] for mean in means]


def blocks_table() -> str:
    """What transformer blocks add to the mixer: cross-entropy, git activity."""
    rows = read_rows(RESULTS / "benchmark_large" / "rows.jsonl")
    rows = [row for row in rows if row["data"] == "git" and row["kind"] == "final"]
    names = {
        "mixture": "mixture of the counts, tuned",
        "mixer": "memory alone",
        "behavegpt": "memory beside two transformer blocks",
    }
    lines = []
    for model, title in names.items():
        found = [row for row in rows if row["model"] == model]
        loss = mean_and_deviation((row["test"].get("cross_entropy") for row in found), 3)
        lines.append([title, str(len(found)), cell(found), loss])
    return markdown(["model", "seeds", " / ".join(FIGURES.values()), "cross-entropy"], lines)


def losses_table(split: str) -> str:
    """Each loss against cross-entropy, as mean over the logs, and the worst log."""
    gains: dict[str, list[dict[str, float]]] = {}
    files = sorted((RESULTS / "losses_memory").glob("*.jsonl"))
    for file in files:
        rows = [row for row in read_rows(file) if row["split"] == split]
        by_loss = {
            loss: {
                name: float(np.mean([row[name] for row in rows if row["loss"] == loss]))
                for name in FIGURES
            }
            for loss in dict.fromkeys(row["loss"] for row in rows)
        }
        for loss, figures in by_loss.items():
            relative = {
                name: figures[name] / by_loss["cross_entropy"][name] - 1 for name in FIGURES
            }
            gains.setdefault(loss, []).append(relative)

    # compared on all logs or not at all
    gains = {loss: found for loss, found in gains.items() if len(found) == len(files)}

    def macro(loss: str) -> float:
        return float(np.mean([gain["rec_m"] for gain in gains[loss]]))

    lines = []
    for loss in sorted(
        (loss for loss in gains if loss != "cross_entropy"), key=macro, reverse=True
    ):
        weighted, ndcg = ([gain[name] for gain in gains[loss]] for name in ("rec_w", "ndcg@3"))
        cells = [macro(loss), np.mean(weighted), min(weighted), np.mean(ndcg), min(ndcg)]
        lines.append([loss, *(f"{value:+.1%}" for value in cells)])
    head = ["loss", "macro recall", "weighted recall", "worst log", "NDCG@3", "worst log"]
    return markdown(head, lines)


# of features.jsonl: log -> (title, which features)
FEATURED = {
    "globo, 12,000 users": (
        "Globo, 12,000 users, 78,687 training events, 3 epochs",
        "device, system, environment, country, region, referrer of a user's first click",
    ),
    "Online Retail": ("Online Retail, 277,387 training events, 1 epoch", "country"),
}
ELAPSED = {"plain": "neither", "both": "both", "gap": "`gap`", "time": "`position_encoding: time`"}
NUMBERS = {False: "without", True: "with `numeric: [files]`"}
GIT = "git_activity, 1/12 of the authors"
COUNTED = {"user_recent": "user recent, tuned", "mixture": "mixture, tuned"}


def _of_log(log: str) -> list[Row]:
    return [row for row in read_rows(RESULTS / "features.jsonl") if row["log"] == log]


def _seeds(rows: Sequence[Row]) -> str:
    return str(len(rows)) if rows and "seed" in rows[0] else ""


def features_table() -> str:
    """What the features of users add, on each log."""
    lines = []
    for log, (title, features) in FEATURED.items():
        rows = _of_log(log)
        columns = [[row for row in rows if row.get("user_features") is on] for on in (False, True)]
        recent = [row for row in rows if row["model"] == "user_recent"]
        title += f" ({'/'.join(map(_seeds, columns))})"
        lines.append([title, features, *map(cell, [*columns, recent])])
    return markdown(["log (seeds)", "features", "without", "with", COUNTED["user_recent"]], lines)


def variants_table(log: str, key: str, titles: dict[Any, str]) -> str:
    """A line for each value of a setting, and for the counts."""
    rows = _of_log(log)
    groups = {title: [r for r in rows if r.get(key) == value] for value, title in titles.items()}
    groups |= {title: [r for r in rows if r["model"] == name] for name, title in COUNTED.items()}
    lines = [[title, _seeds(found), cell(found)] for title, found in groups.items() if found]
    return markdown(["", "seeds", " / ".join(FIGURES.values())], lines)


BASKET_FIGURES = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "hit@1", "macro_recall@5")


def _basket_title(row: Row) -> str:
    if row["model"] != "behavegpt":
        return f"`{row['model']}`"
    memory = ", memory" if row["memory"] else ""
    inputs = "" if row["inputs"] == "all" else f", `inputs: {row['inputs']}`"
    return f"BehaveGPT{memory}, {row['blocks'] or 'no'} blocks{inputs}"


def baskets_table() -> str:
    """Figures of whole baskets, the best NDCG@10 first."""
    groups: dict[str, list[Row]] = {}
    for row in read_rows(RESULTS / "baskets.jsonl"):
        groups.setdefault(_basket_title(row), []).append(row)

    lines = []
    ndcg = {title: np.mean([row["ndcg@10"] for row in rows]) for title, rows in groups.items()}
    for title, rows in sorted(groups.items(), key=lambda group: -ndcg[group[0]]):
        values = [mean_and_deviation(row[name] for row in rows) for name in BASKET_FIGURES]
        lines.append([title, _seeds(rows), *(text.replace("0.", ".") for text in values)])
    names = [name.replace("ndcg", "NDCG").replace("_", " ") for name in BASKET_FIGURES]
    return markdown(["", "seeds", *names], lines)


FORECASTS = {  # generator in the rows -> in the table
    "forecast": "`behavegpt forecast`",
    "history density": "history density",
    "repeat_window": "the user's last 50 events again",
    "user_by_hour": "drawn from the user's events at that hour",
    "behavegpt": "BehaveGPT, one drawn future",
}


def forecast_table() -> str:
    """What happens in seven days, and when: T-mAP by behavior and by event."""
    logs = {"newyork": "New York", "jakarta": "Jakarta", "git": "git activity"}
    found = {log: read_rows(RESULTS / f"generation_{log}.jsonl") for log in logs}
    lines = []
    for generator, title in FORECASTS.items():
        cells = []
        for rows in found.values():
            values = [row for row in rows if row["generator"] == generator and "t_map" in row]
            figures = (
                mean_and_deviation((row[name] for row in values), 3).replace("0.", ".")
                for name in ("t_map", "t_map_w")
            )
            cells.append(f"{' / '.join(figures)} ({len(values)})" if values else "-")
        lines.append([title, *cells])
    return markdown(["forecast (seeds)", *logs.values()], lines)


TRANSFERS = {  # mode of eval/cross_domain.py -> in the table
    "most_frequent": "most frequent",
    "user_recent": "user recent, tuned",
    "mixture": "mixture of the counts, tuned",
    "universal": "universal, which knows no git",
    "scratch": "trained from scratch",
    "cross_domain": "pretrained, `cross_domain`",
    "transformer_only": "pretrained, `transformer_only`",
    "lora": "pretrained, `lora`",
    "full": "pretrained, `full`",
}


def transfer_table() -> str:
    """Repositories never seen: each mode by the share of their users that it learns from."""
    rows = read_rows(RESULTS / "cross_domain_git.jsonl")
    shares = sorted({row["share"] for row in rows})
    lines = []
    for mode, title in TRANSFERS.items():
        found = [
            [row for row in rows if row["mode"] == mode and row["share"] == share]
            for share in shares
        ]
        lines.append([title, *(f"{cell(part)} ({len(part)})" if part else "-" for part in found)])
    return markdown(["model (seeds)", *(f"{share:.0%} of the users" for share in shares)], lines)


def scaling_table() -> str:
    """Loss of each size by training events, without and with the memory; git activity."""
    lines, sizes = [], []
    for kind, name in (("plain", "scaling_git"), ("memory", "scaling_git_memory")):
        rows = [row for row in read_rows(RESULTS / f"{name}.jsonl") if row["status"] == "done"]
        losses: dict[tuple[int, str], dict[int, float]] = {}
        by_size = sorted(rows, key=lambda row: row["params_without_embeddings"])
        # no blocks first: the others are read beside them
        for row in sorted(by_size, key=lambda row: not row["shape"].endswith("x0")):
            shape = (row["params_without_embeddings"], row["shape"])
            # a subset ends with a whole user: the size that was asked for is in the name
            asked = float(row["run"].split("_e")[1].split("_")[0])
            losses.setdefault(shape, {})[round(asked)] = row["loss"]
        sizes = sorted({size for found in losses.values() for size in found} | set(sizes))
        for (parameters, shape), found in losses.items():
            blocks = "no blocks" if shape.endswith("x0") else f"{shape.replace('x', ' x ')} layers"
            cells = [f"{found[size]:.3f}" if size in found else "-" for size in sizes]
            lines.append([kind, f"{blocks}, {parameters:,}", *cells])
    return markdown(["", "width, N without embeddings", *(f"{n:,} events" for n in sizes)], lines)


TABLES: dict[str, Callable[[], str]] = {
    "features": features_table,
    "elapsed-newyork": lambda: variants_table("New York", "elapsed", ELAPSED),
    "elapsed-git": lambda: variants_table(GIT, "elapsed", ELAPSED),
    "numeric": lambda: variants_table(f"{GIT}, files touched", "numeric", NUMBERS),
    "baskets": baskets_table,
    "scaling-git": scaling_table,
    "transfer-git": transfer_table,
    "forecast": forecast_table,
    "main": main_table,
    "blocks": blocks_table,
    "losses-valid": lambda: losses_table("valid"),
    "losses-test": lambda: losses_table("test"),
}


def pages() -> list[Path]:
    """README and the pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def made_anew(text: str) -> str:
    """The text of a page with its marked tables made from the rows."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[4]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    arguments: Any = sys.argv[1:] if argv is None else argv
    old = [
        page for page in pages() if made_anew(page.read_text("utf-8")) != page.read_text("utf-8")
    ]
    for page in old:
        if "--write" in arguments:
            page.write_text(made_anew(page.read_text("utf-8")), encoding="utf-8")
        print(page.relative_to(ROOT), "made anew" if "--write" in arguments else "differs")
    return 0 if "--write" in arguments else int(bool(old))


if __name__ == "__main__":
    sys.exit(main())
