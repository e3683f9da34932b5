"""The report and the model card of a run, written from its result files; what is missing is left
out.

RUN/report.html           one file: no network, no scripts, light and dark
RUN/model/README.md       the model card, as the Hugging Face Hub reads it
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from behavegpt import plots
from behavegpt.data.store import Manifest
from behavegpt.errors import DataError
from behavegpt.io import write_text
from behavegpt.markdown import code, plain

TEMPLATES = Path(__file__).parent / "templates"
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
CAPTIONS = {
    "loss.png": (
        "Cross-entropy in training and on validation, and the validation figures, by optimizer "
        "step."
    ),
    "recall_by_decile.png": (
        "Macro recall of ten groups of behaviors, from the most to the least frequent in training."
    ),
    "per_behavior.png": (
        "Each point is a behavior; the lines are means over bins of the training count."
    ),
    "confusion.png": (
        "Each row shows where the events of one behavior were predicted to be, in percent of the "
        "row."
    ),
}
SHOWN = 8  # behaviors in each of the best and worst tables
MIN_SUPPORT = 20  # scored events that make a behavior's recall worth showing


def write_report(run: Path) -> Path:
    """Draw RUN/figs and write RUN/report.html; returns its path. Raises DataError without
    RUN/run.json."""
    facts = read_facts(run)
    metrics = _optional_json(run / "eval" / "metrics.json", "models")
    examples = _optional_json(run / "eval" / "examples.json", "examples")
    figures = [
        {"uri": data_uri(path), "caption": CAPTIONS[path.name], "name": path.stem}
        for path in plots.draw_all(run)
    ]
    html = (
        _environment(html=True)
        .get_template("report.html.j2")
        .render(
            name=run.resolve().name,
            facts=fact_list(facts),
            run=facts,
            finished=when(facts.get("finished")),
            table=metric_table(metrics["models"], unseen_targets(metrics)) if metrics else None,
            remarks=metrics.get("remarks", []),
            rows=metrics.get("rows"),
            protocol=protocol_list(metrics),
            figures=figures,
            behaviors=behavior_tables(run / "eval" / "per_behavior.csv"),
            examples=examples.get("examples", []),
            config=yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True),
            max_length=_pick(facts, "config.model.max_length")
            or metrics.get("protocol", {}).get("max_length"),
        )
    )
    write_text(run / "report.html", html)
    return run / "report.html"


def write_model_card(run: Path, data: Path | None = None) -> Path:
    """Write RUN/model/README.md and return its path.

    `data` is the prepared folder the model was trained on (default: the run's `data.path`); if it
    still holds that data, its manifest adds columns, time rules and split. Raises DataError without
    RUN/run.json.
    """
    facts = read_facts(run)
    metrics = _optional_json(run / "eval" / "metrics.json", "models")
    configured = _pick(facts, "config.data.path")
    folder = data or (Path(configured) if configured else None)
    front = {
        "library_name": "behavegpt",
        "tags": [
            "user-behavior",
            "next-behavior-prediction",
            "sequential-recommendation",
            "behavegpt",
        ],
    }
    card = (
        _environment(html=False)
        .get_template("model_card.md.j2")
        .render(
            front=yaml.safe_dump(front, sort_keys=False),
            name=run.resolve().name,
            run=facts,
            facts=fact_list(facts),
            manifest=read_manifest(folder, _pick(facts, "data.content_hash")) if folder else None,
            table=metric_table(metrics["models"], unseen_targets(metrics)) if metrics else None,
            remarks=metrics.get("remarks", []),
            rows=metrics.get("rows"),
            protocol=protocol_list(metrics),
            loss=_pick(facts, "config.loss.name"),
            max_length=_pick(facts, "config.model.max_length")
            or metrics.get("protocol", {}).get("max_length"),
        )
    )
    write_text(run / "model" / "README.md", card)
    return run / "model" / "README.md"


def read_facts(run: Path) -> dict[str, Any]:
    """RUN/run.json, what it lacks empty; raises DataError when the folder holds no run."""
    if not (run / "run.json").is_file():
        raise DataError(
            f"{run}: no run in this folder (no run.json); give the `out` folder of `behavegpt "
            "train`."
        )
    return {
        "command": "",
        "config": {},
        "seed": None,
        "versions": {},
        "data": {},
    } | plots.read_json(run / "run.json")


def read_manifest(folder: Path, content_hash: str | None) -> Manifest | None:
    """The manifest of a prepared folder, None when the folder is not here or holds other data by
    now."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        manifest = Manifest.model_validate(plots.read_json(path))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again.") from None
    return manifest if content_hash in (None, manifest.content_hash) else None


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
        "memory": "memory" if _pick(config, "model.memory") else "",
        "history_head": "history head" if _pick(config, "model.history_head") else "",
    }
    model = [f"{facts['parameters']:,} parameters"] if facts.get("parameters") is not None else []
    model += [
        text.format(_pick(config, f"model.{key}"))
        for key, text in shape.items()
        if _pick(config, f"model.{key}")
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
                    f"loss {_pick(config, 'loss.name') or '?'}",
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
    rows = [
        {
            "name": plots.title_of(name),
            "ours": name == plots.MODEL,
            "cells": [
                (decimal(models[name].get(key)), models[name].get(key) == best[key])
                for key in columns
            ],
            "with_unseen": [decimal(models[name]["with_unseen"].get(key)) for key in columns]
            if unseen
            else [],
        }
        for name in order
    ]
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
    ours = [row for row in rows if row["model"] == plots.MODEL and row["support"] > 0]
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
            "other": plots.title_of(other) if other else None,
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


def data_uri(path: Path) -> str:
    """A PNG as text that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


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
    others = [figures for name, figures in models.items() if name != plots.MODEL]
    if plots.MODEL not in models or not others:
        return []
    gains = []
    for key in columns:
        ours = models[plots.MODEL].get(key)
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


def _pick(tree: dict[str, Any], path: str) -> Any:
    """The value at `a.b.c`, None when any part is missing."""
    value: Any = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _optional_json(path: Path, *needed: str) -> dict[str, Any]:
    return plots.read_json(path, *needed) if path.is_file() else {}


def _environment(html: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": plain, "code": code}
    return environment
