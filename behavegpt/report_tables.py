"""What a report and a model card say of a run: its facts, and tables of its figures."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt import plots
from behavegpt.figures import MODEL, title_of

METRICS = {
    "rec_w": "weighted recall",
    "rec_m": "macro recall",
    "ndcg@3": "NDCG@3",
    "ndcg@5": "NDCG@5",
    "hr@3": "HR@3",
    "hr@5": "HR@5",
    "prec_w": "weighted precision",
    "prec_m": "macro precision",
    "f1_m": "macro F1",
    "head": "recall, head third",
    "mid": "recall, mid third",
    "tail": "recall, tail third",
}
SHOWN = 8  # behaviors in each of the best and worst tables
MIN_SUPPORT = 20  # scored events that make a behavior's recall worth showing


def fact_list(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of a run's facts for people; unknown ones are left out."""
    data, config = facts["data"], facts["config"]
    size = [
        f"{data[key]:,} {key}"
        for key in ("events", "users", "behaviors")
        if data.get(key) is not None
    ]
    shape = {
        "num_hidden_layers": "{} layers",
        "embedding_size": "d = {}",
        "max_length": "up to {} events",
        "memory": "memory" if pick(config, "model.memory") else "",
        "history_head": "history head" if pick(config, "model.history_head") else "",
    }
    model = [f"{facts['parameters']:,} parameters"] if facts.get("parameters") is not None else []
    model += [
        text.format(pick(config, f"model.{key}"))
        for key, text in shape.items()
        if pick(config, f"model.{key}")
    ]
    best = facts.get("best_step")
    steps = f"{facts['steps']:,} steps" if facts.get("steps") is not None else ""
    listed = {
        "data": ": ".join(filter(None, [str(data.get("path", "")), ", ".join(size)])),
        "model": ", ".join(filter(None, model)),
        "training": ", ".join(
            filter(
                None,
                [
                    steps,
                    f"best at {best:,}" if best else "",
                    f"loss {pick(config, 'loss.name') or '?'}",
                ],
            )
        ),
        "seed": "" if facts["seed"] is None else str(facts["seed"]),
        "time": duration(facts.get("seconds")),
        "device": str(facts.get("device") or ""),
        "started": when(facts.get("started")),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "data hash": str(data.get("content_hash", ""))[:16],
    }
    return [(name, text) for name, text in listed.items() if text]


def metric_table(models: dict[str, dict[str, Any]], unseen: int = 0) -> dict[str, Any]:
    """Header, rows sorted by weighted recall (best first), the best of each column marked, and ours
    against the best.

    A row is {name, ours, cells: [(text, best)], with_unseen: [text]}, the last with the targets
    that were left out as misses, empty if there were none; `gain` compares ours with the best other
    model, column by column.
    """
    columns = [key for key in METRICS if any(_number(m.get(key)) for m in models.values())]
    best = {key: max(m[key] for m in models.values() if _number(m.get(key))) for key in columns}
    order = sorted(models, key=lambda name: -(models[name].get("rec_w") or 0))
    rows = []
    for name in order:
        figures = models[name]
        cells = [(decimal(figures.get(key)), figures.get(key) == best[key]) for key in columns]
        row = {"name": title_of(name), "ours": name == MODEL, "cells": cells}
        row["with_unseen"] = []
        if unseen:
            row["with_unseen"] = [decimal(figures["with_unseen"].get(key)) for key in columns]
        rows.append(row)
    return {
        "header": [METRICS[key] for key in columns],
        "rows": rows,
        "gain": _gains(models, columns),
    }


def unseen_targets(metrics: dict[str, Any]) -> int:
    """Targets that an evaluation left out because training never saw their label; 0 where it did
    not say."""
    return int((metrics.get("unseen") or {}).get("targets", 0))


def behavior_tables(path: Path) -> list[dict[str, Any]]:
    """The behaviors our model recalls best and worst, beside the best baseline; empty without the
    file."""
    rows = plots.read_per_behavior(path) if path.is_file() else []
    ours = [row for row in rows if row["model"] == MODEL and row["support"] > 0]
    frequent = [row for row in ours if row["support"] >= MIN_SUPPORT]
    ours = sorted(frequent or ours, key=lambda row: (-row["recall"], -row["support"]))
    if not ours:
        return []
    other = plots.best_baseline([row for row in rows if row["support"] > 0])
    theirs = {row["behavior"]: row["recall"] for row in rows if row["model"] == other}
    shown = min(SHOWN, max(1, len(ours) // 2))
    note = (
        f"behaviors with at least {MIN_SUPPORT} events to predict" if frequent else "all behaviors"
    )
    parts = (("Best recalled", ours[:shown]), ("Worst recalled", ours[: -shown - 1 : -1]))
    return [
        {
            "title": title,
            "note": note,
            "other": title_of(other) if other else None,
            "rows": _lines(part, theirs),
        }
        for title, part in parts
    ]


def protocol_list(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of the evaluation protocol as the evaluation wrote it."""
    return [
        (
            str(key).replace("_", " "),
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        )
        for key, value in (metrics.get("protocol") or {}).items()
        if value is not None
    ]


def duration(seconds: float | None) -> str:
    """132.4 -> '2 min 12 s'; empty for None."""
    if seconds is None:
        return ""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    parts = [
        f"{hours} h" if hours else "",
        f"{minutes} min" if minutes else "",
        f"{left} s" if not hours else "",
    ]
    return " ".join(filter(None, parts))


def when(text: str | None) -> str:
    """An ISO time to the minute, with its zone; other text as it is."""
    try:
        return datetime.datetime.fromisoformat(text or "").strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text or ""


def decimal(value: Any) -> str:
    """Three decimals; a dash for what has no value."""
    return f"{value:.3f}" if _number(value) else "–"


def _gains(models: dict[str, dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Ours against the best of the others in each column, in percent; empty without ours or without
    others."""
    others = [figures for name, figures in models.items() if name != MODEL]
    if MODEL not in models or not others:
        return []
    gains = []
    for key in columns:
        ours = models[MODEL].get(key)
        best = max((m[key] for m in others if _number(m.get(key))), default=None)
        gains.append(
            f"{100 * (ours / best - 1):+.0f} %".replace("-", "−") if _number(ours) and best else "–"
        )
    return gains


def _lines(rows: Sequence[dict[str, Any]], theirs: dict[str, float]) -> list[dict[str, str]]:
    return [
        {
            "behavior": row["behavior"],
            "train_count": f"{row['train_count']:,.0f}",
            "support": f"{row['support']:,.0f}",
            "recall": decimal(row["recall"]),
            "precision": decimal(row["precision"]),
            "theirs": decimal(theirs.get(row["behavior"])),
        }
        for row in rows
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value


def pick(tree: dict[str, Any], path: str) -> Any:
    """The value at `a.b.c`, None when any part is missing."""
    value: Any = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
